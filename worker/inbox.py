"""What has come to a run since it was last looked at: what its attempts report, and that there is news from outside."""

import asyncio
from contextlib import suppress

from worker.happenings import Happening


class Inbox:
    """One run's; used in the loop's thread."""

    def __init__(self) -> None:
        self.has_news = False  # something has come to the run's rows
        self._happenings: list[Happening] = []
        self._arrived = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Nothing has come."""
        return not (self._happenings or self.has_news)

    def put(self, happening: Happening) -> None:
        """Take what an attempt reports."""
        self._happenings.append(happening)
        self._arrived.set()

    def hear_news(self) -> None:
        """Take a hint that there is news."""
        self.has_news = True
        self._arrived.set()

    def take(self) -> list[Happening]:
        """Hand over what was reported, in the order in which it came."""
        happenings, self._happenings = self._happenings, []
        return happenings

    async def wait(self, until: float) -> None:
        """Return when something has come; at `until` (s, the loop's clock) at the latest."""
        if not self.is_empty:
            return
        self._arrived.clear()
        if until == float("inf"):
            await self._arrived.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._arrived.wait()
