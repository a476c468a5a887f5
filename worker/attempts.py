"""Make attempts: call bodies in tasks and threads, bound their time, stop them, and say how each ended.

Guarantees that every attempt that was begun is reported once: finished, failed or aborted. A body that cannot be stopped (a
thread that does not look at `cancelled`, a coroutine that swallows its cancellation) is abandoned after a second: its run
goes on without it, and the child is replaced when its other runs are done.
"""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json

from smithers.current import CURRENT, CurrentTask
from smithers.engine.facts import NodeKey, Problem
from smithers.engine.rendering import author_traceback
from smithers.engine.turn import Start
from smithers.errors import InvalidOutput
from smithers.ids import RunId
from smithers.outputs import decode_output, encode_output, find_adapter
from smithers.tree import Task
from worker.prints import PRINTS, Prints

STOP_GRACE_S: Final = 1.0
HEARTBEAT_EVERY_S: Final = 1.0
MAX_HEARTBEAT_BYTES: Final = 16_384
MAX_ERROR_CHARS: Final = 8_000


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt returned; `output` is JSON text."""

    key: NodeKey
    attempt: int
    output: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt raised, took too long, or returned what cannot be kept."""

    key: NodeKey
    attempt: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class Aborted:
    """An attempt was stopped on purpose."""

    key: NodeKey
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Printed:
    """A body printed."""

    key: NodeKey
    attempt: int
    text: str
    stream: str


@dataclass(frozen=True, slots=True)
class Beaten:
    """A body reported how far it is; `data` is JSON text."""

    key: NodeKey
    attempt: int
    data: str


Happening = Finished | Failed | Aborted | Printed | Beaten


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """What all attempts of a child share."""

    threads: ThreadPoolExecutor
    root_dir: Path
    on_abandoned: Callable[[str], None]  # a body could not be stopped: this child must be replaced


class Attempts:
    """The attempts of one run that are under way."""

    def __init__(self, run_id: RunId, bodies: Bodies, report: Callable[[Happening], None]) -> None:
        """`report` is called in the loop's thread only."""
        self._run_id = run_id
        self._bodies = bodies
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[NodeKey, _Attempt] = {}

    def start(self, start: Start, *, needs: Mapping[str, Any], last_heartbeat: str | None) -> None:
        """Begin an attempt; a plain value has ended before this returns."""
        task = start.leaf.element
        assert isinstance(task, Task)
        key = start.leaf.key
        if not callable(task.do):
            self._report(_encode(key, start.attempt, task.do, task.output))
            return
        attempt = _Attempt(key, start.attempt, task, dict(needs))
        attempt.current = self._current(attempt, last_heartbeat)
        self._under_way[key] = attempt
        attempt.runner = self._loop.create_task(self._perform(attempt))

    def abort(self, key: NodeKey, reason: str) -> None:
        """Have an attempt stopped; its end is reported like any other."""
        attempt = self._under_way.get(key)
        if attempt is not None and attempt.stopped_by is None:
            self._stop(attempt, Aborted(key, attempt.number, reason))

    async def drop(self) -> None:
        """Stop everything without a report: the run is no longer ours."""
        attempts = list(self._under_way.values())
        for attempt in attempts:
            attempt.is_reported = True
            attempt.current.cancelled.set()
            attempt.runner.cancel()
        if attempts:
            _, stuck = await asyncio.wait(
                [attempt.runner for attempt in attempts], timeout=2 * STOP_GRACE_S
            )
            for runner in stuck:
                self._bodies.on_abandoned(
                    f"an attempt of run {self._run_id} does not stop: {runner}"
                )

    def _current(self, attempt: "_Attempt", last_heartbeat: str | None) -> CurrentTask:
        return CurrentTask(
            run_id=self._run_id,
            node_id=attempt.key.node_id,
            iteration=attempt.key.iteration,
            attempt=attempt.number,
            root_dir=self._bodies.root_dir,
            last_heartbeat=None if last_heartbeat is None else decode_output(last_heartbeat),
            _send_heartbeat=partial(self._beat, attempt),
        )

    async def _perform(self, attempt: "_Attempt") -> None:
        prints = Prints(partial(self._print, attempt))
        CURRENT.set(attempt.current)
        PRINTS.set(prints)
        timeout_s = attempt.task.timeout_s
        timer = None
        if timeout_s is not None:
            timer = self._loop.call_later(timeout_s, self._time_out, attempt, timeout_s)
        try:
            value = await self._call(attempt)
            model = attempt.task.output or _returned_model(attempt.task.do)
            end: Happening = _encode(attempt.key, attempt.number, value, model)
        except BaseException as error:  # noqa: BLE001 - an author's sys.exit() ends an attempt, not this process
            # A cancellation is swallowed only here, at the end of the task that was to be cancelled.
            is_stop = isinstance(error, asyncio.CancelledError) and attempt.stopped_by is not None
            end = attempt.stopped_by if is_stop and attempt.stopped_by else _failed(attempt, error)
        finally:
            PRINTS.set(None)
            if timer is not None:
                timer.cancel()
        prints.flush()
        self._end(attempt, end)

    async def _call(self, attempt: "_Attempt") -> Any:
        do, needs = attempt.task.do, attempt.needs
        if _is_async(do):
            return await do(**needs)
        value = await self._call_in_thread(attempt, partial(do, **needs))
        return await value if inspect.isawaitable(value) else value

    async def _call_in_thread(self, attempt: "_Attempt", body: Callable[[], Any]) -> Any:
        variables = copy_context()
        future = self._loop.run_in_executor(self._bodies.threads, _call_safely, variables, body)
        try:
            result = await asyncio.shield(future)
        except asyncio.CancelledError:
            attempt.current.cancelled.set()
            _, stuck = await asyncio.wait([future], timeout=STOP_GRACE_S)
            if stuck:
                where = f"{self._run_id}/{attempt.key.node_id}"
                self._bodies.on_abandoned(f"the thread of {where} does not stop")
            raise
        if isinstance(result, _Raised):
            raise result.error
        return result

    def _end(self, attempt: "_Attempt", end: Happening) -> None:
        if self._under_way.get(attempt.key) is attempt:
            del self._under_way[attempt.key]
        if not attempt.is_reported:
            attempt.is_reported = True
            self._report(end)

    def _time_out(self, attempt: "_Attempt", timeout_s: float) -> None:
        if attempt.stopped_by is None:
            problem = Problem("TimeoutError", f"took longer than {timeout_s:g} s", "TASK_TIMEOUT")
            self._stop(attempt, Failed(attempt.key, attempt.number, problem))

    def _stop(self, attempt: "_Attempt", end: Happening) -> None:
        """Cancel a body; a second later its attempt has ended so, whether the body heard or not."""
        attempt.stopped_by = end
        attempt.current.cancelled.set()
        attempt.runner.cancel()
        self._loop.call_later(2 * STOP_GRACE_S, self._give_up, attempt, end)

    def _give_up(self, attempt: "_Attempt", end: Happening) -> None:
        """Stop waiting for a body that swallows its cancellation."""
        if not attempt.is_reported:
            self._bodies.on_abandoned(
                f"a body of {self._run_id}/{attempt.key.node_id} does not stop"
            )
            self._end(attempt, end)

    def _print(self, attempt: "_Attempt", text: str, stream: str) -> None:
        self._report_soon(attempt, Printed(attempt.key, attempt.number, text, stream))

    def _beat(self, attempt: "_Attempt", data: Any) -> None:
        text = to_json(data)
        if len(text) > MAX_HEARTBEAT_BYTES:
            raise InvalidOutput(f"a heartbeat's data has at most {MAX_HEARTBEAT_BYTES} bytes")
        now = time.monotonic()
        if now - attempt.beaten_at >= HEARTBEAT_EVERY_S:
            attempt.beaten_at = now
            self._report_soon(attempt, Beaten(attempt.key, attempt.number, text.decode()))

    def _report_soon(self, attempt: "_Attempt", happening: Happening) -> None:
        def report() -> None:
            if not attempt.is_reported:
                self._report(happening)

        if threading.get_ident() == attempt.loop_thread:
            report()
        else:
            self._loop.call_soon_threadsafe(report)


