"""What a worker provides to an attempt's tools: the root, a jail for commands, and the record of their calls."""

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
    """A program to run in the jail."""

    argv: tuple[str, ...]
    cwd: str = ""  # relative to the root; "": the root itself
    stdin: bytes = b""
    timeout_s: float
    max_output_bytes: int  # of each stream; the rest is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """The output on one stream: its beginning, and whether it is complete."""

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
    """A call about to be made; `input` is JSON text."""

    tool_name: str
    input: str
    is_side_effect: bool
    is_idempotent: bool
    kind: Literal["tool", "model"] = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousCall:
    """A call that an earlier attempt of this node made; `input`, `output` and `error` are JSON texts.

    State `started`: it is unknown whether it completed.
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
    """The current tool call.

    `idempotency_key` consists of the task's key, the tool's name, a digest of the input, and the ordinal of this call among
    those with that name and input in its attempt (recalled calls count, calls refused with CallLost do not): it is the
    same for the same call in every attempt of this node's iteration, and different for any other call.
    """

    tool_name: str
    call_no: int  # in its attempt, from 1
    idempotency_key: str


class Toolbox(Protocol):
    """An attempt as its tools see it."""

    @property
    def root(self) -> RootDirectory:
        """The directory below which tools work."""

    @property
    def previous_calls(self) -> tuple[PreviousCall, ...]:
        """The calls of this node's earlier attempts, oldest first; the newest thousand."""

    @property
    def told_calls(self) -> tuple[PreviousCall, ...]:
        """Earlier attempts' calls that this one does not recall: an agent is told which must not be repeated."""

    async def recall(self, start: CallStart) -> PreviousCall | None:
        """Match this call with the one that an attempt made whose process died.

        None: make it. A returned call has ended; with CallLost if its effects cannot be repeated and it is unknown
        whether it had them.
        """

    def note_written(self, call: object) -> None:
        """Record that a call was created: a body that never makes it is wrong."""

    def note_made(self, call: object) -> None:
        """Record that it is made."""

    async def begin(self, start: CallStart) -> CurrentCall:
        """Number a call and record its start; wait for that commit if its side effects cannot be repeated."""

    def finish(
        self,
        call_no: int,
        *,
        output: str | None,
        error: BaseException | None,
        until_kept: bool = False,
    ) -> Awaitable[None]:
        """Record how a call ended: with its output, JSON text, or an error. Await it until that is committed.

        `until_kept`: the caller awaits it before making any other call.
        """

    def report_usage(self, usage: TokenUsage) -> None:
        """Report a model's usage; committed together with the end of the call that is recorded next."""

    def say(self, text: str) -> None:
        """Emit text that a model is producing: soon it is among the run's events."""

    async def run_command(self, command: Command) -> CommandEnd:
        """Run a program in the jail; raises ToolError. All of its processes are dead when this returns or raises."""

    async def run_in_thread(self, function: Callable[[], Result]) -> Result:
        """Call a blocking function."""

    def wait_for(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run this on the worker's loop, and block this thread, which is a body's, until it is done."""


# Returns the current attempt's toolbox, made when it is first asked for.
TOOLBOX: Final[ContextVar[Callable[[], Toolbox]]] = ContextVar("smithers_toolbox")
CALL: Final[ContextVar[CurrentCall]] = ContextVar("smithers_tool_call")


def find_toolbox() -> Toolbox:
    """Return the current attempt's toolbox; raise SmithersError outside a task's body."""
    try:
        open_toolbox = TOOLBOX.get()
    except LookupError:
        raise SmithersError(
            "tools are for the body of a task: a builder only says what is to be done"
        ) from None
    return open_toolbox()


def current_call() -> CurrentCall:
    """Return the tool call that this code runs in; raise SmithersError outside a tool."""
    try:
        return CALL.get()
    except LookupError:
        raise SmithersError("current_call() is for the function behind a @tool") from None


def previous_calls() -> tuple[PreviousCall, ...]:
    """Return the calls of this node's earlier attempts, oldest first; the newest thousand.

    Before repeating a call that has side effects and is not idempotent, check its outcome: `state` says
    whether it completed (`finished`, `failed`), or whether that is unknown (`started`).
    """
    return find_toolbox().previous_calls
