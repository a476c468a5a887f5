"""What befalls Postgres: a failover, no connection left, a full disk, a slow one. Runs go on by themselves when it is over.

The plain ends and freezes are the nemesis's: see tests/faults/test_chaos.py. Each test has a server of its own.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from bench import processes
from chaos.postgres import PostgresServer
from chaos.site import Site
from smithers.store.schema import upgrade_schema
from tests.support.data_dirs import scratch
from tests.support.ordeals import go_through, site_on
from tests.support.turns import names
from tests.support.world import World, until

SLOW_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#define SLOW(name) int name(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, #name); usleep(150000); return real(fd); }
SLOW(fsync)
SLOW(fdatasync)
"""

ONCE = """
    import asyncio
    import os
    from ledger import mark
    from smithers import Task, workflow

    async def body(run):
        mark(run)
        while not os.path.exists("go"):
            await asyncio.sleep(0.02)

    @workflow
    def once(ctx):
        return Task("t", lambda: body(ctx.input["run"]))
"""
# What writes the log of Postgres besides those who commit.
FLUSHING = "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer', 'checkpointer')"
CLAIMED = "SELECT count(*) FROM smithers.runs WHERE owner_id IS NOT NULL"
AS_STARTED = (
    "SELECT count(*) FROM smithers.runs WHERE owner_id IS NULL AND epoch = 0 AND status = 'queued'"
)
WORKERS = "SELECT count(*) FROM smithers.workers"


@asynccontextmanager
async def world_of_its_own(root: Path) -> AsyncIterator[tuple[World, PostgresServer]]:
    """Have a world on a server that may be killed."""
    with scratch() as place:
        server = PostgresServer(place / "postgres")
        try:
            await asyncio.to_thread(server.__enter__)
            await asyncio.to_thread(upgrade_schema, server.dsn)
            async with World(server.dsn, root) as world:
                yield world, server
        finally:
            await asyncio.to_thread(server.__exit__)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


@contextmanager
def stopped(pids: Collection[int]) -> Iterator[None]:
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


async def test_claims_that_a_crash_takes_back_lead_to_no_second_execution(tmp_path: Path) -> None:
    """They wait for no flush. Who had them sends its first commits when others, who have the runs now, have sent theirs."""
    run_ids = names(8)
    async with world_of_its_own(tmp_path) as (world, server):
        world.write("once.py", ONCE)
        pool = world.start_pool(workers=2)
        await until(lambda: has(world.sql, WORKERS, 2), "there are workers")
        children = processes.descendants(pool.pid)
        with stopped([pool.pid]):  # its heartbeats would flush the claims
            send([row["pid"] for row in await world.sql.fetch(FLUSHING)], signal.SIGSTOP)
            holder = await asyncpg.connect(server.dsn)
            await holder.execute("BEGIN; LOCK TABLE smithers.nodes IN SHARE MODE")  # no commit ends
            with stopped(children):  # a start that came after a claim would flush it, too
                for run_id in run_ids:
                    await world.start(run_id, "once.py", {"run": run_id})
            await until(lambda: has(world.sql, CLAIMED, len(run_ids)), "all are claimed")
            send(children, signal.SIGSTOP)
            await asyncio.to_thread(server.kill)
        with stopped(children):
            await asyncio.to_thread(server.start)
            holder.terminate()
            world.sql.terminate()
            world.sql = await asyncpg.connect(server.dsn)
            assert await has(world.sql, AS_STARTED, len(run_ids))
            world.start_pool(workers=2)
            for run_id in run_ids:
                await world.until_ledger(run_id)
        await world.until_logged("lease_lost", len(run_ids))
        (tmp_path / "go").touch()
        for run_id in run_ids:
            await world.until_status(run_id, "finished")
            assert (await world.lines(run_id)).count("NodeStarted t 1") == 1
        assert world.ledger() == dict.fromkeys(run_ids, 1)


async def has(sql: asyncpg.Connection, question: str, count: int) -> bool:
    return await sql.fetchval(question) == count


async def run(*command: str) -> int:
    """Run a program to its end; return its exit code."""
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_a_failover_to_a_synchronous_standby_loses_nothing(tmp_path: Path) -> None:
    async with site_on() as site:
        primary = site.postgres
        standby = await asyncio.to_thread(primary.copy_as_standby, site.place / "standby")
        await asyncio.to_thread(standby.__enter__)
        try:
            await _wait_for_standby(primary)

            async def fail_over(site: Site) -> asyncpg.Connection:
                await asyncio.sleep(4)
                await asyncio.to_thread(primary.kill)
                await standby.promote()
                for part in site.parts:
                    part.database.target = ("127.0.0.1", standby.port)
                    part.database.reset()
                return await asyncpg.connect(standby.dsn)

            await go_through(site, fail_over)
        finally:
            await asyncio.to_thread(standby.__exit__)


async def _wait_for_standby(primary: PostgresServer) -> None:
    """Have the primary wait for its standby from now on."""
    connection = await asyncpg.connect(primary.dsn)
    try:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        await connection.execute("SELECT pg_reload_conf()")

        async def is_synchronous() -> bool:
            return await connection.fetchval(
                "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            )

        await until(is_synchronous, "the standby is synchronous")
    finally:
        await connection.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_runs_go_on_after_a_time_without_connections(tmp_path: Path) -> None:
    async def use_up(site: Site) -> asyncpg.Connection:
        await asyncio.sleep(3)
        kept = await site.connect()
        taken: list[asyncpg.Connection] = []
        try:
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await site.connect())
            for part in site.parts:
                part.database.reset()  # and none of them gets another
            await asyncio.sleep(5)
        finally:
            for connection in taken:
                connection.terminate()
        return kept

    async with site_on() as site:
        await go_through(site, use_up)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_slow_flushes_cost_time_and_nothing_else(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: it makes fsync slow")
    source, library = tmp_path / "slow.c", Path("/tmp") / f"slow-{os.getpid()}.so"
    source.write_text(SLOW_SYNC)
    assert await run("gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl") == 0
    library.chmod(0o755)

    async def wait(site: Site) -> asyncpg.Connection:
        return await site.connect()

    try:
        async with site_on({"LD_PRELOAD": str(library)}) as site:
            await go_through(site, wait)
    finally:
        library.unlink()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_runs_go_on_after_the_disk_was_full(tmp_path: Path) -> None:
    site = Site(gateways=2, pools=1)
    disk = site.postgres.place
    disk.mkdir()
    if await run("mount", "-t", "tmpfs", "-o", "size=600m,mode=0755", "tmpfs", str(disk)) != 0:
        site.remove()
        pytest.skip("a small disk cannot be mounted here: it takes root and its capabilities")

    async def fill(site: Site) -> asyncpg.Connection:
        await asyncio.sleep(3)
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"\0" * (1 << 20))
        await asyncio.sleep(5)
        filler.unlink()
        if not site.postgres.pids:  # it does not go on where its log cannot be written
            await asyncio.to_thread(site.postgres.start)
        return await site.connect()

    try:
        async with site:
            await go_through(site, fill)
    finally:
        await run("umount", "-l", str(disk))
        site.remove()
