"""One attempt under way: what it is, and what it holds until it has ended."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from smithers.current import CurrentTask
from smithers.engine.facts import NodeKey
from smithers.telemetry.spans import Span
from smithers.tree import Task
from worker.happenings import Happening
from worker.heartbeats import Heartbeats
from worker.needs import Need
from worker.started import Started
from worker.toolboxes import AttemptToolbox


class Attempt:
    """One attempt under way."""

    def __init__(
        self,
        key: NodeKey,
        number: int,
        task: Task[Any],
        needs: Mapping[str, Need],
        is_budget_spent: Callable[[int], bool],
    ) -> None:
        self.key = key
        self.number = number
        self.task = task
        self.needs = needs
        self.is_budget_spent = is_budget_spent
        self.counted_at = time.monotonic()  # when its time was last counted against a budget
        self.stopped_by: Happening | None = None  # how it ends once it has been told to stop
        self.is_reported = False
        self.heartbeats: Heartbeats | None = None  # None: a plain value, which has ended already
        self.loop_thread = threading.get_ident()
        self.span: Span | None = None  # where traces are on
        self.toolbox: AttemptToolbox | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.listening: asyncio.TimerHandle | None = None
        self.current: CurrentTask
        self.started: Started
        self.runner: asyncio.Task[None]

    def lap_ms(self) -> int:
        """Say how long it has been at work since that was last counted."""
        return round((time.monotonic() - self.counted_at) * 1000)

    def lift_limits(self) -> None:
        """Bound its time no longer; the timers would hold it for as long as it might have taken."""
        for timer in (self.deadline, self.listening):
            if timer is not None:
                timer.cancel()

    def cancel(self) -> None:
        """Tell the body, its tools, its processes and whoever waits for them that it is over."""
        self.lift_limits()
        self.current.cancelled.set()
        if self.toolbox is not None:
            self.toolbox.stop()
        self.runner.cancel()
        self.started.stop()

    async def close(self) -> None:
        """Return when nothing of it is left; what a body that was not stopped leaves behind is its author's affair."""
        if self.toolbox is not None:
            await self.toolbox.close()
        await self.started.close()

    def let_go(self) -> None:
        """Hold on to nothing that holds on to it: what is over is freed at once, and is no work for the collector."""
        del self.runner, self.current
        self.toolbox = self.heartbeats = None
