"""Own the embedded Postgres: one server for each data directory, shared by the processes of a host.

Guaranteed, whoever is killed whenever: at most one server and one initdb touch a database; a joined server answers; what
Postgres acknowledged is kept (fsync and synchronous_commit stay on); a server without users ends.

Who may do what is said by kernel locks (flock), which end with their holder, so nothing has to be believed of a dead process:

    door.lock    held while somebody comes or goes: openers and leavers pass one at a time
    users.lock   shared by each user; who holds it exclusively stops the server, and comers wait until that is done
    server.lock  inherited by initdb, the keeper, the postmaster and all its children: free means that nothing of them is left

The last user to leave stops the server and waits for it, so the directory may be removed after close(). A user that is
killed cannot; that is what the keeper (keeper.py) is for, a small process that the server's parent has to be anyway: it waits for
the users lock, and also restarts a server that was killed. PR_SET_PDEATHSIG instead would tie the server to its first user,
and a pid file would lie after kill -9 (design/limits.md, section 8).

In the data directory: pgdata (the database), socket, the three locks, postgres.log. Sessions come through the unix socket
only and need no password: who may enter the socket directory (0700: the server's account, and root) owns the data.
A child made by fork shares its parent's lock and is no user of its own; a spawned one opens for itself.
Must not know: tables, DSNs of other servers, environment variables (default_data_dir is given them).
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from smithers.store.binaries import find_binaries
from smithers.store.server_account import (
    ROOT_UID,
    EmbeddedPostgresError,
    ServerAccount,
    choose_account,
    clean_environment,
    find_barrier,
    run_as,
)
from smithers.store.server_probe import Answer, ask_server

__all__ = [
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "default_data_dir",
    "open_embedded_postgres",
]

DATABASE: Final = "smithers"
SUPERUSER: Final = "postgres"
PORT: Final = 5432  # names the socket file; nothing listens on TCP
SOCKET_NAME: Final = f".s.PGSQL.{PORT}"
SOCKET_PATH_LIMIT_BYTES: Final = 104  # macOS; Linux has 108
# asyncpg decodes the socket directory in a DSN and SQLAlchemy does not, so it must read the same either way.
PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._-]+")
# Not tempfile.gettempdir(): all processes must come to the same place, whatever their environments say.
SHORT_DIR: Final = Path("/tmp")  # noqa: S108  what is made in it is 0700 and checked for its owner
ROOT_STATE_DIR: Final = Path("/var/lib/smithers")  # /root is closed to the server's account
PARTIAL_PREFIX: Final = "pgdata.partial-"
LOG_LIMIT_BYTES: Final = 10 * 1024 * 1024
LOG_TAIL_BYTES: Final = 2000
KEEPER: Final = Path(__file__).with_name("keeper.py")

LOOK_AGAIN_S: Final = 0.005
DOOR_LIMIT_S: Final = 120.0
SILENCE_LIMIT_S: Final = 60.0  # recovery may take longer, but a recovering server says so
STOP_LIMIT_S: Final = 60.0

SERVER_SETTINGS: Final = MappingProxyType(
    {
        "max_connections": "200",
        "shared_buffers": "128MB",
        "max_wal_size": "1GB",
        "fsync": "on",
        "synchronous_commit": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %a ",
    }
)
# What this module's guarantees stand on: not to be set by callers.
OWN_SETTINGS: Final = frozenset(
    {"data_directory", "listen_addresses", "port", "unix_socket_directories", "logging_collector"}
)


def default_data_dir(root: Path, *, environ: Mapping[str, str]) -> Path:
    """Return where the database of this root lies: $XDG_STATE_HOME/smithers/<hash of the resolved root>.

    Without XDG_STATE_HOME: ~/.local/state for a plain user, /var/lib for root. Never below the root, where tools and git
    would see it: raises EmbeddedPostgresError if it would be.
    """
    resolved = root.resolve()
    parent = _state_dir(environ).resolve()
    if parent.is_relative_to(resolved):
        raise EmbeddedPostgresError(
            f"The database would lie in {parent}, below the root {resolved}, where tasks could reach it. Name a "
            "directory outside with --data-dir or XDG_STATE_HOME, or serve a narrower root."
        )
    return parent / hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]


def _state_dir(environ: Mapping[str, str]) -> Path:
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():  # the XDG specification: a relative one is ignored
        return state_home / "smithers"
    if os.geteuid() == ROOT_UID:
        return ROOT_STATE_DIR
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        raise EmbeddedPostgresError(
            "Neither XDG_STATE_HOME nor HOME says where to keep the database: set one, or name a directory with "
            "--data-dir."
        )
    return home / ".local" / "state" / "smithers"


def open_embedded_postgres(
    data_dir: Path,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    bin_dir: Path | None = None,
    server_user: str | None = None,
) -> "EmbeddedPostgres":
    """Join the server of this data directory, or create the database and start one; return when it answers.

    Blocks: 0.5 s the first time, 50 ms afterwards, longer for crash recovery. `settings` are postgresql.conf's; those of
    whoever starts the server win. bin_dir: PostgreSQL 17 or newer instead of the wheel's. server_user: the existing account
    that root runs the server as. Raises EmbeddedPostgresError.
    """
    _check_settings(settings)
    site = _prepare_site(data_dir, server_user)
    with _passing_door(site):
        users_fd = _open_file(site.users_lock)
        try:
            # Held exclusively by a keeper that stops the server: wait until that is done.
            _take_lock(users_fd, fcntl.LOCK_SH, limit_s=STOP_LIMIT_S, path=site.users_lock)
            _ensure_server(site, {**SERVER_SETTINGS, **settings}, bin_dir)
        except BaseException:
            os.close(users_fd)
            raise
    return EmbeddedPostgres(site, users_fd)


class EmbeddedPostgres:
    """This process's share of a running server."""

    def __init__(self, site: "_Site", users_fd: int) -> None:
        self.data_dir = site.data_dir
        self.log_path = site.log
        self.dsn = f"postgresql://{SUPERUSER}@/{DATABASE}?host={site.socket_dir}&port={PORT}"
        self._site = site
        self._users_fd: int | None = users_fd
        self._owner_pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the share up; the last one stops the server and returns when it has ended.

        Idempotent. In a forked child it gives up nothing, for the share is the parent's. Raises EmbeddedPostgresError if
        the server takes longer than STOP_LIMIT_S; it has been told and will end.
        """
        users_fd, self._users_fd = self._users_fd, None
        if users_fd is None:
            return
        try:
            if self._owner_pid == os.getpid() and self.data_dir.exists():
                with _passing_door(self._site):
                    _leave(self._site, users_fd)
        finally:
            os.close(users_fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """Where a server's files are, and whose they are."""

    data_dir: Path
    account: ServerAccount
    socket_dir: Path

    @property
    def pgdata(self) -> Path:
        return self.data_dir / "pgdata"

    @property
    def door_lock(self) -> Path:
        return self.data_dir / "door.lock"

    @property
    def users_lock(self) -> Path:
        return self.data_dir / "users.lock"

    @property
    def server_lock(self) -> Path:
        return self.data_dir / "server.lock"

    @property
    def log(self) -> Path:
        return self.data_dir / "postgres.log"


