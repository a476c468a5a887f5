"""A server behind PgBouncer, told what docs/scaling.md says."""

import asyncio
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.ports import free_port
from smithers.client import Client
from smithers.errors import StoreUnavailable
from smithers.store.connections import open_connection
from smithers.store.poolers import Way, find_way
from tests.support.balancers import DEPLOY, find_program
from tests.support.data_dirs import scratch
from tests.support.plain_postgres import PlainPostgres
from tests.support.serving import COMMAND, Serving, clean_environment

pytestmark = pytest.mark.timeout(300)  # real processes, on machines that are busy
NOBODY = 65534  # it does not run as root
LIMIT_S = 60
COUNT_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
FLOW = """
from smithers import Sequence, Signal, Task, workflow


@workflow
def waits(ctx):
    return Sequence(Task("a", lambda: 1), Signal("go"), Task("b", lambda: 2))
"""


def passed_parameters() -> str:
    """The line for PgBouncer that the page on scaling gives."""
    text = (DEPLOY.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ignore_startup_parameters = .+$", text, re.MULTILINE)
    return line


@contextmanager
def pooling(
    postgres: PlainPostgres,
    folder: Path,
    mode: str,
    parameters: str | None = None,
    *,
    size: int = 50,
) -> Iterator[str]:
    """Run PgBouncer before a Postgres, with the parameters that the page gives by default; give the URL through it."""
    port = free_port()
    (folder / "users").write_text('"postgres" ""\n', encoding="utf-8")
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
postgres = host={postgres.host} port={postgres.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
{passed_parameters() if parameters is None else parameters}
""",
        encoding="utf-8",
    )
    demoted = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [*demoted, find_program("pgbouncer"), str(folder / "pgbouncer.ini")],
            stdout=log,
            stderr=log,
        )
    try:
        ends = time.monotonic() + LIMIT_S
        while b"process up" not in (folder / "pgbouncer.log").read_bytes():
            assert process.poll() is None, (folder / "pgbouncer.log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "waits.py").write_text(FLOW, encoding="utf-8")
    return root


@pytest.fixture
def postgres() -> Iterator[PlainPostgres]:
    with scratch() as data:
        postgres = PlainPostgres(data, host="127.0.0.1", port=free_port())
        postgres.create()
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.kill()


@contextmanager
def pooler(postgres: PlainPostgres, mode: str, *, is_direct: bool) -> Iterator[dict[str, str]]:
    """Run a pooler; give the variables of a server behind it."""
    with scratch() as folder, pooling(postgres, folder, mode) as url:
        direct = {"DATABASE_DIRECT_URL": postgres.dsn()} if is_direct else {}
        yield {"DATABASE_URL": url, **direct}


def serve(root: Path, env: dict[str, str]) -> Serving:
    flags = ("--port", "0", "--workers", "2", "--http-workers", "2", "--migrate")
    return Serving(root, None, *flags, **env)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_runs_wait_and_go_on_behind_a_pooler_with_an_address_past_it(
    postgres: PlainPostgres, root: Path, mode: str
) -> None:
    names = [f"run-{number}" for number in range(20)]
    with pooler(postgres, mode, is_direct=True) as env:
        assert asyncio.run(find_way(env["DATABASE_URL"])) is Way(mode)
        with serve(root, env) as server, server.client() as client:
            assert read_ready(server)["database"] is None
            for name in names:
                client.start("waits.py", run_id=name)
            for name in names:
                until_status(client, name, "waiting-event")
            for name in names:
                client.signal(name, "go", {})
            for name in names:
                until_status(client, name, "finished")
                seqs = [event.seq for event in client.list_events(name)]
                assert seqs == list(range(len(seqs)))


def test_a_server_that_has_only_a_pooler_in_transaction_mode_works_and_says_what_is_lost(
    postgres: PlainPostgres, root: Path
) -> None:
    with pooler(postgres, "transaction", is_direct=False) as env:
        with serve(root, env) as server, server.client() as client:
            client.start("waits.py", run_id="one")
            until_status(client, "one", "waiting-event")
            client.signal("one", "go", {})
            until_status(client, "one", "finished")
            lines = [line for line in server.talk.lines if "direct_url_missing" in line]
            told = [read_ready(server)["database"], *(json.loads(one)["reason"] for one in lines)]
        told.append(look(root, env)["pooler"])
    assert len(told) == 3
    assert all("DATABASE_DIRECT_URL" in one for one in told)


@pytest.mark.parametrize("ending", ["", "?statement_cache_size=0"])
def test_servers_share_each_connection_of_a_pooler_in_transaction_mode(
    postgres: PlainPostgres, root: Path, ending: str
) -> None:
    # The pooler has one connection: what one server left prepared there would be in the other one's way.
    with scratch() as folder, pooling(postgres, folder, "transaction", size=1) as url:
        env = {"DATABASE_URL": url + ending}
        with (
            serve(root, env) as first,
            serve(root, env) as second,
            first.client() as starting,
            second.client() as signalling,
        ):
            starting.start("waits.py", run_id="one")
            until_status(signalling, "one", "waiting-event")
            signalling.signal("one", "go", {})
            until_status(starting, "one", "finished")
            said = [*first.talk.lines, *second.talk.lines]
            # A lock would stay on the pooler's connection, whoever has died, and go with it, whoever lives.
            assert asyncio.run(count_locks(postgres.dsn())) == 0
    assert [line for line in said if "DuplicatePreparedStatement" in line] == []


def test_a_pooler_that_was_not_told_what_to_let_pass_is_told_of(postgres: PlainPostgres) -> None:
    with (
        scratch() as folder,
        pooling(postgres, folder, "transaction", parameters="") as url,
        pytest.raises(StoreUnavailable, match=r"startup parameter.*docs/scaling\.md"),
    ):
        asyncio.run(find_way(url))


async def count_locks(dsn: str) -> int:
    async with open_connection(dsn, role="test") as connection:
        count: int = await connection.fetchval(COUNT_LOCKS)
    return count


def read_ready(server: Serving) -> dict[str, str | None]:
    with urllib.request.urlopen(f"{server.url}/ready", timeout=LIMIT_S) as answer:
        return json.load(answer)


def look(root: Path, env: dict[str, str]) -> dict[str, str]:
    """Have the doctor look, who fails; return what it tells, by what it looked at."""
    done = subprocess.run(
        [*COMMAND, "doctor", "--root-dir", str(root), "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=clean_environment(**env),
    )
    assert done.returncode == 1, done.stderr
    return {found["name"]: found["told"] for found in json.loads(done.stdout)}


def until_status(client: Client, run_id: str, wanted: str) -> None:
    ends = time.monotonic() + LIMIT_S
    while (found := client.get(run_id).status) != wanted:
        assert time.monotonic() < ends, found
        time.sleep(0.1)
