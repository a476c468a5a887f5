"""Say where the files of an embedded Postgres are, make its directories, take its locks.

Guaranteed: whatever is made in a directory that others can write to is checked for its owner; no
symbolic link is followed; locks are close-on-exec, so that only who is handed one inherits it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smithers.store.embedded.account import (
    ROOT_UID,
    EmbeddedPostgresError,
    ServerAccount,
    choose_account,
)

PORT: Final = 5432  # a part of the socket's name: nothing listens on TCP
SOCKET_NAME: Final = f".s.PGSQL.{PORT}"
SOCKET_PATH_LIMIT_BYTES: Final = 104  # macOS; Linux has 108
# asyncpg decodes the socket's directory in a DSN, SQLAlchemy does not: it must read the same.
PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._-]+")
# Not tempfile.gettempdir(): whatever their environments say, all processes must meet.
SHORT_DIR: Final = Path("/tmp")  # noqa: S108 - what we make in it is 0700 and checked for its owner
ROOT_STATE_DIR: Final = Path("/var/lib/smithers")  # root's home is closed to the server's account
LOG_LIMIT_BYTES: Final = 10 * 1024 * 1024
LOG_TAIL_BYTES: Final = 2000
LOOK_AGAIN_S: Final = 0.02  # a server that starts forks, and logs, for each look


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a server's files are, and whose server it is."""

    data_dir: Path
    account: ServerAccount
    socket_dir: Path

    @property
    def pgdata(self) -> Path:
        """The database itself: whole or absent."""
        return _pgdata(self.data_dir)

    @property
    def socket(self) -> Path:
        """Where the server answers."""
        return self.socket_dir / SOCKET_NAME

    @property
    def users_lock(self) -> Path:
        """Shared by the server's users."""
        return self.data_dir / "users.lock"

    @property
    def server_lock(self) -> Path:
        """Held by whatever touches the database."""
        return self.data_dir / "server.lock"

    @property
    def log(self) -> Path:
        """What the server writes to stderr."""
        return self.data_dir / "postgres.log"


def default_data_dir(root: Path, *, environ: Mapping[str, str]) -> Path:
    """Return where this root's database lies: $XDG_STATE_HOME/smithers/<hash of the resolved root>.

    Without XDG_STATE_HOME: in ~/.local/state, and for root in /var/lib. Never below the root, where
    tasks would see it: raises EmbeddedPostgresError if it would be.
    """
    resolved = root.resolve()
    parent = state_dir(environ).resolve()
    if parent.is_relative_to(resolved):
        raise EmbeddedPostgresError(
            f"The database would lie in {parent}, below the root {resolved}, where tasks can reach "
            "it. Name a directory outside with --data-dir or XDG_STATE_HOME, or a narrower root."
        )
    return parent / _hash(resolved)


def make_data_dir(data_dir: Path) -> None:
    """Make the directory and its missing parents; raises OSError.

    As root, what was made here or was given empty can be entered by the server's account: its
    contents are closed each for itself. Nothing else is ever opened.
    """
    is_root = os.geteuid() == ROOT_UID
    missing = [step for step in (data_dir, *data_dir.parents) if not step.exists()]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another opener was quicker
            directory.mkdir(mode=0o700)
            if is_root:
                directory.chmod(0o711)
    if is_root and data_dir.stat().st_uid == ROOT_UID and not any(data_dir.iterdir()):
        data_dir.chmod(0o711)


def prepare_site(data_dir: Path, *, server_user: str | None) -> Site:
    """Settle whose server it is and make the socket's directory; the door is held."""
    account = choose_account(data_dir, pgdata=_pgdata(data_dir), name=server_user)
    return Site(data_dir=data_dir, account=account, socket_dir=_make_socket_dir(data_dir, account))


