"""Where the tests' Postgres servers keep their data: in memory where there is room, as nothing of it outlives the run.

A disk costs more than its flushes. ext4 gives the inodes of deleted files away only after some minutes, and until then looks
at each of them whenever it makes a file. A database is 300 files: making one took 15 ms of a processor at first, and 110 ms
after a hundred had been dropped.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Not below pytest's own directory: the account that runs the servers of root must reach them.
MEMORY: Final = Path("/dev/shm")
DISK: Final = Path("/tmp")
ROOM_BYTES: Final = 2 << 30  # a server begins with 45 MB, and its log grows while it is written to


def make_data_dir() -> Path:
    """Make a directory that any account can enter."""
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    made = Path(tempfile.mkdtemp(prefix="smithers-tests-", dir=MEMORY if has_room else DISK))
    made.chmod(0o755)
    return made


@contextmanager
def scratch() -> Iterator[Path]:
    """Give such a directory, and remove it with all that is in it."""
    folder = make_data_dir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