# Coming


def _prepare_site(data_dir: Path, server_user: str | None) -> _Site:
    resolved = data_dir.resolve()
    if (resolved / "PG_VERSION").exists():
        raise EmbeddedPostgresError(
            f"{resolved} is a database itself. Name the directory that is to hold pgdata."
        )
    try:
        _make_data_dir(resolved)
        account = choose_account(resolved, database_dir=resolved / "pgdata", name=server_user)
        return _Site(
            data_dir=resolved, account=account, socket_dir=_make_socket_dir(resolved, account)
        )
    except OSError as exc:
        raise EmbeddedPostgresError(
            f"The data directory {resolved} cannot be used: {exc}. Name another with --data-dir, or run as its owner."
        ) from exc


def _make_data_dir(data_dir: Path) -> None:
    missing = [step for step in (data_dir, *data_dir.parents) if not step.exists()]
    is_root = os.geteuid() == ROOT_UID
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another opener is as quick
            directory.mkdir(mode=0o700)
            if is_root:
                directory.chmod(0o711)
    # An empty directory that root was given is ours to open for the server's account; one with contents, or a parent, is not.
    if is_root and data_dir.stat().st_uid == ROOT_UID and not any(data_dir.iterdir()):
        data_dir.chmod(0o711)


def _make_socket_dir(data_dir: Path, account: ServerAccount) -> Path:
    # Beside the data if possible: who sees the one then sees the other, in any mount or container.
    directory = data_dir / "socket"
    path = os.fsencode(directory / SOCKET_NAME)
    if len(path) >= SOCKET_PATH_LIMIT_BYTES or not PLAIN_PATH.fullmatch(str(directory)):
        key = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        directory = SHORT_DIR / f"smithers-{account.uid}-{key}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        if account.is_other:
            os.chown(directory, account.uid, account.gid, follow_symlinks=False)
    found = directory.lstat()
    # In /tmp anybody may have made it first, or a symbolic link of that name.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {account.uid, os.geteuid()}:
        raise EmbeddedPostgresError(f"{directory} is not {account.name!r}'s directory. Remove it.")
    return directory


