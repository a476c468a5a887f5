"""Agents that answer tasks: the interface of an agent of your own, and what it can use.

A pydantic-ai agent is passed to a task directly. See docs/agents.md.
"""

from smithers.agents.agent import Agent, AgentAnswer, AgentTool
from smithers.agents.models import ask_model, say
from smithers.engine.turn import TokenUsage

__all__ = ["Agent", "AgentAnswer", "AgentTool", "TokenUsage", "ask_model", "say"]
