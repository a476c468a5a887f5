"""How long a failed task waits before its next attempt."""

import hashlib
from typing import Final

from smithers.tree import Retry

# Three centuries: longer times in milliseconds do not fit the database.
LONGEST_S: Final = 1e10


def backoff_ms(retry: Retry, failures: int, seed: str) -> int:
    """Return the pause after a node's failure number `failures` (from 1), in milliseconds.

    Exponential, bounded, with "equal jitter" (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015): between half of it and all of it. The jitter comes from `seed`, so the same failure waits the same everywhere.
    """
    try:
        growth = float(retry.factor) ** (failures - 1)
    except OverflowError:
        growth = float("inf")
    pause_s = min(retry.initial_s * growth, retry.maximum_s, LONGEST_S) if retry.initial_s else 0.0
    if retry.jitter:
        noise = int.from_bytes(
            hashlib.blake2b(f"{seed}/{failures}".encode(), digest_size=4).digest()
        )
        pause_s *= 0.5 + noise / 2**33
    return round(pause_s * 1000)


def moment_after(now_ms: int, pause_s: float) -> int:
    """Return when a pause that begins now ends."""
    return now_ms + round(min(pause_s, LONGEST_S) * 1000)