class _Attempt:
    """One attempt under way."""

    def __init__(self, key: NodeKey, number: int, task: Task[Any], needs: dict[str, Any]) -> None:
        self.key = key
        self.number = number
        self.task = task
        self.needs = needs
        self.stopped_by: Happening | None = None  # how it ends once it has been told to stop
        self.is_reported = False
        self.beaten_at = float("-inf")
        self.loop_thread = threading.get_ident()
        self.current: CurrentTask
        self.runner: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a body raised in its thread; carried as a value, since a future refuses a StopIteration."""

    error: BaseException


def _call_safely(variables: Variables, body: Callable[[], Any]) -> Any:
    try:
        return variables.run(body)
    except BaseException as error:  # noqa: BLE001 - handed to the loop, which judges it
        return _Raised(error)


def _is_async(do: Any) -> bool:
    while isinstance(do, partial):
        do = do.func
    return inspect.iscoroutinefunction(do) or inspect.iscoroutinefunction(type(do).__call__)


def _returned_model(do: Any) -> Any:
    """Return what a body is annotated to return, where pydantic can check it."""
    while isinstance(do, partial):
        do = do.func
    annotation = getattr(do, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        try:
            annotation = inspect.get_annotations(do, eval_str=True).get("return")
        except Exception:  # noqa: BLE001 - an annotation that names what is not there says nothing
            return None
    if annotation is None or find_adapter(annotation) is None:
        return None
    return annotation


def _encode(key: NodeKey, number: int, value: Any, model: Any) -> Happening:
    try:
        return Finished(key, number, encode_output(value, model))
    except InvalidOutput as error:
        problem = Problem("InvalidOutput", str(error), error.code, error.details)
        return Failed(key, number, problem)


def _failed(attempt: _Attempt, error: BaseException) -> Failed:
    text = str(error)[:MAX_ERROR_CHARS] or type(error).__name__
    text = text.encode("utf-8", "replace").decode().replace("\x00", "")
    problem = Problem(type(error).__name__, text, traceback=author_traceback(error))
    return Failed(attempt.key, attempt.number, problem)
