"""Set Python's collector of cyclic garbage to the ways of a server.

Nearly all that a request or a turn makes is freed by its reference count. With CPython's own threshold of 700 the collector
still walks it again and again while it is in use, 64 runs at once: an eighth of a child's processor time.
"""

import gc
from typing import Final

YOUNG: Final = (
    5_000  # objects that are made, less those freed, before it looks for cycles among them
)


def settle_collector() -> None:
    """Have what is loaded walked no more, and the rest seldom. For a process of ours: a library leaves its host alone."""
    gc.freeze()
    gc.set_threshold(YOUNG)
