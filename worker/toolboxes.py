"""The tools of one attempt: their calls are numbered, recorded, and end with the attempt.

A call that cannot be repeated is made when its start is committed; the start and end of every other go
into the next turn. So a call waits for at most one commit.
"""

import asyncio
import concurrent.futures
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Protocol, TypeVar

import orjson

from smithers.engine.turn import TokenUsage, ToolCall
from smithers.errors import SmithersError
from smithers.source.beneath import RootDirectory
from smithers.states import ToolCallState
from smithers.store.tool_calls import CallPlace, ToolCallRow
from smithers.texts import text_of
from smithers.tools.errors import CallLost, ToolError
from smithers.tools.toolbox import CALL, CallStart, Command, CommandEnd, CurrentCall, PreviousCall
from worker.call_keys import CallKeys
from worker.loop_thread import LoopThread
from worker.recall import NO_PARENT, NotMade, Recall, Recalled, is_not_made, is_repeatable
from worker.sandbox.commands import Commands, SandboxPolicy
from worker.sandbox.jail import HIDDEN
from worker.sandbox.own_code import find_closed
from worker.settings import PoolSettings
from worker.speech import Speech
from worker.threads import MAX_THREADS, call_in_thread

MAX_DEPTH: Final = 16
MAX_ERROR_CHARS: Final = 4_000
MAX_PREVIOUS_CALLS: Final = 1_000  # listed; more may be recalled
NOT_MADE: Final = "it was stopped before anything was done"
CLOSE_S: Final = 4.0  # a second to stop, three to be killed

Result = TypeVar("Result")
FindOutput = Callable[[CallPlace], Awaitable[str | None]]

# How many tools wait, each in a thread, for the current call.
_DEPTH: Final[ContextVar[int]] = ContextVar("smithers_tool_depth", default=0)


