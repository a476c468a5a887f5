"""What a worker lends to the tools of an attempt: the root, a place to run commands in, and the record of their calls."""

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeVar

from smithers.engine.turn import TokenUsage
from smithers.errors import SmithersError
from smithers.source.beneath import RootDirectory

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to be run in the jail."""

    argv: tuple[str, ...]
    cwd: str = ""  # relative to the root; "": the root itself
    stdin: bytes = b""
    timeout_s: float
    max_output_bytes: int  # of each stream; the rest is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What came out of a stream: its beginning, and whether that is all."""

    content: bytes
    is_truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEnd:
    """How a command ended; `exit_code` below 0 is the signal that killed it."""

    exit_code: int
    stdout: Captured
    stderr: Captured


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A call that is about to be made; `input` is JSON text."""

    tool_name: str
    input: str
    is_side_effect: bool
    is_idempotent: bool
    kind: Literal["tool", "model"] = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousCall:
    """A call that an earlier attempt of this node made; `input`, `output` and `error` are JSON texts.

    State `started`: nobody knows whether it came to its end.
    """

    attempt: int
    call_no: int
    tool_name: str
    state: str
    is_side_effect: bool
    is_idempotent: bool
    input: str | None
    output: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class CurrentCall:
    """The tool call under way.

    `idempotency_key` is made of the task's key, the tool's name, a digest of the input, and the how-many-eth call with that
    name and input this is in its attempt, those that are recalled counted, those that were refused (CallLost) not: the
    same for the same call in every attempt of this node's iteration, and another for any other call.
    """

    tool_name: str
    call_no: int  # in its attempt, from 1
    idempotency_key: str


class Toolbox(Protocol):
    """The tools' side of an attempt."""

    @property
    def root(self) -> RootDirectory:
        """The directory that tools work below."""

    @property
    def previous_calls(self) -> tuple[PreviousCall, ...]:
        """What earlier attempts of this node called, oldest first; the newest thousand."""

    @property
    def told_calls(self) -> tuple[PreviousCall, ...]:
        """What earlier attempts called that this one does not recall: an agent is told of what must not be done twice."""

    async def recall(self, start: CallStart) -> PreviousCall | None:
        """Take this call for the same one that an attempt made whose process died.

        None: it is to be made. What is returned has ended; as CallLost where its effects cannot be repeated and nobody
        knows whether it had them.
        """

    def note_written(self, call: object) -> None:
        """Take note of a call that has been written down: a body that never makes it has a mistake in it."""

    def note_made(self, call: object) -> None:
        """Take note that it is made after all."""

    async def begin(self, start: CallStart) -> CurrentCall:
        """Number a call and record its start; where it has side effects that cannot be repeated, wait until that is kept."""

    def finish(
        self,
        call_no: int,
        *,
        output: str | None,
        error: BaseException | None,
        until_kept: bool = False,
    ) -> Awaitable[None]:
        """Record how a call ended: with its output, JSON text, or an error. Await it to know that it is kept.

        `until_kept`: it is awaited before anything else is called by whoever made this call.
        """

    def report_usage(self, usage: TokenUsage) -> None:
        """Tell what a model used up; kept together with the end of the call that is recorded next."""

    def say(self, text: str) -> None:
        """Pass on what a model is saying: in a moment it is among the run's events."""

    async def run_command(self, command: Command) -> CommandEnd:
        """Run a program in the jail; raises ToolError. All of its processes are dead when this returns or raises."""

    async def run_in_thread(self, function: Callable[[], Result]) -> Result:
        """Call what blocks."""

    def wait_for(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Have the worker's loop run this, and block this thread, which is a body's, until it is done."""


TOOLBOX: Final[ContextVar[Toolbox]] = ContextVar("smithers_toolbox")
CALL: Final[ContextVar[CurrentCall]] = ContextVar("smithers_tool_call")


def find_toolbox() -> Toolbox:
    """Return what tools work with here; raise SmithersError outside of a task's body."""
    try:
        return TOOLBOX.get()
    except LookupError:
        raise SmithersError(
            "tools are for the body of a task: a builder only says what is to be done"
        ) from None


def current_call() -> CurrentCall:
    """Return the call that this code runs in; raise SmithersError outside of a tool."""
    try:
        return CALL.get()
    except LookupError:
        raise SmithersError("current_call() is for the function behind a @tool") from None


def previous_calls() -> tuple[PreviousCall, ...]:
    """Return what earlier attempts of this node called, oldest first; the newest thousand.

    What has side effects and is not idempotent should not be called again before its doing is looked at: `state` says
    whether it came to an end (`finished`, `failed`), or whether nobody knows (`started`).
    """
    return find_toolbox().previous_calls
