"""When viewers are told of a run's commits: of a fast run's several together.

A hint wakes a process of Postgres for each listener, every gateway and every pool, and lets the gateways with viewers
read. A run with a thousand short nodes a second, told of after each, waited for processors that these used.
"""

import asyncio
from math import inf
from typing import Final

PAUSE_S: Final = 0.005  # between the hints of a fast run
FAST_S: Final = 0.0025  # from one commit to the next: the next one will be as soon


class Pace:
    """One owner's hints about one run's events; times are the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._now = loop.time
        self._told_at = self._committed_at = -inf
        self.owed_at = inf  # when a hint is due about what was committed without one

    def may_tell(self) -> bool:
        """Say whether the commit that begins now is to carry a hint."""
        now = self._now()
        return now >= min(self._told_at + PAUSE_S, self._committed_at + FAST_S)

    def tell(self) -> None:
        """Note a hint, with a commit that has just ended or about earlier ones."""
        self._told_at = self._committed_at = self._now()
        self.owed_at = inf

    def owe(self) -> None:
        """Note a commit that has just ended, without a hint."""
        self._committed_at = self._now()
        self.owed_at = min(self.owed_at, self._committed_at + PAUSE_S)
