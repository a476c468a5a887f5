"""The interface of an agent: it gets a prompt and tools, and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from smithers.engine.turn import TokenUsage
from smithers.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class AgentTool:
    """A tool as an agent sees it: each call is recorded, and made once."""

    tool: Tool[..., Any]

    @property
    def name(self) -> str:
        """Its name for models."""
        return self.tool.name

    @property
    def description(self) -> str:
        """Its description for models."""
        return self.tool.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return self.tool.parameters

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """Return the result as plain JSON; report a ToolError to the model."""
        return await self.tool.perform_once(self.tool.prepare(arguments))


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """An agent's answer; `usage`: in addition to what `ask_model` has reported."""

    value: Any
    usage: Sequence[TokenUsage] = ()


class Agent(Protocol):
    """An agent of your own; if it has a `name`, a string, it is identified by that."""

    async def run(self, prompt: str, *, output: Any, tools: Sequence[AgentTool]) -> AgentAnswer:
        """Answer a prompt with a value that fits `output` (a type; None: any JSON).

        May be called again with the errors of its answer. If it raises anything, the next agent is asked.
        """
