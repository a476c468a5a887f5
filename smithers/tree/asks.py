"""A task's question to agents, in the place of a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from smithers.errors import InvalidTree
from smithers.tree.checks import check_count, check_text

REPAIRS: Final = 2
MAX_NAME_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to agents: if one raises, the next is asked."""

    agents: tuple[Any, ...]
    prompt: str | Callable[..., Any]  # called with what the task needs
    tools: tuple[Any, ...]
    repairs: int  # how often an agent may correct an answer that does not fit
    is_streamed: bool  # emit models' text as they produce it

    @classmethod
    def of(
        cls,
        agent: Any,
        prompt: Any,
        *,
        tools: Sequence[Any],
        repairs: int,
        is_streamed: bool,
        where: str,
    ) -> Self:
        """Build a question from a task's options; raise InvalidTree for invalid ones."""
        agents = (
            tuple(agent) if isinstance(agent, Sequence) and not isinstance(agent, str) else (agent,)
        )
        if not agents:
            raise InvalidTree(f"{where} has no agent")
        for one in agents:
            if not callable(getattr(one, "run", None)):
                raise InvalidTree(
                    f"{where}: {type(one).__name__} is no agent: it has no run(); see docs/agents.md"
                )
        for one in tools:
            if not hasattr(one, "prepare"):
                raise InvalidTree(f"{where}: {one!r} is no tool: write @tool above it")
        if not callable(prompt) and check_text(prompt, f"{where[:-1]}, prompt=...)") is None:
            raise InvalidTree(f"{where} needs a prompt: a text, or a function that returns one")
        check_count(repairs, f"{where[:-1]}, repairs=...)", least=0)
        return cls(agents, prompt, tuple(tools), repairs, is_streamed)

    @property
    def names(self) -> tuple[str, ...]:
        """The agents' names, in their order."""
        return tuple(map(name_of, self.agents))


def name_of(agent: Any) -> str:
    """Return an agent's own name, else that of its class."""
    name = getattr(agent, "name", None)
    return name[:MAX_NAME_CHARS] if isinstance(name, str) and name else type(agent).__name__
