"""Perform attempts: call bodies in tasks and threads, limit their time, stop them, and report how each ended.

Guarantees that every attempt that began is reported once: finished, failed or aborted. A body that cannot be stopped (a
thread that does not look at `cancelled`, a coroutine that swallows its cancellation) is abandoned after two seconds: its run
goes on without it, and the child is replaced when its other runs are done.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from smithers.agents.answers import answer
from smithers.current import CURRENT
from smithers.engine.facts import NodeKey, Problem
from smithers.engine.reports import HEARTBEAT_TIMEOUT
from smithers.engine.turn import CachedOutput, Start
from smithers.ids import NodeId, RunId
from smithers.outputs import is_plain, is_quick
from smithers.store.tool_calls import CallPlace, ToolCallRow
from smithers.telemetry.spans import Span
from smithers.telemetry.tracing import RunTrace
from smithers.tools.toolbox import TOOLBOX
from smithers.tree import Task
from worker.attempt import Attempt
from worker.bodies import Bodies
from worker.caching import Caching, fit_found
from worker.ends import end_raised, end_returned, outcome_of
from worker.forks import Steps
from worker.functions import is_async, model_of
from worker.happenings import (
    Aborted,
    Failed,
    Finished,
    Happening,
)
from worker.loop_thread import LoopThread
from worker.loops import RUNNER
from worker.needs import Need, are_plain, read_needs
from worker.prints import PRINTS
from worker.threads import STOP_GRACE_S
from worker.toolboxes import AttemptToolbox

CENTURY_S: Final = 3.2e9  # the database has no time that is any number of seconds from now
GIVE_UP_S: Final = 2 * STOP_GRACE_S

Result = TypeVar("Result")


class PastCalls(NamedTuple):
    """Reads the calls of a node's attempts so far, and the output of one that was omitted."""

    list_all: Callable[[NodeId, int], Awaitable[list[ToolCallRow]]]
    find_output: Callable[[NodeId, int, CallPlace], Awaitable[str | None]]


