"""Wait for what another process does: it has no event to wait for, and is looked at, again and again."""

import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 60.0

Found = TypeVar("Found")


def until(condition: Callable[[], Found | None], what: str, limit_s: float = LIMIT_S) -> Found:
    """Wait for a condition to be true, and return what it gave."""
    ends = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < ends, f"never: {what}"
        time.sleep(0.02)
    return found
