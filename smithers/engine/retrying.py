"""How long a failed task waits before its next attempt."""

import hashlib

from smithers.durations import seconds
from smithers.tree import Retry


def backoff_ms(retry: Retry, failures: int, seed: str) -> int:
    """Return the pause after the so-manieth failure (from 1), in milliseconds.

    Exponential, bounded, with "equal jitter" (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015): between half of it and all of it. The jitter comes from `seed`, so the same failure waits the same everywhere.
    """
    pause_s = min(
        seconds(retry.initial) * retry.factor ** min(failures - 1, 60), seconds(retry.maximum)
    )
    if retry.jitter:
        noise = int.from_bytes(
            hashlib.blake2b(f"{seed}/{failures}".encode(), digest_size=4).digest()
        )
        pause_s *= 0.5 + noise / 2**33
    return round(pause_s * 1000)
