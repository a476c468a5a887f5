"""Create the database cluster and read what Postgres keeps in it about its server.

Guaranteed: pgdata is whole or absent. Starts and stops no server; the caller holds the locks.
"""

import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Final

from smithers.store.embedded.account import EmbeddedPostgresError, ServerAccount, run_as
from smithers.store.embedded.site import PORT, SOCKET_NAME, Site

DATABASE: Final = "smithers"
SUPERUSER: Final = "postgres"
PARTIAL_PREFIX: Final = "pgdata.partial-"
# Whoever writes the first byte of a new segment of the log fills its 16 MB with zeros: 14 ms in which nobody commits. So four
# are filled here, and the checkpoint makes them the next ones. As many stay (min_wal_size); later checkpoints recycle more.
FILL_LOG_AHEAD: Final = (
    "SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal() FROM generate_series(1, 4)",
    "CHECKPOINT",
)


def create_cluster(site: Site, programs: Path, *, server_fd: int) -> None:
    """Run initdb aside and move the result into place; initdb inherits the server lock."""
    _check_passwd_entry(site.account)
    # Nobody writes to these any more: we have the server lock, so their initdb is dead.
    for left_over in site.data_dir.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=site.data_dir))
    if site.account.is_other:
        os.chown(partial, site.account.uid, site.account.gid, follow_symlinks=False)
    argv = [str(programs / "initdb"), "-D", str(partial), "-U", SUPERUSER, "--auth=trust"]
    # The built-in locale: indexes keep their order when the host's C library is upgraded.
    argv += [
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
    ]
    made = run_as(site.account, argv, pass_fds=(server_fd,))
    if made.returncode != 0:
        raise EmbeddedPostgresError(f"initdb fails in {partial}: {made.stderr.strip()}")
    try:
        partial.rename(site.pgdata)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"{site.pgdata} is there but is no database (it has no PG_VERSION): move it away."
        ) from error
    _sync_directory(site.data_dir)


def create_database(site: Site, programs: Path, *, fills_log: bool) -> None:
    """Create the database that the DSN names, and room in the server's log; the server answers."""
    argv = [str(programs / "psql"), "-h", str(site.socket_dir), "-p", str(PORT), "-U", SUPERUSER]
    argv += ["-d", "postgres", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    for statement in (f"CREATE DATABASE {DATABASE}", *(FILL_LOG_AHEAD if fills_log else ())):
        argv += ["-c", statement]
    made = run_as(site.account, argv)
    if made.returncode != 0:
        raise EmbeddedPostgresError(f"psql fails: {made.stderr.strip()}")


def read_postmaster_pid(site: Site) -> int | None:
    """Return the pid that postmaster.pid names, which may be anybody's by now."""
    return _read_pid(site.pgdata / "postmaster.pid")


def is_postmaster(pid: int, site: Site) -> bool:
    """Say whether this process serves this cluster."""
    # A server's working directory is its cluster. No pid that was given away again has it.
    try:
        return Path(f"/proc/{pid}/cwd").samefile(site.pgdata)
    except OSError:
        return False


def remove_misleading_pid_files(site: Site) -> None:
    """Remove lock files of Postgres that name a process which is no server; we hold ours."""
    # Postgres does not start while such a pid exists: somebody else's by now, or a zombie under a
    # PID 1 that does not reap. A pid that is gone it sees through.
    for path in (site.pgdata / "postmaster.pid", site.socket_dir / f"{SOCKET_NAME}.lock"):
        pid = _read_pid(path)
        if pid is not None and Path(f"/proc/{pid}").exists() and not is_postmaster(pid, site):
            path.unlink()


def _check_passwd_entry(account: ServerAccount) -> None:
    try:
        pwd.getpwuid(account.uid)
    except KeyError as error:
        raise EmbeddedPostgresError(
            f"initdb needs a passwd entry for user id {account.uid}, and there is none. Run as an "
            "account of /etc/passwd, or use a Postgres of your own (DATABASE_URL)."
        ) from error


def _read_pid(lock_file: Path) -> int | None:
    try:
        return int(lock_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
