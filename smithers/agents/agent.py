"""What an agent is to a task: something that is given a prompt and tools, and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from smithers.engine.turn import TokenUsage
from smithers.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class AgentTool:
    """A tool as an agent has it: each call is recorded, and made once."""

    tool: Tool[..., Any]

    @property
    def name(self) -> str:
        """What a model calls it."""
        return self.tool.name

    @property
    def description(self) -> str:
        """What a model is told of it."""
        return self.tool.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return self.tool.parameters

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """Return what came out, as plain JSON; a ToolError is to be told to the model."""
        return await self.tool.perform_once(self.tool.prepare(arguments))


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """What an agent says; `usage`: what it has used up beyond what `ask_model` has told."""

    value: Any
    usage: Sequence[TokenUsage] = ()


class Agent(Protocol):
    """An agent of one's own; where it has a `name`, a text, it is known by that."""

    async def run(self, prompt: str, *, output: Any, tools: Sequence[AgentTool]) -> AgentAnswer:
        """Answer a prompt with a value that fits `output` (a type; None: any JSON).

        May be called again with what was wrong with the answer. Whatever it raises lets the next agent be asked.
        """
