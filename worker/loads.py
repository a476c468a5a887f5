"""How many runs each child of a pool holds, in shared memory: the child with the fewest claims the next due run.

If every child asked the database when something is due, one would get the run, and the others would waste the processor
just when the run needs it.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

GONE: Final = -1
ENDED: Final = float("inf")  # in place of a beat
FRESH_S: Final = 1.0  # who has not beaten for so long is blocked, or dead, and does not count


@dataclass(frozen=True, slots=True)
class Loads:
    """Two numbers for each slot of a pool; the arrays are shared."""

    counts: Any
    beats: Any

    def tell(self, slot: int, count: int) -> None:
        """Say how many runs a child holds; GONE: it claims no more."""
        self.counts[slot] = count

    def beat(self, slot: int) -> None:
        """Say that a child's event loop is alive."""
        self.beats[slot] = time.monotonic()

    def say_ended(self, slot: int) -> None:
        """Say that a child ends because it is done."""
        self.beats[slot] = ENDED

    def find_next(self) -> int | None:
        """Return the slot of the child that holds the fewest, of those that claim and live; of equals the first."""
        now = time.monotonic()
        return min(
            (
                slot
                for slot, count in enumerate(self.counts)
                if count != GONE and now - self.beats[slot] <= FRESH_S
            ),
            key=lambda slot: (self.counts[slot], slot),
            default=None,
        )

    def is_next(self, slot: int) -> bool:
        """Say, in a child that claims, whether it is its turn."""
        return self.find_next() in (slot, None)

    def is_compared(self, slot: int) -> bool:
        """Say whether a child claims among the others: neither apart from them, nor at its end."""
        return bool(self.counts[slot] != GONE)

    def is_idle(self, slot: int) -> bool:
        """Say whether a child holds nothing; what one that is not compared holds is not known here."""
        return bool(self.counts[slot] == 0)

    def has_heard(self, slot: int, told_at: float) -> bool:
        """Say whether a child that claims was alive after it was told something, by time.monotonic()."""
        return bool(self.beats[slot] >= told_at) and self.is_compared(slot)
