"""The drill: a backup is taken while runs go on, everything is lost, and on what was restored they go on."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bench.ports import free_port
from smithers.client import Client
from tests.support.data_dirs import scratch
from tests.support.plain_postgres import PlainPostgres
from tests.support.serving import Serving, find_processes
from tests.support.world import until

pytestmark = pytest.mark.timeout(300)  # real processes, on machines that are busy
FLOW = """
import os

from smithers import Approval, Sequence, Task, Timer, workflow


def mark(line):
    with open(os.environ["LEDGER"], "a") as file:
        file.write(line + "\\n")


@workflow
def asks(ctx):
    return Sequence(
        Task("before", lambda: mark(f"before {ctx.run_id}")),
        Approval("ok", title="Go on?"),
        Task("after", lambda: mark(f"after {ctx.run_id}")),
    )


@workflow
def walks(ctx):
    return Sequence(*(Timer(f"t{n}", duration=0.1) for n in range(12)), Task("end", lambda: mark(f"end {ctx.run_id}")))
"""
ASKING = [f"asks-{number}" for number in range(4)]
WALKING = [f"walks-{number}" for number in range(4)]


def base_backup(old: PlainPostgres, new: PlainPostgres) -> Callable[[], None]:
    """The whole server, as its files were at the end of the copy."""
    old.run_tool("pg_basebackup", "-D", str(new.data), "-X", "stream", "--checkpoint=fast")
    return new.own


def dump(old: PlainPostgres, new: PlainPostgres) -> Callable[[], None]:
    """One database, as its rows were at one moment."""
    file = new.data.parent / "smithers.dump"
    old.run_tool("pg_dump", "-Fc", "-d", "smithers", "-f", str(file))

    def restore() -> None:
        new.create()
        new.start()
        new.run_tool("createdb", "smithers")
        new.run_tool("pg_restore", "-d", "smithers", str(file))
        new.kill()

    return restore


def server_in(folder: Path) -> PlainPostgres:
    return PlainPostgres(folder, host="127.0.0.1", port=free_port())


@pytest.fixture
def servers() -> Iterator[tuple[PlainPostgres, PlainPostgres]]:
    with scratch() as one, scratch() as other:
        servers = (server_in(one), server_in(other))
        try:
            yield servers
        finally:
            for server in servers:
                server.kill()


@pytest.mark.parametrize("back_up", [base_backup, dump], ids=["pg_basebackup", "pg_dump"])
async def test_runs_go_on_from_a_backup_that_was_taken_while_they_ran(
    back_up: Callable[..., Callable[[], None]],
    servers: tuple[PlainPostgres, PlainPostgres],
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "flows.py").write_text(FLOW, encoding="utf-8")
    ledger = tmp_path / "ledger"
    old, new = servers
    old.create()
    old.start()
    old.run_tool("createdb", "smithers")

    with ExitStack() as stack:
        first = serve(stack, root, old, ledger)
        with first.client() as client:
            start(client)
            sql = await asyncpg.connect(old.dsn("smithers"))
            await until(lambda: count_walked(sql), "some runs are half way", patience_s=60)
            await until(lambda: are_asking(sql), "the others wait for somebody", patience_s=60)
            await sql.close()
        restore = back_up(old, new)
        for pid in find_processes(first.mark):  # all at once: nothing is handed over
            os.kill(pid, signal.SIGKILL)
        first.process.wait()
        first.talk.close()
        old.kill()

        restore()
        new.start()
        second = serve(stack, root, new, ledger)
        with second.client() as client:
            for run_id in ASKING:
                client.approve(run_id, "ok")
            sql = await asyncpg.connect(new.dsn("smithers"))
            await until(lambda: all_finished(sql), "all runs have finished", patience_s=100)
            histories = await sql.fetch(
                "SELECT run_id, array_agg(payload ORDER BY seq) AS events, array_agg(seq ORDER BY seq) AS seqs"
                " FROM smithers.events GROUP BY run_id"
            )
            await sql.close()

    assert {row["run_id"] for row in histories} == {*ASKING, *WALKING}
    for row in histories:
        assert row["seqs"] == list(range(len(row["seqs"])))
        types = Counter(json.loads(event)["type"] for event in row["events"])
        assert types["RunFinished"] == 1
    marks = Counter(ledger.read_text(encoding="utf-8").splitlines())
    for run_id in ASKING:
        assert marks[f"before {run_id}"] == 1, (
            "what had finished before the backup is not done again"
        )
        assert marks[f"after {run_id}"] == 1


def serve(stack: ExitStack, root: Path, server: PlainPostgres, ledger: Path) -> Serving:
    env = {"DATABASE_URL": server.dsn("smithers"), "LEDGER": str(ledger)}
    flags = ("--port", "0", "--workers", "2", "--migrate")
    return stack.enter_context(Serving(root, None, *flags, **env))


def start(client: Client) -> None:
    for run_id in ASKING:
        client.start("flows.py:asks", run_id=run_id)
    for run_id in WALKING:
        client.start("flows.py:walks", run_id=run_id)


async def count_walked(sql: asyncpg.Connection) -> Any:
    return await sql.fetchval(
        "SELECT count(DISTINCT run_id) = $1 FROM smithers.nodes WHERE node_id = 't3' AND state = 'finished'",
        len(WALKING),
    )


async def are_asking(sql: asyncpg.Connection) -> Any:
    return await sql.fetchval(
        "SELECT count(*) = $1 FROM smithers.runs WHERE status = 'waiting-approval'", len(ASKING)
    )


async def all_finished(sql: asyncpg.Connection) -> Any:
    return await sql.fetchval(
        "SELECT bool_and(status = 'finished') AND count(*) = $1 FROM smithers.runs",
        len(ASKING + WALKING),
    )