def _ensure_server(site: _Site, settings: Mapping[str, str], bin_dir: Path | None) -> None:
    """Return when the server answers and the database is there; start what is missing. The door is held."""
    has_started = False
    deadline_s = time.monotonic() + SILENCE_LIMIT_S
    while True:
        server_fd = _open_file(site.server_lock)
        try:
            if _try_lock(server_fd, fcntl.LOCK_EX):
                if has_started:
                    raise EmbeddedPostgresError(f"Postgres does not start. {_last_words(site)}")
                _start_server(site, server_fd, settings, bin_dir)
                has_started = True
                deadline_s = time.monotonic() + SILENCE_LIMIT_S
        finally:
            os.close(server_fd)  # the server's processes have it too, and with it the lock
        match ask_server(site.socket_dir / SOCKET_NAME, user=SUPERUSER, database=DATABASE):
            case Answer.READY:
                return
            case Answer.NO_DATABASE:
                _create_database(site, bin_dir)
            case Answer.NOT_NOW:
                deadline_s = time.monotonic() + SILENCE_LIMIT_S
            case Answer.REFUSED:
                raise EmbeddedPostgresError(f"Postgres refuses us. {_last_words(site)}")
            case Answer.SILENCE if time.monotonic() > deadline_s:
                raise EmbeddedPostgresError(
                    f"Processes of a Postgres hold {site.server_lock}, but none answers in {site.socket_dir}; "
                    f"end them and try again. {_last_words(site)}"
                )
            case Answer.SILENCE:
                time.sleep(LOOK_AGAIN_S)


def _start_server(
    site: _Site, server_fd: int, settings: Mapping[str, str], bin_dir: Path | None
) -> None:
    """Start a keeper, which starts the server; both inherit the server lock, held here exclusively."""
    if site.account.is_other and (barrier := find_barrier(site.account, site.data_dir)):
        raise EmbeddedPostgresError(
            f"Postgres cannot be root's, so it runs as {site.account.name!r}, which cannot enter {barrier}. "
            f"Name a --data-dir outside of it, for example below {ROOT_STATE_DIR}."
        )
    programs = find_binaries(site.account, bin_dir=bin_dir)
    if not (site.pgdata / "PG_VERSION").exists():
        _create_cluster(site, server_fd, programs)
    _remove_misleading_pid_file(site)
    fixed = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(site.socket_dir),
    }
    command = [str(programs / "postgres"), "-D", str(site.pgdata)]
    command += [f"--{name}={value}" for name, value in {**settings, **fixed}.items()]
    account = [str(site.account.uid), str(site.account.gid)]
    keeper = [sys.executable, "-I", "-S", str(KEEPER), str(site.users_lock), *account, *command]
    log_fd = _open_log(site)
    try:
        subprocess.run(
            keeper,
            check=True,
            cwd="/",
            env=clean_environment(),
            pass_fds=(server_fd,),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise EmbeddedPostgresError(
            f"The keeper of Postgres does not start: {exc}. {_last_words(site)}"
        ) from exc
    finally:
        os.close(log_fd)


def _create_cluster(site: _Site, server_fd: int, programs: Path) -> None:
    """Run initdb aside and move the result in place: pgdata is whole or absent."""
    account = site.account
    if not account.is_other:
        _check_passwd_entry(account)
    # Nobody writes to them: initdb has the server lock, so its death came before us.
    for left_over in site.data_dir.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=site.data_dir))
    if account.is_other:
        os.chown(partial, account.uid, account.gid, follow_symlinks=False)
    # The built-in locale: an index keeps its order when the host's C library is upgraded.
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
    made = run_as(
        account,
        [str(programs / "initdb"), "-D", str(partial), "-U", SUPERUSER, "--auth=trust"]
        + [*locale, "--builtin-locale=C.UTF-8"],
        pass_fds=(server_fd,),
    )
    if made.returncode != 0:
        raise EmbeddedPostgresError(f"initdb fails: {made.stderr.strip()}")
    try:
        partial.rename(site.pgdata)
    except OSError as exc:
        raise EmbeddedPostgresError(
            f"{site.pgdata} is there but is no database (it has no PG_VERSION). Move it away."
        ) from exc
    _sync_directory(site.data_dir)


def _check_passwd_entry(account: ServerAccount) -> None:
    try:
        pwd.getpwuid(account.uid)
    except KeyError as exc:
        raise EmbeddedPostgresError(
            f"initdb needs a passwd entry for user id {account.uid}, and there is none. Run as an account of "
            "/etc/passwd (in a container: USER with a name), or use a Postgres of your own (DATABASE_URL)."
        ) from exc


