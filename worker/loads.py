"""How many runs each child of a pool holds, in shared memory: the child with the fewest claims the next due run.

If every child queried the database when a run is due, one would get it, and the others would waste CPU time
just when the run needs it.
"""

import mmap
import os
import time
from dataclasses import dataclass
from typing import Any, Final, Self

GONE: Final = -1
APART: Final = -2  # instead of a count: the child holds runs that it does not share with the others
ENDED: Final = float("inf")  # instead of a heartbeat
_BEAT_BYTES: Final = 8
_SLOT_BYTES: Final = _BEAT_BYTES + 4  # and a count
FRESH_S: Final = 1.0  # a child silent for so long is blocked or dead, and does not count


@dataclass(frozen=True, slots=True)
class Loads:
    """Two numbers for each slot of a pool; the arrays are shared."""

    counts: Any
    beats: Any

    @classmethod
    def within(cls, fd: int) -> Self:
        """Use the memory of make_loads, in any process that has its descriptor."""
        memory = memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
        beats_end = len(memory) // _SLOT_BYTES * _BEAT_BYTES
        return cls(memory[beats_end:].cast("i"), memory[:beats_end].cast("d"))

    def tell(self, slot: int, count: int) -> None:
        """Record how many runs a child holds; GONE: it claims no more."""
        self.counts[slot] = count

    def beat(self, slot: int) -> None:
        """Record a heartbeat of a child's event loop."""
        self.beats[slot] = time.monotonic()

    def say_ended(self, slot: int) -> None:
        """Record that a child ends as planned."""
        self.beats[slot] = ENDED

    def find_next(self) -> int | None:
        """Return the slot of the living, claiming child with the fewest runs; of equals the first."""
        now = time.monotonic()
        return min(
            (
                slot
                for slot, count in enumerate(self.counts)
                if count >= 0 and now - self.beats[slot] <= FRESH_S
            ),
            key=lambda slot: (self.counts[slot], slot),
            default=None,
        )

    def is_next(self, slot: int) -> bool:
        """Say, in a claiming child, whether it is its turn."""
        return self.find_next() in (slot, None)

    def is_compared(self, slot: int) -> bool:
        """Say whether a child competes with the others: it shares runs, and is not ending."""
        return bool(self.counts[slot] >= 0)

    def has_claimed(self, slot: int) -> bool:
        """Say whether a child that does not compete has claimed a run."""
        return bool(self.counts[slot] == APART)

    def is_idle(self, slot: int) -> bool:
        """Say whether a child holds no run; unknown for a child that does not compete."""
        return bool(self.counts[slot] == 0)

    def has_heard(self, slot: int, told_at: float) -> bool:
        """Say whether a claiming child was alive after this time.monotonic()."""
        return bool(self.beats[slot] >= told_at) and self.is_compared(slot)


def make_loads(slot_count: int) -> int:
    """Return the descriptor of memory for so many slots, each without a child."""
    fd = os.memfd_create("smithers-loads")
    os.ftruncate(fd, slot_count * _SLOT_BYTES)
    loads = Loads.within(fd)
    for slot in range(slot_count):
        loads.tell(slot, GONE)
    return fd
