"""When viewers are told of a run's commits: of its first ones with each, then of several together.

A hint wakes a process of Postgres for each listener, every gateway and every pool, and lets the gateways with viewers
read. A run with a thousand short nodes a second waited for them after each: on two processors for a tenth of its time.
"""

import asyncio
from math import inf
from typing import Final

AT_ONCE: Final = 8  # a short run's commits, each told with it
PAUSE_S: Final = 0.002  # between two hints, from then on


class Pace:
    """One owner's hints about one run's events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._now = loop.time
        self._told_count = 0
        self._may_tell_at = 0.0
        # When a hint is due about what was committed without one, by the loop's clock.
        self.owed_at = inf

    def may_tell(self) -> bool:
        """Say whether the next commit is to carry a hint."""
        return self._told_count < AT_ONCE or self._now() >= self._may_tell_at

    def tell(self) -> None:
        """A hint was sent, with a commit or about earlier ones."""
        self._told_count += 1
        self._may_tell_at = self._now() + PAUSE_S
        self.owed_at = inf

    def owe(self) -> None:
        """A commit was made without a hint."""
        self.owed_at = min(self.owed_at, self._now() + PAUSE_S)
