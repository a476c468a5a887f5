"""Very many viewers of runs that wait: what one of them costs the gateway in memory, and Postgres in statements."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import uvloop

from bench.client import Connection, Stream, start_run
from bench.loads.site import Site
from bench.loads.watching import until_counted
from bench.meters import Meter
from bench.processes import pss_bytes
from bench.report import Goal
from bench.workloads import fan_out_server
from gateway.load import raise_file_limit

RUNS = 50  # a hundred viewers each
ARRIVING_AT_ONCE = 50
TOLD_WITHIN_S = 11.0  # an idle backend keeps what it has counted for ten seconds
PARKED = "SELECT count(*) FROM smithers.runs WHERE status = 'waiting-approval' AND owner_id IS NULL"
# Every statement of ours but those of a group commit is a transaction of its own; the embedded Postgres
# has no pg_stat_statements.
TRANSACTIONS = (
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
)

GOALS = (
    Goal("idle", "viewer_count", "viewers of 50 runs that wait"),
    Goal("idle", "kib_per_viewer", "gateway's memory (PSS), KiB a viewer", 16),
    Goal("idle", "raw_kib_per_viewer", "raw: the same viewers of a bare aiohttp server, KiB each"),
    Goal("idle", "statements_per_s", "statements a second of the whole server, without viewers"),
    Goal("idle", "watched_statements_per_s", "… with all of them"),
    Goal("idle", "statements_per_viewer_s", "… more for each viewer", 0.001),
    Goal("idle", "gateway_ms_per_s", "gateway, CPU ms a second, with all of them"),
    Goal("idle", "undelivered_count", "viewers that did not see their run's end", 0),
    Goal("idle", "delivered_s", "50 decisions → every viewer has seen its run's end, s"),
)


def idle(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    count, looked_s = (500, 5.0) if is_quick else (5_000, 20.0)
    raise_file_limit()
    raw_kib = uvloop.run(_measure_bare(count))
    with Site() as site:
        result = uvloop.run(_measure(site, count, looked_s))
    return result | {"raw_kib_per_viewer": raw_kib}


async def _measure(site: Site, count: int, looked_s: float) -> dict[str, Any]:
    gateway_pid = site.pids()["gateway"][0]
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql,
        Connection(site.port) as connection,
        AsyncExitStack() as stack,
    ):
        run_ids = [await start_run(connection, "question") for _ in range(RUNS)]
        await until_counted(sql, RUNS, PARKED)
        await connection.call("GET", "/health")
        alone_per_s = await _count_statements(sql, looked_s)
        before = pss_bytes(gateway_pid)
        watching = await arrive(stack, site.port, [run_ids[i % RUNS] for i in range(count)])
        after = pss_bytes(gateway_pid)
        with Meter(site) as meter:
            watched_per_s = await _count_statements(sql, looked_s)
        began = time.perf_counter()
        for run_id in run_ids:
            await connection.call("POST", f"/v1/runs/{run_id}/nodes/ok/approve", {})
        ends = await asyncio.gather(*watching, return_exceptions=True)
        delivered_s = time.perf_counter() - began
    return {
        "viewer_count": count,
        "kib_per_viewer": (after - before) / 1024 / count,
        "statements_per_s": alone_per_s,
        "watched_statements_per_s": watched_per_s,
        "statements_per_viewer_s": max(0.0, watched_per_s - alone_per_s) / count,
        "gateway_ms_per_s": meter.used_s["gateway"] * 1000 / meter.took_s,
        "undelivered_count": sum(not isinstance(end, Stream) for end in ends),
        "delivered_s": delivered_s,
    }


async def arrive(
    stack: AsyncExitStack, port: int, run_ids: list[str]
) -> list[asyncio.Task[Stream]]:
    """Open a stream of each of these runs, some at once; all have been told what is stored when this returns."""
    watching: list[asyncio.Task[Stream]] = []
    for first in range(0, len(run_ids), ARRIVING_AT_ONCE):
        arriving = {}
        for run_id in run_ids[first : first + ARRIVING_AT_ONCE]:
            viewer = await stack.enter_async_context(Connection(port))
            arriving[viewer] = asyncio.create_task(viewer.follow(run_id))
        await asyncio.gather(*[viewer.until_first_event() for viewer in arriving])
        watching += arriving.values()
    return watching


async def _count_statements(sql: asyncpg.Pool, looked_s: float) -> float:
    await asyncio.sleep(TOLD_WITHIN_S)
    before, began = await sql.fetchval(TRANSACTIONS), time.perf_counter()
    await asyncio.sleep(looked_s)
    counted: int = await sql.fetchval(TRANSACTIONS) - before
    return counted / (time.perf_counter() - began)


async def _measure_bare(count: int) -> float:
    """Return KiB for each viewer of bench.fan_out, which waits for one more than there are."""
    with fan_out_server(count + 1, 0, 0.0) as (port, pid):
        async with _bare_viewers(port, 1):
            before = pss_bytes(pid)
            async with _bare_viewers(port, count - 1):
                return (pss_bytes(pid) - before) / 1024 / (count - 1)


@asynccontextmanager
async def _bare_viewers(port: int, count: int) -> AsyncIterator[None]:
    writers = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
        yield
    finally:
        for writer in writers:
            writer.close()
        gc.collect()  # closed transports complain when they are collected after their loop
