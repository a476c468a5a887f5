"""Log a repeated failure at once, and then at most once a minute, or at another interval."""

import time
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 60.0


class Complaint:
    """The repeated failure of one place; for one thread or one event loop."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, *, every_s: float = EVERY_S
    ) -> None:
        self._monotonic = monotonic
        self._every_s = every_s
        self._said_at = float("-inf")

    def may_be_said(self) -> bool:
        """Say whether to log the failure this time; if so, it counts as logged."""
        now = self._monotonic()
        if now - self._said_at < self._every_s:
            return False
        self._said_at = now
        return True
