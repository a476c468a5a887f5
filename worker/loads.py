"""How many runs each child of a pool holds, in memory that they share: who holds the fewest goes for what has become due.

A hint that something is due reaches every child. Were they all to ask the database, one would get the run and the others
would have asked for nothing, at the very moment when the run needs the processor.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

GONE: Final = -1
ENDED: Final = float("inf")  # in place of a beat
FRESH_S: Final = 1.0  # who has not beaten for so long is blocked, or dead, and does not count


@dataclass(frozen=True, slots=True)
class Loads:
    """One number for each slot of a pool; the arrays are shared."""

    counts: Any
    beats: Any

    def tell(self, slot: int, count: int) -> None:
        """Say how many runs a child holds; GONE: it claims no more."""
        self.counts[slot] = count

    def bid_farewell(self, slot: int) -> None:
        """Say that a child ends because it is done."""
        self.beats[slot] = ENDED

    def is_next(self, slot: int) -> bool:
        """Say whether no other child that claims holds fewer; of equals it is the first one's turn."""
        own, now = (self.counts[slot], slot), time.monotonic()
        return all(
            count == GONE or now - self.beats[other] > FRESH_S or (count, other) >= own
            for other, count in enumerate(self.counts)
        )
