"""A Postgres for who wants to keep nothing: on a directory that is removed when its opener closes it.

An opener that is killed cannot remove it. The server ends by itself then, as any without users does, and the next opener
removes what was left.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final

from smithers.store.embedded.postgres import EmbeddedPostgres, open_embedded_postgres
from smithers.store.embedded.site import open_file, try_lock

PREFIX: Final = "smithers-temporary-"
LOCKS: Final = ("door.lock", "users.lock", "server.lock")  # in the order in which openers take them
# Nothing has to outlive a crash of the host.
SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
)


class TemporaryPostgres:
    """This process's share of a server whose data go with it."""

    def __init__(self, share: EmbeddedPostgres) -> None:
        self.dsn = share.dsn
        self.data_dir = share.data_dir
        self._share = share

    def close(self) -> None:
        """Give the share up, and remove the data; blocks for as long as the server takes to end. Idempotent."""
        try:
            self._share.close()
        finally:
            shutil.rmtree(self.data_dir, ignore_errors=True)


def open_temporary_postgres(
    settings: Mapping[str, str] = MappingProxyType({}),
) -> TemporaryPostgres:
    """Start a server on a new directory; `settings`: more of postgresql.conf. Raises EmbeddedPostgresError."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    data_dir = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        return TemporaryPostgres(
            open_embedded_postgres(data_dir, settings={**SETTINGS, **settings})
        )
    except BaseException:
        shutil.rmtree(data_dir, ignore_errors=True)
        raise


def _remove_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{PREFIX}*"):
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            _remove_unused(directory)


def _remove_unused(directory: Path) -> None:
    """Remove a directory unless somebody holds, or is about to take, one of its locks."""
    with ExitStack() as stack:
        for name in LOCKS:
            if not (directory / name).exists():  # somebody is on the way in
                return
            lock_fd = open_file(directory / name)
            stack.callback(os.close, lock_fd)
            if not try_lock(lock_fd, fcntl.LOCK_EX):
                return
        shutil.rmtree(directory, ignore_errors=True)
