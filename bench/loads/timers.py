"""Many timers due at the same moment: how long the last one waits."""

import asyncio
import time
from typing import Any

import asyncpg

from bench import raw
from bench.client import Connection, start_run
from bench.load import spread
from bench.loads.site import Site
from bench.loads.watching import until_counted
from bench.numbers import percentile
from bench.report import Goal

GROUP_SIZE = 64  # what a child claims at once
COMMITS_PER_RUN = 2  # the claim; what fires the timer ends the run
STARTS_PER_S = (
    300  # slower than any machine that this was run on: all are parked when the moment comes
)

GOALS = (
    Goal("timers", "run_count", "runs with a timer due at one moment"),
    Goal("timers", "late_start_count", "… of them not parked when it came", 0),
    Goal("timers", "last_fired_s", "due → the last has fired, s", 10),
    Goal("timers", "last_finished_s", "due → the last run has finished, s"),
    Goal("timers", "delay_p50_ms", "delayMs of TimerFired, p50"),
    Goal("timers", "delay_p99_ms", "… p99"),
    Goal("timers", "raw_s", "raw: as many rows in bare grouped commits, s"),
)


def timers(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    with Site() as site:
        return asyncio.run(_measure(site, 500 if is_quick else 10_000))


async def _measure(site: Site, count: int) -> dict[str, Any]:
    limits = await raw.measure(site.dsn, commit_count=200, group_size=GROUP_SIZE)
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=2) as sql:
        due_ms = int((time.time() + 10 + count / STARTS_PER_S) * 1000)

        async def start(connection: Connection, _number: int) -> None:
            await start_run(connection, "alarm", {"due_ms": due_ms})

        took_s = await spread(site.port, range(count), 32, start)
        await until_counted(
            sql, count, "SELECT count(*) FROM smithers.nodes WHERE state = 'waiting-timer'"
        )
        late_ms = max(0.0, time.time() * 1000 - due_ms)
        await asyncio.sleep(max(0.0, due_ms / 1000 - time.time()))
        await until_counted(
            sql, count, "SELECT count(*) FROM smithers.runs WHERE status = 'finished'"
        )
        fired = await sql.fetch(
            """
            SELECT (payload::json ->> 'timestampMs')::bigint AS at_ms, (payload::json ->> 'delayMs')::bigint AS delay_ms
            FROM smithers.events WHERE payload LIKE '{"type":"TimerFired"%'
            """
        )
        finished_ms = await sql.fetchval(
            "SELECT smithers.to_ms(max(finished_at)) FROM smithers.runs"
        )
    delays_s = [row["delay_ms"] / 1000 for row in fired]
    return {
        "run_count": len(fired),
        "starts_per_s": count / took_s,
        "late_start_count": count if late_ms else 0,
        "last_fired_s": (max(row["at_ms"] for row in fired) - due_ms) / 1000,
        "last_finished_s": (finished_ms - due_ms) / 1000,
        "delay_p50_ms": percentile(delays_s, 50),
        "delay_p99_ms": percentile(delays_s, 99),
        "raw_s": count / GROUP_SIZE * COMMITS_PER_RUN * limits["group_mean_ms"] / 1000,
    }