def _make_socket_dir(data_dir: Path, account: ServerAccount) -> Path:
    # With the data if it fits: who sees the one then sees the other, in any container or mount,
    # and no cleaner of /tmp or end of a login session takes it away.
    directory = data_dir / "socket"
    length_bytes = len(os.fsencode(directory / SOCKET_NAME))
    if length_bytes >= SOCKET_PATH_LIMIT_BYTES or not PLAIN_PATH.fullmatch(str(directory)):
        directory = SHORT_DIR / f"smithers-{account.uid}-{_hash(data_dir)}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    # In /tmp somebody else may have been first, with a directory or a symbolic link.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {account.uid, os.geteuid()}:
        raise EmbeddedPostgresError(
            f"{directory} is not a directory of {account.name!r}, so a stranger's server may be "
            "behind it. Remove it."
        )
    directory.chmod(0o700)
    if found.st_uid != account.uid:
        os.chown(directory, account.uid, account.gid, follow_symlinks=False)
    return directory


@contextlib.contextmanager
def passing_door(data_dir: Path, *, limit_s: float) -> Iterator[None]:
    """Keep everybody else from coming or going meanwhile."""
    path = _door_lock(data_dir)
    door_fd = open_file(path)
    try:
        take_lock(door_fd, fcntl.LOCK_EX, limit_s=limit_s, path=path)
        yield
    finally:
        os.close(door_fd)


def open_file(path: Path, *, extra_flags: int = 0) -> int:
    """Open for reading and writing; a new file is 0600 and belongs to its directory's owner."""
    flags = os.O_RDWR | os.O_NOFOLLOW | extra_flags
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == ROOT_UID:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def try_lock(fd: int, kind: int) -> bool:
    """Take a lock if that is possible now; a shared one that was held is lost if it is not."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_lock(fd: int, kind: int, *, limit_s: float, path: Path) -> None:
    """Wait for a lock; raises EmbeddedPostgresError after limit_s."""
    # By looking again and again: no time limit of a blocking flock works in a thread.
    deadline_s = time.monotonic() + limit_s
    while not try_lock(fd, kind):
        if time.monotonic() > deadline_s:
            raise EmbeddedPostgresError(
                f"Other processes have held {path} for {limit_s:.0f} s: see them with lslocks."
            )
        time.sleep(LOOK_AGAIN_S)


def open_log(site: Site) -> int:
    """Open the server's log for appending; one that has grown large is put aside."""
    # At starts only: at its level Postgres writes a few lines a day.
    with contextlib.suppress(FileNotFoundError):
        if site.log.stat().st_size > LOG_LIMIT_BYTES:
            site.log.rename(site.log.with_suffix(".log.1"))
    return open_file(site.log, extra_flags=os.O_APPEND)


def read_last_words(site: Site) -> str:
    """Return the end of the server's log, for an error's text."""
    try:
        with site.log.open("rb") as log:
            log.seek(max(0, site.log.stat().st_size - LOG_TAIL_BYTES))
            return f"The end of {site.log}:\n{log.read().decode(errors='replace')}"
    except FileNotFoundError:
        return f"There is no {site.log}."


def state_dir(environ: Mapping[str, str]) -> Path:
    """Return where the state of this account's servers lies, databases and logs."""
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():  # the XDG specification ignores a relative one
        return state_home / "smithers"
    if os.geteuid() == ROOT_UID:
        return ROOT_STATE_DIR
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        raise EmbeddedPostgresError(
            "Neither XDG_STATE_HOME nor HOME says where to keep the database: set one of them, or "
            "name a directory with --data-dir."
        )
    return home / ".local" / "state" / "smithers"


def _hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def has_database(data_dir: Path) -> bool:
    """Say whether a database was ever begun in a data directory."""
    return (_pgdata(data_dir) / "PG_VERSION").exists()


def _pgdata(data_dir: Path) -> Path:
    return data_dir / "pgdata"


def _door_lock(data_dir: Path) -> Path:
    return data_dir / "door.lock"
