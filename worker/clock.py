"""The database's time, as well as a child can know it between two answers of the database."""

import time
from collections.abc import Callable


class DatabaseClock:
    """Goes on from the last time that the database said, by this process's own steady clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._said_ms = 0
        self._heard_at = monotonic()

    def hear(self, now_ms: int) -> None:
        """Take in what the database said."""
        self._said_ms = now_ms
        self._heard_at = self._monotonic()

    def now_ms(self) -> int:
        """Return the database's time, in milliseconds since 1970."""
        return self._said_ms + int((self._monotonic() - self._heard_at) * 1000)
