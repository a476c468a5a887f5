"""Which of a run's commits carry a hint: of a fast run not every one.

A hint wakes a process of Postgres for each listener, every gateway and every pool, and lets the gateways with viewers
read. A run with a thousand short nodes a second that was told of after each had to wait for the processors that these used.
Whether a run is fast shows at its second commit; at the first one it is taken to be, as if the claim had been a commit.
"""

import time
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 0.005  # between the hints of a fast run
FAST_S: Final = 0.0025  # from the beginning of one commit to that of the next: the one after it will come as soon


class Pace:
    """The commits of one run by one owner."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Begin with the claim; `now`: a clock, in seconds."""
        self._now = now
        self._began_at = self._told_at = now()

    def may_tell(self) -> bool:
        """Say whether the commit that begins now is to carry a hint; call it for each that does not end or park the run."""
        now = self._now()
        is_fast = now < self._began_at + FAST_S
        self._began_at = now
        if is_fast and now < self._told_at + PAUSE_S:
            return False
        self._told_at = now
        return True
