"""An estimate of the database's time between two of its answers."""

import time
from collections.abc import Callable


class DatabaseClock:
    """The last time that the database reported, advanced by this process's monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._said_ms = 0
        self._heard_at = monotonic()

    def hear(self, now_ms: int) -> None:
        """Record a time that the database reported."""
        self._said_ms = now_ms
        self._heard_at = self._monotonic()

    def now_ms(self) -> int:
        """Return the database's time, in milliseconds since 1970."""
        return self._said_ms + int((self._monotonic() - self._heard_at) * 1000)
