"""`python -m bench.growth`: what grows with what, for docs/scaling.md. A minute; prints a table.

Bytes are those of tables and indexes after a vacuum, connections those that Postgres lists, memory the gateway's share (PSS).
"""

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final

import asyncpg

from bench.client import Connection, start_run
from bench.processes import pss_bytes
from bench.server import Server
from smithers.store.retention import prune

RUNS: Final = 1_000
IN_FLIGHT: Final = 64
VIEWERS: Final = (0, 500, 1_000)

SIZE: Final = """
    SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'smithers'::regnamespace"""
CONNECTIONS: Final = """
    SELECT application_name AS name, count(*) AS count FROM pg_stat_activity
    WHERE application_name LIKE 'smithers-%' AND application_name <> 'smithers-growth' GROUP BY 1 ORDER BY 1"""
AGE: Final = "UPDATE smithers.runs SET finished_at = finished_at - interval '31 days'"


async def measure(server: Server) -> None:
    sql = await asyncpg.connect(server.dsn, server_settings={"application_name": "smithers-growth"})
    await move_runs(server, 64)  # all is described, loaded and connected
    say(
        "connections",
        ", ".join(f"{row['name']} {row['count']}" for row in await sql.fetch(CONNECTIONS)),
    )
    before, events_before = await weigh(sql), await count_events(sql)
    began = time.monotonic()
    await move_runs(server, RUNS)
    say("runs/s", f"{RUNS / (time.monotonic() - began):.0f}")
    events = await count_events(sql) - events_before
    grown = await weigh(sql) - before
    say("events a run", f"{events / RUNS:.1f}")
    say("bytes a run of three nodes, all tables and indexes", f"{grown / RUNS:,.0f}")
    for count, memory in (await watch(server)).items():
        say(f"gateway, MiB with {count} viewers", f"{memory / 2**20:.1f}")
    await age_and_prune(server, sql)
    await sql.close()


async def move_runs(server: Server, count: int) -> None:
    """Run so many runs of three nodes to their ends."""
    todo = iter(range(count))

    async def one_after_another() -> None:
        async with Connection(server.port) as connection:
            for _ in todo:
                await connection.follow(await start_run(connection, "three"))

    await asyncio.gather(*(one_after_another() for _ in range(min(count, IN_FLIGHT))))


async def watch(server: Server) -> dict[int, int]:
    """Weigh the gateway with more and more viewers of one run that waits."""
    weights = {}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Connection(server.port))
        run_id = await start_run(first, "gate")
        watching: list[asyncio.Task[Any]] = []
        for count in VIEWERS:
            while len(watching) < count:
                viewer = await stack.enter_async_context(Connection(server.port))
                watching.append(asyncio.create_task(viewer.follow(run_id)))
                await viewer.until_first_event()
            weights[count] = pss_bytes(server.gateway_pid)
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
    return weights


async def age_and_prune(server: Server, sql: asyncpg.Connection) -> None:
    """Make all that has ended old, prune it, and weigh what is left of each run."""
    await sql.execute(AGE)
    began = time.monotonic()
    pruned = await prune(server.dsn, timedelta(days=30))
    took_s = time.monotonic() - began
    say("pruned runs/s, pauses included", f"{pruned.run_count / took_s:,.0f}")
    left = await sql.fetchval("SELECT pg_total_relation_size('smithers.tombstones')::bigint")
    say("bytes of a tombstone", f"{left / pruned.run_count:.0f}")


async def weigh(sql: asyncpg.Connection) -> int:
    await sql.execute("VACUUM")
    size: int = await sql.fetchval(SIZE)
    return size


async def count_events(sql: asyncpg.Connection) -> int:
    count: int = await sql.fetchval("SELECT count(*) FROM smithers.events")
    return count


def say(what: str, value: str) -> None:
    sys.stdout.write(f"{what:<55} {value}\n")


if __name__ == "__main__":
    with Server() as its_server:
        asyncio.run(measure(its_server))
