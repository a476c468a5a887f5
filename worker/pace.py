"""Which of a run's commits carry a hint: of a fast run not every one.

A hint wakes a process of Postgres for each listener, every gateway and every pool, and lets the gateways with viewers
read. A run with a thousand short nodes a second, told of after each, waited for processors that these used.
"""

import time
from collections.abc import Callable
from math import inf
from typing import Final

PAUSE_S: Final = 0.005  # between the hints of a fast run
FAST_S: Final = 0.0025  # from one commit to the next: the next one will be as soon


class Pace:
    """The commits of one run by one owner."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: a clock, in seconds."""
        self._now = now
        self._told_at = self._committed_at = -inf

    def may_tell(self) -> bool:
        """Say whether the commit that begins now is to carry a hint."""
        now = self._now()
        return now >= min(self._told_at + PAUSE_S, self._committed_at + FAST_S)

    def commit(self, *, is_told: bool) -> None:
        """Note a commit that has just ended."""
        self._committed_at = self._now()
        if is_told:
            self._told_at = self._committed_at
