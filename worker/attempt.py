"""One running attempt: its identity, its resources until it ends, and its body's reports."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from smithers.current import CurrentTask
from smithers.engine.turn import Start, TokenUsage, ToolCall
from smithers.ids import RunId
from smithers.outputs import decode_output
from smithers.store.tool_calls import ToolCallRow
from smithers.telemetry.spans import Span
from smithers.tree import Task
from worker.bodies import Bodies
from worker.happenings import Beaten, Called, Happening, Parked, Printed, Used
from worker.heartbeats import Heartbeats
from worker.loop_thread import LoopThread
from worker.needs import Need
from worker.prints import Prints
from worker.started import Started
from worker.toolboxes import AttemptToolbox

MODEL_STREAM: Final = "stdout"  # the API has two streams; a model's text is in either reader's view


class Attempt:
    """One running attempt, and the desk of its tools (worker.toolboxes.Desk).

    A body's reports may come from any thread; they are passed on in the loop's, and only until the attempt has ended.
    """

    runner: asyncio.Task[None]
    span: Span | None = None  # if traces are on
    deadline: asyncio.TimerHandle | None = None
    listening: asyncio.TimerHandle | None = None
    stopped_by: Happening | None = None  # how it ends after a stop
    is_reported = False
    previous_calls: tuple[ToolCallRow, ...] = ()  # of earlier attempts
    # Each is made when the body first uses it: most bodies never do.
    toolbox: AttemptToolbox | None = None
    prints: Prints | None = None
    heartbeats: Heartbeats | None = None
    _has_closed_tools = False  # no further call is made

    def __init__(
        self,
        run_id: RunId,
        start: Start,
        *,
        needs: Mapping[str, Need],
        last_heartbeat: str | None,
        is_budget_spent: Callable[[int], bool],
        bodies: Bodies,
        loop_thread: LoopThread,
        report: Callable[[Happening], None],
        stop: Callable[["Attempt", Happening], None],
        lay_out_tools: Callable[["Attempt"], AttemptToolbox],
    ) -> None:
        """`last_heartbeat`: JSON text. `stop` makes an attempt end in this way; `lay_out_tools` makes its toolbox."""
        task = start.leaf.element
        assert isinstance(task, Task)
        self.key = start.leaf.key
        self.number = start.attempt
        self.task = task
        self.needs = needs
        self.started = Started(self.on_stuck)
        self.current = CurrentTask(
            run_id=run_id,
            node_id=self.key.node_id,
            iteration=self.key.iteration,
            attempt=self.number,
            root_dir=bodies.root_dir,
            last_heartbeat=None if last_heartbeat is None else decode_output(last_heartbeat),
            _send_heartbeat=self._beat,
        )
        self._run_id = run_id
        self._is_budget_spent = is_budget_spent
        self._report = report
        self._stop = stop
        self._lay_out_tools = lay_out_tools
        self._on_abandoned = bodies.on_abandoned
        self._counted_at = time.monotonic()  # when its time was last counted against a budget
        self._loop_thread = loop_thread
        self._opening = threading.RLock()  # a finalizer may run meanwhile, and print

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self._run_id}/{self.key.node_id}"

    def open_toolbox(self) -> AttemptToolbox:
        """Return its toolbox, from any thread."""
        with self._opening:
            if self.toolbox is None:
                self.toolbox = self._lay_out_tools(self)
                # Asked last: an end that finds no toolbox is seen here.
                if self._has_closed_tools:
                    self.toolbox.stop()
            return self.toolbox

    def open_heartbeats(self) -> Heartbeats:
        """Return its heartbeats, from any thread."""
        with self._opening:
            if self.heartbeats is None:
                self.heartbeats = Heartbeats(self._tell_beat, self._loop_thread)
            return self.heartbeats

    def print(self, text: str, stream: str) -> None:
        """Take what the body prints, from any thread."""
        with self._opening:
            prints = self.prints = self.prints or Prints(self._tell_printed)
        prints.write(text, stream)

    def speak(self, text: str) -> None:
        """Record a model's text."""
        self._tell_printed(text, MODEL_STREAM)

    def take_call(self, call: ToolCall, kept: asyncio.Future[None] | None) -> None:
        """Record a tool call's newest state; `kept` is completed when that is committed."""
        self._tell(Called(self.key, self.number, call, kept))

    def report_usage(self, usage: TokenUsage) -> None:
        """Record a model's usage."""
        self._tell(Used(self.key, self.number, usage, self._lap_ms()))
        self._counted_at = time.monotonic()

    def may_ask(self) -> bool:
        """Say whether the run's budget has room for a question; otherwise stop the attempt soon."""
        took_ms = self._lap_ms()
        if not self._is_budget_spent(took_ms):
            return True
        end = Parked(self.key, self.number, took_ms)
        self._loop_thread.loop.call_soon(
            self._stop, self, end
        )  # not the task that asks: the whole attempt
        return False

    def on_stuck(self) -> None:
        """Handle a tool, or a call in a thread, that does not stop."""
        self._on_abandoned(f"what {self.where} has called does not stop")

    def lift_limits(self) -> None:
        """Cancel its time limits; pending timers would keep it in memory."""
        for timer in (self.deadline, self.listening):
            if timer is not None:
                timer.cancel()

    def cancel(self) -> None:
        """Stop the body, its tools, its processes and everything that waits for them."""
        self.lift_limits()
        self.current.cancelled.set()
        self._has_closed_tools = True
        if self.toolbox is not None:
            self.toolbox.stop()
        self.runner.cancel()
        self.started.stop()

    async def close(self) -> None:
        """Return when nothing of it is left; an unstopped body's leftovers are its author's responsibility."""
        self._has_closed_tools = True
        if self.toolbox is not None:
            await self.toolbox.close()
        await self.started.close()

    def let_go(self) -> None:
        """Break reference cycles, so that a finished attempt is freed at once and not by the garbage collector."""
        del self.runner, self.current, self.started
        self.toolbox = self.prints = self.heartbeats = None

    def _beat(self, data: Any) -> None:
        self.open_heartbeats().beat(data)

    def _tell_beat(self, data: str) -> None:
        self._tell(Beaten(self.key, self.number, data))

    def _tell_printed(self, text: str, stream: str) -> None:
        self._tell(Printed(self.key, self.number, text, stream))

    def _tell(self, happening: Happening) -> None:
        self._loop_thread.call(self._tell_here, happening)

    def _tell_here(self, happening: Happening) -> None:
        if not self.is_reported:
            self._report(happening)

    def _lap_ms(self) -> int:
        """Return its working time since that was last counted."""
        return round((time.monotonic() - self._counted_at) * 1000)
