"""Hints about what was committed without one, a moment later: fast runs' commits, of which only some carry a hint.

An owner does not wait for them: it may be in a slow commit by then, or have released the run.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final, Self

from smithers.errors import StoreError
from smithers.ids import RunId
from smithers.service_loops import ServiceLoops

LATE_S: Final = 0.005  # from a commit without a hint to one about it, unless another tells first
RETRY_S: Final = 0.2  # while the database is away
LAST_S: Final = 1.0  # for what is left at the end
TICK_S: Final = 0.001  # of uvloop's clock

Tell = Callable[[Collection[RunId]], Awaitable[None]]


class Untold:
    """A child's runs with events that nobody was told of yet."""

    def __init__(self, tell: Tell) -> None:
        """`tell` sends one hint about these runs; raises StoreError."""
        self._tell = tell
        self._due: dict[RunId, float] = {}  # by the loop's clock
        self._has_come = asyncio.Event()
        self._loops = ServiceLoops()
        self._now = asyncio.get_running_loop().time

    async def __aenter__(self) -> Self:
        self._loops.start(self._run, name="untold")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._loops.stop()
        if self._due:
            with suppress(StoreError, TimeoutError):  # only hints: polling finds the events, too
                async with asyncio.timeout(LAST_S):
                    await self._tell(self._due)

    def add(self, run_id: RunId) -> None:
        """Note that a run's events were committed without a hint."""
        if run_id not in self._due:
            self._due[run_id] = self._now() + LATE_S
            self._has_come.set()

    def discard(self, run_id: RunId) -> None:
        """Note that a run was told of: a hint is about everything before it."""
        self._due.pop(run_id, None)

    async def _run(self) -> None:
        while True:
            await self._has_come.wait()
            while self._due:
                await asyncio.sleep(min(self._due.values()) - self._now())
                await self._tell_due()
            self._has_come.clear()

    async def _tell_due(self) -> None:
        until = self._now() + TICK_S
        late = [run_id for run_id, due_at in self._due.items() if due_at < until]
        for run_id in late:
            del self._due[run_id]
        if not late:  # told of meanwhile
            return
        try:
            await self._tell(late)
        except (StoreError, asyncio.CancelledError) as error:
            for run_id in late:
                self._due.setdefault(run_id, self._now() + RETRY_S)
            if isinstance(error, asyncio.CancelledError):
                raise
