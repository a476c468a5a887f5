"""What befalls Postgres: a failover, no connection left, a full disk, a slow one. Runs go on by themselves when it is over.

The plain ends and freezes are the nemesis's: see tests/faults/test_chaos.py. Each test has a server of its own.
"""

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from chaos.postgres import PostgresServer
from chaos.site import Site
from tests.support.ordeals import go_through, site_on
from tests.support.world import until

SLOW_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#define SLOW(name) int name(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, #name); usleep(150000); return real(fd); }
SLOW(fsync)
SLOW(fdatasync)
"""


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
