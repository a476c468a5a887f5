"""A run's pending input: reports of its attempts, and the flag that there is news from outside."""

import asyncio
from math import inf

from worker.happenings import Happening


class Inbox:
    """One run's inbox; used in the loop's thread."""

    def __init__(self) -> None:
        self.has_news = False  # the run's rows have changed
        self._happenings: list[Happening] = []
        self._waiting: asyncio.Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing is pending."""
        return not (self._happenings or self.has_news)

    def put(self, happening: Happening) -> None:
        """Add a report of an attempt."""
        self._happenings.append(happening)
        self._wake()

    def hear_news(self) -> None:
        """Handle a hint that there is news."""
        self.has_news = True
        self._wake()

    def take(self) -> list[Happening]:
        """Return and clear the reports, in the order of their arrival."""
        happenings, self._happenings = self._happenings, []
        return happenings

    async def wait(self, until: float) -> None:
        """Wait for input while there is none; at the latest until `until` (s, the loop's clock)."""
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        if until == inf:
            await self._waiting
            return
        timer = loop.call_at(until, self._wake)  # a time-out would cancel this task, and catch that
        try:
            await self._waiting
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
