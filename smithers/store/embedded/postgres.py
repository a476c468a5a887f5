"""Open and close shares of the embedded Postgres; the first opener starts it, the last stops it.

How, and what is guaranteed, is said in the package's docstring.
"""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self, assert_never

from smithers.store.embedded.account import (
    EmbeddedPostgresError,
    clean_environment,
    find_barrier,
)
from smithers.store.embedded.binaries import find_binaries
from smithers.store.embedded.cluster import (
    DATABASE,
    SUPERUSER,
    create_cluster,
    create_database,
    is_postmaster,
    read_postmaster_pid,
    remove_misleading_pid_files,
)
from smithers.store.embedded.probe import Answer, ask_server
from smithers.store.embedded.site import (
    LOOK_AGAIN_S,
    PORT,
    ROOT_STATE_DIR,
    Site,
    has_database,
    make_data_dir,
    open_file,
    open_log,
    passing_door,
    prepare_site,
    read_last_words,
    take_lock,
    try_lock,
)

KEEPER: Final = Path(__file__).with_name("keeper.py")
DOOR_LIMIT_S: Final = 120.0
SILENCE_LIMIT_S: Final = 60.0  # recovery may take longer, but a recovering server says so
STOP_LIMIT_S: Final = 60.0
WATCH_EVERY_S: Final = 1.0


def _find_sync_method() -> str:
    """Choose how recovery makes sure that all files of the database are on disk.

    File by file takes up to a second, which every run waits for; Linux reports what goes wrong with syncfs from 5.8 on.
    """
    kernel = re.match(r"(\d+)\.(\d+)", os.uname().release)
    is_reliable = kernel is not None and (int(kernel[1]), int(kernel[2])) >= (5, 8)
    return "syncfs" if sys.platform == "linux" and is_reliable else "fsync"


SERVER_SETTINGS: Final = MappingProxyType(
    {
        "max_connections": "200",
        "shared_buffers": "128MB",
        "max_pred_locks_per_transaction": "10",  # 3 MiB less: nothing here is SERIALIZABLE
        "max_logical_replication_workers": "0",
        "max_wal_size": "1GB",
        "autovacuum_naptime": "15s",  # a minute's updates of short runs leave more dead rows than live ones
        "fsync": "on",
        "synchronous_commit": "on",
        "recovery_init_sync_method": _find_sync_method(),
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %a ",
    }
)
# Version 18 by itself has three processes and 8 MiB of shared memory to read from the disk; what a run reads is in memory.
SETTINGS_SINCE_18: Final = MappingProxyType({"io_method": "sync", "io_max_concurrency": "8"})
# What the guarantees of this package stand on: not for callers to set.
OWN_SETTINGS: Final = frozenset(
    {
        "data_directory",
        "listen_addresses",
        "logging_collector",
        "port",
        "unix_socket_directories",
        "unix_socket_permissions",
    }
)


def open_embedded_postgres(
    data_dir: Path,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    bin_dir: Path | None = None,
    server_user: str | None = None,
    watches: bool = False,
) -> "EmbeddedPostgres":
    """Join the server of this data directory, or start one, on a new database if there is none.

    Blocks until it answers: a second the first time, 5 ms to join, 0.1 s to start, more to recover
    from a crash. `settings` are those of postgresql.conf; they are the starter's, and ignored in who
    joins. bin_dir: a PostgreSQL 17 or newer instead of the wheel's. server_user: which account runs
    the server of root. watches: until close(), start it again if it is killed after its keeper; by a
    thread, so not for a process that forks. Raises EmbeddedPostgresError.
    """
    _check_settings(settings)
    resolved = data_dir.resolve()
    if (resolved / "PG_VERSION").exists():
        raise EmbeddedPostgresError(
            f"{resolved} is a database itself: name the directory that pgdata shall lie in."
        )
    try:
        make_data_dir(resolved)
        with passing_door(resolved, limit_s=DOOR_LIMIT_S):
            site = prepare_site(resolved, server_user=server_user)
            ensure = partial(_ensure_server, site, settings, bin_dir)
            users_fd = _enter(site, ensure)
            return EmbeddedPostgres(site, users_fd, _Watch(site, ensure) if watches else None)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"The data directory {resolved} cannot be used: {error}. Run as its owner, or name "
            "another with --data-dir."
        ) from error