def _remove_misleading_pid_file(site: _Site) -> None:
    # Postgres will not start while the pid of postmaster.pid exists, even if it has become somebody else's. A pid that is
    # gone it handles itself, and better: it looks for orphans in shared memory.
    pid = _read_postmaster_pid(site)
    if pid is None or not Path(f"/proc/{pid}").exists() or _is_postmaster(pid, site):
        return
    (site.pgdata / "postmaster.pid").unlink()


def _create_database(site: _Site, bin_dir: Path | None) -> None:
    programs = find_binaries(site.account, bin_dir=bin_dir)
    where = ["-h", str(site.socket_dir), "-p", str(PORT), "-U", SUPERUSER]
    made = run_as(
        site.account, [str(programs / "createdb"), *where, "--maintenance-db=postgres", DATABASE]
    )
    if made.returncode != 0:
        raise EmbeddedPostgresError(f"createdb fails: {made.stderr.strip()}")


# Going


def _leave(site: _Site, users_fd: int) -> None:
    """Give the share up and, as the last, stop the server. The door is held."""
    if _try_lock(users_fd, fcntl.LOCK_EX):
        _stop_server(site, users_fd)
    elif not _try_lock(users_fd, fcntl.LOCK_SH):
        # Neither: the keeper has it exclusively. Turning a shared lock into an exclusive one lets go of it for a moment,
        # and the keeper was quicker.
        _await_server_end(site)


def _stop_server(site: _Site, users_fd: int) -> None:
    pid = _read_postmaster_pid(site)
    if pid is not None and _is_postmaster(pid, site):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)  # fast: sessions are cut, a checkpoint is made
    else:
        # Between a crash and a restart, or no /proc to be sure with: its keeper does it.
        fcntl.flock(users_fd, fcntl.LOCK_UN)
    _await_server_end(site)
    with contextlib.suppress(OSError):
        site.socket_dir.rmdir()


def _await_server_end(site: _Site) -> None:
    server_fd = _open_file(site.server_lock)
    try:
        _take_lock(server_fd, fcntl.LOCK_EX, limit_s=STOP_LIMIT_S, path=site.server_lock)
    finally:
        os.close(server_fd)


def _read_postmaster_pid(site: _Site) -> int | None:
    try:
        return int((site.pgdata / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_postmaster(pid: int, site: _Site) -> bool:
    # A server's working directory is its database: a pid that was given away again has another.
    try:
        return Path(f"/proc/{pid}/cwd").samefile(site.pgdata)
    except OSError:
        return False


# Files and locks


def _open_file(path: Path, extra_flags: int = 0) -> int:
    """Open for reading and writing, or create; close-on-exec, through no symbolic link, as the directory's owner's."""
    flags = os.O_RDWR | os.O_NOFOLLOW | extra_flags
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == ROOT_UID:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def _open_log(site: _Site) -> int:
    # Rotated at starts only: at its level Postgres writes a few lines a day.
    with contextlib.suppress(FileNotFoundError):
        if site.log.stat().st_size > LOG_LIMIT_BYTES:
            site.log.rename(site.log.with_suffix(".log.1"))
    return _open_file(site.log, os.O_APPEND)


def _last_words(site: _Site) -> str:
    try:
        written = site.log.read_bytes()
    except FileNotFoundError:
        return ""
    return f"The end of {site.log}:\n{written[-LOG_TAIL_BYTES:].decode(errors='replace')}"


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _passing_door(site: _Site) -> Iterator[None]:
    door_fd = _open_file(site.door_lock)
    try:
        _take_lock(door_fd, fcntl.LOCK_EX, limit_s=DOOR_LIMIT_S, path=site.door_lock)
        yield
    finally:
        os.close(door_fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_lock(fd: int, kind: int, *, limit_s: float, path: Path) -> None:
    # Looked at again and again, because a blocking flock has no time limit that works in a thread.
    deadline_s = time.monotonic() + limit_s
    while not _try_lock(fd, kind):
        if time.monotonic() > deadline_s:
            raise EmbeddedPostgresError(
                f"Another process has held {path} for {limit_s:.0f} s. See who with: lslocks"
            )
        time.sleep(LOOK_AGAIN_S)


def _check_settings(settings: Mapping[str, str]) -> None:
    for name in settings:
        if not re.fullmatch(r"[a-z_][a-z0-9_.]*", name) or name in OWN_SETTINGS:
            raise EmbeddedPostgresError(
                f"The embedded Postgres cannot be given the setting {name!r}."
            )
