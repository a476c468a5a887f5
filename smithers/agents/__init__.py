"""Agents that answer tasks: what one of your own has to be, and what it is lent.

A pydantic-ai agent is given to a task as it is. See docs/agents.md.
"""

from smithers.agents.agent import Agent, AgentAnswer, AgentTool
from smithers.agents.models import ask_model, say
from smithers.engine.turn import TokenUsage

__all__ = ["Agent", "AgentAnswer", "AgentTool", "TokenUsage", "ask_model", "say"]