class EmbeddedPostgres:
    """This process's share of a running server."""

    def __init__(self, site: Site, users_fd: int, watch: "_Watch | None") -> None:
        self.data_dir = site.data_dir
        self.dsn = f"postgresql://{SUPERUSER}@/{DATABASE}?host={site.socket_dir}&port={PORT}"
        self._site = site
        self._users_fd: int | None = users_fd
        self._watch = watch
        self._opener_pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the share up; the last one stops the server and returns when it has ended.

        Blocks for as long, some 30 ms. Idempotent. Gives nothing up in a forked child, for the
        share is its parent's. Raises EmbeddedPostgresError if the server takes STOP_LIMIT_S; it has
        been told, and will end.
        """
        users_fd, self._users_fd = self._users_fd, None
        if users_fd is None:
            return
        is_opener = self._opener_pid == os.getpid()
        try:
            if is_opener and self._watch is not None:
                self._watch.end()
            # A directory that was removed under the server has no door; the keeper sees to it.
            if is_opener and self.data_dir.exists():
                with passing_door(self.data_dir, limit_s=DOOR_LIMIT_S):
                    _leave(self._site, users_fd)
        finally:
            os.close(users_fd)


class _Watch:
    """A thread that starts a server again of which nothing is left, its keeper neither."""

    def __init__(self, site: Site, ensure: Callable[..., None]) -> None:
        self._site = site
        self._ensure = ensure
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="postgres-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the thread; a server that it has started may still be on its way up."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        was_killed = False
        while not self._is_over.wait(WATCH_EVERY_S):
            # It is tried again: postgres.log says why a server does not start, and a directory may have been removed.
            with contextlib.suppress(EmbeddedPostgresError, OSError):
                was_killed = self._is_absent() and (was_killed or self._has_left_its_pid())
                if was_killed and has_database(self._site.data_dir):
                    with passing_door(self._site.data_dir, limit_s=WATCH_EVERY_S):
                        self._ensure(is_over=self._is_over.is_set)
                    was_killed = False

    def _is_absent(self) -> bool:
        with _holding_absence(self._site) as server_fd:
            return server_fd is not None

    def _has_left_its_pid(self) -> bool:
        # Whoever asks a server to stop wants it down; that one removes the file.
        return read_postmaster_pid(self._site) is not None


def _check_settings(settings: Mapping[str, str]) -> None:
    for name in settings:
        if not re.fullmatch(r"[a-z_][a-z0-9_.]*", name) or name in OWN_SETTINGS:
            raise EmbeddedPostgresError(
                f"The embedded Postgres takes no setting {name!r}: use a Postgres of your own "
                "(DATABASE_URL) if you need it."
            )


def _enter(site: Site, ensure: Callable[[], None]) -> int:
    """Return a share of the users lock, when the server answers."""
    users_fd = open_file(site.users_lock)
    try:
        # Held exclusively by a keeper that stops the server: wait until it has.
        take_lock(users_fd, fcntl.LOCK_SH, limit_s=STOP_LIMIT_S, path=site.users_lock)
        ensure()
    except BaseException:
        os.close(users_fd)
        raise
    return users_fd


def _never() -> bool:
    return False


def _ensure_server(
    site: Site,
    settings: Mapping[str, str],
    bin_dir: Path | None,
    *,
    is_over: Callable[[], bool] = _never,
) -> None:
    """Return when the server answers and has the database; start and create what is missing, until `is_over`."""
    has_started = False
    deadline_s = time.monotonic() + SILENCE_LIMIT_S
    while not is_over():
        with _holding_absence(site) as server_fd:
            if server_fd is not None:
                if has_started:
                    raise EmbeddedPostgresError(f"Postgres does not start. {read_last_words(site)}")
                _start_server(site, server_fd, settings, bin_dir)
                has_started = True
                deadline_s = time.monotonic() + SILENCE_LIMIT_S
        match ask_server(site.socket, user=SUPERUSER, database=DATABASE):
            case Answer.READY:
                return
            case Answer.NO_DATABASE:
                programs = find_binaries(site.account, bin_dir=bin_dir)
                create_database(site, programs, fills_log=settings.get("fsync") != "off")
            case Answer.REFUSED:
                raise EmbeddedPostgresError(f"Postgres refuses us. {read_last_words(site)}")
            case Answer.NOT_NOW:
                deadline_s = time.monotonic() + SILENCE_LIMIT_S
            case Answer.SILENCE:
                if time.monotonic() > deadline_s:
                    raise EmbeddedPostgresError(
                        f"A Postgres holds {site.server_lock} and is silent on {site.socket}: "
                        f"end its processes and try again. {read_last_words(site)}"
                    )
            case other:
                assert_never(other)
        time.sleep(LOOK_AGAIN_S)


@contextlib.contextmanager
def _holding_absence(site: Site) -> Iterator[int | None]:
    """Yield the server lock, held, if nothing touches the database, and else None."""
    server_fd = open_file(site.server_lock)
    try:
        yield server_fd if try_lock(server_fd, fcntl.LOCK_EX) else None
    finally:
        os.close(server_fd)  # processes that inherited the lock still hold it


def _start_server(
    site: Site, server_fd: int, settings: Mapping[str, str], bin_dir: Path | None
) -> None:
    """Have a keeper start the server; both inherit the server lock, which is held here."""
    if site.account.is_other and (barrier := find_barrier(site.account, site.data_dir)):
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, so it runs as {site.account.name!r}, which cannot "
            f"enter {barrier}. Name a --data-dir outside, for example below {ROOT_STATE_DIR}."
        )
    programs = find_binaries(site.account, bin_dir=bin_dir)
    if not (site.pgdata / "PG_VERSION").exists():
        create_cluster(site, programs, server_fd=server_fd)
    remove_misleading_pid_files(site)
    log_fd = open_log(site)
    try:
        subprocess.run(  # noqa: S603 - the command is made below
            _keeper_command(site, programs, settings),
            check=True,
            cwd="/",
            env=clean_environment(),
            pass_fds=(server_fd,),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedPostgresError(
            f"The keeper of Postgres does not start ({error}). {read_last_words(site)}"
        ) from error
    finally:
        os.close(log_fd)


def _keeper_command(site: Site, programs: Path, settings: Mapping[str, str]) -> list[str]:
    own_settings = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(site.socket_dir),
    }
    version = int((site.pgdata / "PG_VERSION").read_text(encoding="ascii"))
    chosen = {**settings_of(version), **settings, **own_settings}
    python = [sys.executable, "-I", "-S", str(KEEPER)]
    keeper = [*python, str(site.users_lock), str(site.account.uid), str(site.account.gid)]
    postgres = [str(programs / "postgres"), "-D", str(site.pgdata)]
    return [*keeper, *postgres, *(f"--{name}={value}" for name, value in chosen.items())]


def settings_of(version: int) -> Mapping[str, str]:
    """Return the settings of a server of this major version: it starts with none that it does not know."""
    return {**SERVER_SETTINGS, **(SETTINGS_SINCE_18 if version >= 18 else {})}


def _leave(site: Site, users_fd: int) -> None:
    """Give the share up and, as the last, stop the server; the door is held."""
    if try_lock(users_fd, fcntl.LOCK_EX):
        _stop_server(site, users_fd)
    elif not try_lock(users_fd, fcntl.LOCK_SH):
        # The keeper has it exclusively: turning a shared lock into an exclusive one lets go of it
        # for an instant, and the keeper came in between.
        _await_server_end(site)


def _stop_server(site: Site, users_fd: int) -> None:
    pid = read_postmaster_pid(site)
    if pid is not None and is_postmaster(pid, site):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)  # fast: sessions are cut, a checkpoint is made
    # The door keeps comers out, and the keeper learns that nobody is left: it starts no server after
    # one that could not shut down properly, and stops one that is on its way up after a crash, or
    # that we cannot be sure of without a /proc.
    fcntl.flock(users_fd, fcntl.LOCK_UN)
    _await_server_end(site)
    with contextlib.suppress(OSError):
        site.socket_dir.rmdir()


def _await_server_end(site: Site) -> None:
    server_fd = open_file(site.server_lock)
    try:
        take_lock(server_fd, fcntl.LOCK_EX, limit_s=STOP_LIMIT_S, path=site.server_lock)
    finally:
        os.close(server_fd)