class Attempts:
    """The running attempts of one run."""

    def __init__(
        self,
        run_id: RunId,
        bodies: Bodies,
        report: Callable[[Happening], None],
        past_calls: PastCalls,
        caching: Caching,
        trace: RunTrace | None,
    ) -> None:
        """`report` is called in the loop's thread only; `trace`: None if traces are off."""
        self._run_id = run_id
        self._bodies = bodies
        self._report = report
        self._past_calls = past_calls
        self._caching = caching
        self._trace = trace
        self._loop_thread = LoopThread()
        self._loop = self._loop_thread.loop
        self._under_way: dict[NodeKey, Attempt] = {}

    def start(
        self,
        start: Start,
        *,
        needs: Mapping[str, Need],
        last_heartbeat: str | None,
        is_budget_spent: Callable[[int], bool],
    ) -> None:
        """Begin an attempt. A plain value whose encoding runs none of the author's code finishes before this returns.

        `is_budget_spent` is called before each question to a model, with the attempt's working time in ms since it was
        last counted.
        """
        trace, task = self._trace, start.leaf.element
        span = None if trace is None else trace.begin_attempt(*start.leaf.key, start.attempt)
        assert isinstance(task, Task)
        is_value = task.ask is None and not callable(task.do)
        if is_value and is_quick(task.do, task.output):
            end = end_returned(start.leaf.key, start.attempt, task.do, task.output)
            self._end_span(span, end)
            self._report(end)
            return
        attempt = Attempt(
            self._run_id,
            start,
            needs=needs,
            last_heartbeat=last_heartbeat,
            is_budget_spent=is_budget_spent,
            bodies=self._bodies,
            loop_thread=self._loop_thread,
            report=self._report,
            stop=self._stop,
            lay_out_tools=self._lay_out_tools,
        )
        attempt.span = span
        self._under_way[attempt.key] = attempt
        attempt.runner = self._loop.create_task(self._perform(attempt))
        attempt.runner.add_done_callback(partial(self._hear_end, attempt))
        # Here and not in the runner: a cancelled timer may stay in the loop until its time, and so does its context.
        self._limit(attempt)

    def abort(self, key: NodeKey, reason: str) -> None:
        """Stop an attempt; its end is reported like any other."""
        attempt = self._under_way.get(key)
        if attempt is not None:
            self._stop(attempt, Aborted(key, attempt.number, reason))

    @property
    def count(self) -> int:
        """The number of running attempts."""
        return len(self._under_way)

    async def drop(self) -> None:
        """Stop everything without a report: the run is no longer ours."""
        attempts = list(self._under_way.values())
        self._under_way.clear()
        for attempt in attempts:
            attempt.is_reported = True
            attempt.cancel()
        if attempts:
            ending = [one for each in attempts for one in (each.runner, *each.started.endings)]
            _, stuck = await asyncio.wait(ending, timeout=GIVE_UP_S)
            for one in stuck:
                self._bodies.on_abandoned(f"an attempt of run {self._run_id} does not stop: {one}")

    def _end_span(self, span: Span | None, end: Happening) -> None:
        if self._trace is not None and span is not None:
            self._trace.end_attempt(span, *outcome_of(end))

    async def _perform(self, attempt: Attempt) -> None:
        with self._bodies.attempt():
            RUNNER.set(attempt.runner)
            CURRENT.set(attempt.current)
            PRINTS.set(attempt.print)
            TOOLBOX.set(attempt.open_toolbox)
            attempt.started.note_here()
            if self._trace is not None and attempt.span is not None:
                self._trace.make_current(attempt.span)
            end: Happening
            try:
                if attempt.number > 1:
                    attempt.previous_calls = tuple(await self._past_calls.list_all(*attempt.key))
                end = await self._produce(attempt)
            except BaseException as error:  # noqa: BLE001 - an author's sys.exit() ends an attempt, not this process
                self._bodies.hear_error(error)
                # A cancellation is swallowed only here, at the end of the cancelled task.
                is_cancelled = isinstance(error, asyncio.CancelledError)
                stopped_by = attempt.stopped_by if is_cancelled else None
                end = stopped_by or end_raised(attempt.key, attempt.number, error)
            finally:
                PRINTS.set(None)
                attempt.lift_limits()
            try:  # noqa: SIM105 - after each attempt: `suppress` is three calls more
                await attempt.close()
            except asyncio.CancelledError:
                pass  # stopped while its last tools ended: it has ended anyway
            if attempt.prints is not None:
                attempt.prints.flush()
            self._end(attempt, end)
            RUNNER.set(None)  # the task references its variables: see Attempt.let_go

    def _lay_out_tools(self, attempt: Attempt) -> AttemptToolbox:
        """Make an attempt's toolbox."""
        find_output = partial(self._past_calls.find_output, *attempt.key)
        return AttemptToolbox(
            self._bodies.workshop, attempt, attempt.previous_calls, find_output, self._loop_thread
        )

    async def _produce(self, attempt: Attempt) -> Happening:
        """Return the output of an earlier execution, or call the body.

        A model that may run the author's code parses and encodes in a thread, within the attempt's time.
        """
        task, cache = attempt.task, attempt.task.cache
        read = partial(read_needs, attempt.needs)
        needs = read() if are_plain(attempt.needs) else await self._call_in_thread(attempt, read)
        model = model_of(task)
        cache_key = None
        if cache is not None:
            cache_key = self._caching.key_of(task, cache, needs)
            found = await self._caching.find_cached(cache_key, cache.ttl_s)
            if found is not None:
                fit = partial(fit_found, found, model)
                output = fit() if is_plain(model) else await self._call_in_thread(attempt, fit)
                if output is not None:
                    return Finished(attempt.key, attempt.number, output)
        value = await Steps(self._call(attempt, needs))
        if attempt.toolbox is not None:
            attempt.toolbox.check_all_made()
        say = partial(end_returned, attempt.key, attempt.number, value, model)
        end = say() if is_quick(value, model) else await self._call_in_thread(attempt, say)
        if cache is None or cache_key is None or not isinstance(end, Finished):
            return end
        ttl_ms = None if cache.ttl_s is None else round(min(cache.ttl_s, CENTURY_S) * 1000)
        return end._replace(cached=CachedOutput(attempt.key, cache_key, end.output, ttl_ms))

    async def _call(self, attempt: Attempt, needs: Mapping[str, Any]) -> Any:
        ask = attempt.task.ask
        do = attempt.task.do if ask is None else ask.prompt
        if not callable(do):
            value = do
        elif is_async(do):
            value = await do(**needs)
        else:
            value = await self._call_in_thread(attempt, partial(do, **needs))
            if inspect.isawaitable(value):
                value = await value
        return value if ask is None else await answer(ask, value, attempt.task.output)

    async def _call_in_thread(self, attempt: Attempt, body: Callable[[], Result]) -> Result:
        return await self._bodies.call_in_thread(
            body,
            where=attempt.where,
            on_cancel=attempt.current.cancelled.set,
        )

    def _end(self, attempt: Attempt, end: Happening) -> None:
        if self._under_way.get(attempt.key) is attempt:
            del self._under_way[attempt.key]
        if not attempt.is_reported:
            if attempt.heartbeats is not None:
                attempt.heartbeats.flush()
            attempt.is_reported = True
            self._end_span(attempt.span, end)
            self._report(end)

    def _hear_end(self, attempt: Attempt, runner: asyncio.Task[None]) -> None:
        """Report an attempt that could not itself: stopped before its first step, or with an uninspectable exception."""
        if runner.cancelled():
            if attempt.stopped_by is not None:
                self._end(attempt, attempt.stopped_by)
        elif not attempt.is_reported:
            name = type(runner.exception()).__name__
            problem = Problem(
                name, "the attempt failed with an exception that could not be inspected"
            )
            self._end(attempt, Failed(attempt.key, attempt.number, problem))
        attempt.let_go()

    def _limit(self, attempt: Attempt) -> None:
        """Limit how long a body may take, and how long it may be silent."""
        timeout_s = attempt.task.timeout_s
        if timeout_s is not None:
            attempt.deadline = self._loop.call_later(timeout_s, self._time_out, attempt, timeout_s)
        if attempt.task.heartbeat_timeout_s is not None:
            self._listen(attempt, attempt.task.heartbeat_timeout_s)

    def _time_out(self, attempt: Attempt, timeout_s: float) -> None:
        problem = Problem("TimeoutError", f"took longer than {timeout_s:g} s", "TASK_TIMEOUT")
        self._stop(attempt, Failed(attempt.key, attempt.number, problem))

    def _listen(self, attempt: Attempt, timeout_s: float) -> None:
        """Stop a body that sends no heartbeat for too long; check again when that time would be over."""
        left_s = timeout_s - attempt.open_heartbeats().silent_s
        if left_s > 0:
            attempt.listening = self._loop.call_later(left_s, self._listen, attempt, timeout_s)
            return
        text = f"no heartbeat for {timeout_s:g} s"
        problem = Problem("HeartbeatTimeout", text, HEARTBEAT_TIMEOUT)
        self._stop(attempt, Failed(attempt.key, attempt.number, problem))

    def _stop(self, attempt: Attempt, end: Happening) -> None:
        """Cancel a body; two seconds later its attempt ends, whether the body has reacted or not."""
        if attempt.stopped_by is not None or attempt.is_reported:
            return
        attempt.stopped_by = end
        attempt.cancel()
        self._loop.call_later(GIVE_UP_S, self._give_up, attempt, end)

    def _give_up(self, attempt: Attempt, end: Happening) -> None:
        """Stop waiting for a body that swallows its cancellation."""
        if not attempt.is_reported:
            self._bodies.on_abandoned(f"a body of {attempt.where} does not stop")
            self._end(attempt, end)