class ToolThreads:
    """Threads for tools, apart from those of bodies, each of which may wait for one.

    A tool that calls another waits for it in its thread. The other gets a thread one level deeper: a thread waits only
    for deeper ones, so that the deepest can always proceed. Used in the loop's thread.
    """

    def __init__(self) -> None:
        self._depths: list[ThreadPoolExecutor] = []

    def at(self, depth: int) -> ThreadPoolExecutor:
        """Return the threads of a depth, from 0; raise ToolError if tools call one another too deep."""
        if depth >= MAX_DEPTH:
            raise ToolError(f"tools that are plain functions call one another {MAX_DEPTH} deep")
        while len(self._depths) <= depth:
            name = f"tool-{len(self._depths)}"
            threads = ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix=name)
            self._depths.append(threads)
        return self._depths[depth]

    def close(self) -> None:
        """Let idle threads end."""
        for threads in self._depths:
            threads.shutdown(wait=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What the toolboxes of a child share."""

    root: RootDirectory
    commands: Commands
    threads: ToolThreads


@contextmanager
def open_workshop(settings: PoolSettings) -> Iterator[Workshop]:
    """Open what a child's tools need; jailed processes die at the end."""
    threads = ToolThreads()
    closed = find_closed(settings.root.resolve())
    with RootDirectory(settings.root, hidden=HIDDEN, closed=closed) as root:
        policy = SandboxPolicy(
            root=root.path,
            is_jailed=not settings.unsafe_tools,
            allow_network=settings.allow_network,
        )
        commands = Commands(policy)
        try:
            yield Workshop(root=root, commands=commands, threads=threads)
        finally:
            commands.close()
            threads.close()


class Desk(Protocol):
    """Where a toolbox reports an attempt's calls; in the loop's thread."""

    def take_call(self, call: ToolCall, kept: "asyncio.Future[None] | None") -> None:
        """Record a call's newest state; `kept` if somebody waits for its commit."""

    def report_usage(self, usage: TokenUsage) -> None:
        """Record a model's usage."""

    def may_ask(self) -> bool:
        """Say whether a model may be asked now."""

    def speak(self, text: str) -> None:
        """Record a model's text."""

    def on_stuck(self) -> None:
        """Handle a call that outlives its attempt."""


class AttemptToolbox:
    """One attempt's toolbox; see smithers.tools.toolbox.Toolbox."""

    def __init__(
        self,
        workshop: Workshop,
        desk: Desk,
        previous_calls: tuple[ToolCallRow, ...],
        find_output: FindOutput,
        loop_thread: LoopThread,
    ) -> None:
        """`previous_calls`: of all earlier attempts, oldest first; `find_output` reads what is left out of one."""
        self._workshop = workshop
        self._desk = desk
        self._previous_calls = previous_calls
        self._find_output = find_output
        self._recall = Recall(previous_calls)
        self._keys = CallKeys()
        self._loop = loop_thread.loop
        self._loop_thread = loop_thread
        self._is_closed = False
        self._expected: set[object] = set()
        self._under_way: dict[int, _UnderWay] = {}
        self._unkept: dict[int, ToolCall] = {}  # ended, but its caller does not go on yet
        self._speech = Speech(desk.speak, loop_thread)
        self._waits: set[concurrent.futures.Future[Any]] = set()

    @property
    def root(self) -> RootDirectory:
        """The directory that tools work below."""
        return self._workshop.root

    @property
    def previous_calls(self) -> tuple[PreviousCall, ...]:
        """The calls of earlier attempts."""
        newest = self._previous_calls[-MAX_PREVIOUS_CALLS:]
        return tuple(_to_previous(row) for row in newest if row.kind == "tool")

    @property
    def told_calls(self) -> tuple[PreviousCall, ...]:
        """Earlier attempts' calls that this one does not recall."""
        # The same in each attempt that recalls the calls of those before it: agents are told of these in their prompts,
        # and a question with another prompt is another question.
        return tuple(
            _to_previous(row)
            for row in self._previous_calls
            if row.kind == "tool" and not (row.is_recallable or is_not_made(row))
        )

    async def recall(self, start: CallStart) -> PreviousCall | None:
        """Match a call with one that an attempt made whose process died; None: make it."""
        self._check_open()
        recalled = self._recall.take(start, parent=_parent())
        if recalled is None:
            return None
        self._count_in(recalled, start)
        row = replace(recalled.row, input=start.input)  # of a brief row it is only the head
        if recalled.loss is not None:
            row = self._lose(row, start, recalled.loss)
        elif row.output is None and row.output_bytes is not None:
            place = CallPlace(row.attempt, row.call_no)
            row = replace(row, output=await self._find_output(place))
        return _to_previous(row)

    def note_written(self, call: object) -> None:
        """Record a created call that is still to be made."""
        self._expected.add(call)

    def note_made(self, call: object) -> None:
        """Record that it is made."""
        self._expected.discard(call)

    def check_all_made(self) -> None:
        """Raise ToolError if a body has returned without making a call that it created."""
        for call in self._expected:
            raise ToolError(
                f"{call!r} was never made: await it, or ask for its result() in a plain function"
            )

    async def begin(self, start: CallStart) -> CurrentCall:
        """Number a call and record its start; wait for that commit if it must not be repeated.

        Never returns for a question to a model if the run's budget is spent: the attempt is being stopped.
        """
        self._check_open()
        is_held = start.kind == "model" and not self._desk.may_ask()
        call = self._begun(start, self._recall.number(start, parent=_parent()))
        key = self._keys.take(start.tool_name, start.input)
        task = asyncio.current_task()
        assert task is not None
        self._under_way[call.call_no] = _UnderWay(call, task, time.monotonic())
        kept = None if is_repeatable(start) else self._loop.create_future()
        # Also what is held has its place: a later attempt makes it there, beside what was made at once with it.
        self._desk.take_call(call, kept)
        awaited = self._loop.create_future() if is_held else kept
        if awaited is not None:
            try:
                await awaited
            except asyncio.CancelledError:
                self.finish(call.call_no, output=None, error=NotMade(NOT_MADE))
                raise
        return CurrentCall(start.tool_name, call.call_no, key)

    def finish(
        self,
        call_no: int,
        *,
        output: str | None,
        error: BaseException | None,
        until_kept: bool = False,
    ) -> "asyncio.Future[None]":
        """Record how a call ended; the future is done when that is committed; the caller awaits it if `until_kept`."""
        ended = self._under_way.pop(call_no)
        self._recall.leave(call_no)
        self._speech.flush()
        state = ToolCallState.FINISHED if error is None else ToolCallState.FAILED
        call = ended.call._replace(
            state=state,
            output=output,
            error=None if error is None else _error_json(error),
            took_ms=round((time.monotonic() - ended.began_at) * 1000),
        )
        kept: asyncio.Future[None] = self._loop.create_future()
        self._desk.take_call(call, kept)
        if until_kept:
            self._unkept[call_no] = call
            kept.add_done_callback(lambda _: self._unkept.pop(call_no, None))
        return kept

    def report_usage(self, usage: TokenUsage) -> None:
        """Report a model's usage."""
        if not isinstance(usage, TokenUsage):  # reported by an author's agent
            raise TypeError(f"what a model used up is a TokenUsage, not {type(usage).__name__}")
        self._desk.report_usage(usage)

    def say(self, text: str) -> None:
        """Emit a model's text."""
        self._speech.say(text)

    async def run_command(self, command: Command) -> CommandEnd:
        """Run a program in the jail."""
        return await self._workshop.commands.run(command)

    async def run_in_thread(self, function: Callable[[], Result]) -> Result:
        """Call a blocking function."""
        depth = _DEPTH.get()
        threads = self._workshop.threads.at(depth)
        deeper = _DEPTH.set(depth + 1)
        try:
            return await call_in_thread(
                threads, function, on_cancel=lambda: None, on_stuck=self._desk.on_stuck
            )
        finally:
            _DEPTH.reset(deeper)

    def wait_for(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run this on the loop, and block until it is done."""
        if self._loop_thread.is_here:
            coroutine.close()
            raise SmithersError("result() would block every run of this worker here: use await")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._waits.add(future)
        if self._is_closed:
            future.cancel()
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            # Not an Exception, so that a body that catches those still ends.
            raise asyncio.CancelledError from None
        finally:
            self._waits.discard(future)

    def stop(self) -> None:
        """Refuse further calls, wake the threads that wait for one, and stop running ones."""
        self._is_closed = True
        for future in list(self._waits):
            future.cancel()
        for call in self._under_way.values():
            if call.task is not asyncio.current_task():
                call.task.cancel()

    async def close(self) -> None:
        """Stop, and return when nothing is left of any call."""
        self._speech.flush()
        self.stop()
        if not self._under_way:
            return
        tasks = {call.task for call in self._under_way.values()} - {asyncio.current_task()}
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=CLOSE_S)
            if stuck:
                self._desk.on_stuck()

    def _lose(self, made: ToolCallRow, start: CallStart, loss: CallLost) -> ToolCallRow:
        """Record that a call was not made, and why, so that later attempts get the same answer."""
        error = _error_json(loss)
        call = self._begun(start, made.call_no)._replace(state=ToolCallState.FAILED, error=error)
        self._desk.take_call(call, None)
        return replace(made, state=call.state, error=error)

    def _count_in(self, recalled: Recalled, start: CallStart) -> None:
        """Count a recalled call among the calls of this attempt; a refused one can still be made, with its key."""
        if not recalled.is_refused:
            self._keys.take(start.tool_name, start.input)
        for row in recalled.inner:
            self._keys.take(row.tool_name, row.input)

    def _begun(self, start: CallStart, number: int) -> ToolCall:
        parent = _parent()
        under_way = chain((each.call for each in self._under_way.values()), self._unkept.values())
        beside = (call.call_no for call in under_way if call.parent_call_no == parent)
        return ToolCall(
            call_no=number,
            kind=start.kind,
            tool_name=start.tool_name,
            state=ToolCallState.STARTED,
            is_side_effect=start.is_side_effect,
            is_idempotent=start.is_idempotent,
            input=start.input,
            parent_call_no=parent,
            beside_call_no=min(beside, default=None),
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A running call, its task, and when it began (monotonic)."""

    call: ToolCall
    task: "asyncio.Task[Any]"
    began_at: float


def _parent() -> int:
    """Return the number of the call that this code runs in."""
    call = CALL.get(None)
    return NO_PARENT if call is None else call.call_no


def _to_previous(row: ToolCallRow) -> PreviousCall:
    """Return a call of an earlier attempt as a body sees it."""
    return PreviousCall(
        attempt=row.attempt,
        call_no=row.call_no,
        tool_name=row.tool_name,
        state=row.state,
        is_side_effect=row.is_side_effect,
        is_idempotent=row.is_idempotent,
        input=row.input,
        output=row.output,
        error=row.error,
    )


def _error_json(error: BaseException) -> str:
    text = text_of(error)[:MAX_ERROR_CHARS]
    code = error.code if isinstance(error, SmithersError) else None
    known = {"name": type(error).__name__, "message": text or type(error).__name__}
    return orjson.dumps(known if code is None else {**known, "code": code}).decode()
