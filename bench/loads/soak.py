"""Half of what the server can do, for a long time, while what has ended is removed: do memory and tables stay as they are?

The pace is half of what a closed loop reached just before, unless another one is given; of ten runs nine have three nodes,
one waits for a person's yes.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import uvloop

from bench.client import Connection, start_run
from bench.load import spread
from bench.loads.site import Site, pss_mib
from bench.loads.watching import ask, until
from bench.report import Goal
from bench.server import FLOWS_DIR
from gateway.load import raise_file_limit
from smithers.store.retention import prune

IN_FLIGHT = 64
GATE_EVERY = 10
SAMPLES = 120
VACUUMED_S = 240.0  # before this, tables still grow with the rows that retention keeps
PARTS = ("gateway", "pool", "children", "postgres")

UNENDED = "SELECT count(*) = 0 FROM smithers.runs WHERE finished_at IS NULL"
# Tombstones are what retention is meant to leave.
TABLES = """
    SELECT relname AS name, n_live_tup AS live, n_dead_tup AS dead, n_tup_upd AS updated, n_tup_hot_upd AS hot,
        pg_total_relation_size(relid) AS bytes
    FROM pg_stat_user_tables WHERE schemaname = 'smithers' AND relname <> 'tombstones' AND n_live_tup + n_dead_tup > 0
    ORDER BY bytes DESC"""

GOALS = (
    Goal("soak", "minutes", "minutes at the pace"),
    Goal("soak", "full_runs_per_s", "raw: what a closed loop reached before, runs/s"),
    Goal("soak", "runs_per_s", "pace, runs/s"),
    Goal("soak", "run_count", "runs, removed a minute after their ends"),
    Goal("soak", "unfinished_count", "… that did not finish", 0),
    Goal("soak", "gateway_mib", "gateway, PSS at the end, MiB"),
    Goal("soak", "gateway_growth_percent", "… growth over the last three quarters, %", 5),
    Goal("soak", "children_mib", "children, PSS at the end, MiB"),
    Goal("soak", "children_growth_percent", "… growth over the last three quarters, %", 5),
    Goal("soak", "pool_growth_percent", "pool, growth over the last three quarters, %", 5),
    Goal("soak", "tables_mib", "tables and indexes at the end, MiB"),
    Goal("soak", "tables_growth_percent", "… growth over the last half, %", 25),
    Goal("soak", "dead_percent", "dead rows in the runs' and nodes' tables at the end, %", 50),
)


@dataclass
class Sample:
    """What was there at one moment."""

    at_s: float
    run_count: int
    mib: dict[str, float]
    tables_mib: float


@dataclass
class Soak:
    """What was seen so far."""

    began: float = field(default_factory=time.monotonic)
    started_count: int = 0
    finished_count: int = 0
    faults: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def growth(self, value: Callable[[Sample], float], from_part: float) -> tuple[float, float]:
        """Return by how much a straight line through the samples grows from a part of the time on, and where it begins."""
        chosen = self.samples[int(len(self.samples) * from_part) :]
        times = [sample.at_s for sample in chosen]
        slope, at_zero = statistics.linear_regression(times, [value(one) for one in chosen])
        return slope * (times[-1] - times[0]), at_zero + slope * times[0]


def soak(
    *, is_quick: bool, minutes: float = 60.0, runs_per_s: float | None = None
) -> dict[str, Any]:
    """Run the load; the quick one lasts 20 s. Without a pace: half of what a closed loop reaches."""
    raise_file_limit()
    lasting_s, full_s, kept_s = (20.0, 5.0, 5.0) if is_quick else (minutes * 60, 15.0, 60.0)
    with Site(flows=FLOWS_DIR) as site:
        return uvloop.run(_measure(site, lasting_s, full_s, kept_s, runs_per_s))


async def _measure(
    site: Site, lasting_s: float, full_s: float, kept_s: float, runs_per_s: float | None
) -> dict[str, Any]:
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql:
        full_per_s = await _reach(site.port, full_s)
        per_s = runs_per_s or full_per_s / 2
        seen = Soak()
        beside: list[Coroutine[Any, Any, None]] = [
            _prune(site, kept_s),
            _sample(site, sql, seen, lasting_s / SAMPLES),
        ]
        tasks = [asyncio.create_task(one) for one in beside]
        await _keep_pace(site.port, seen, per_s, lasting_s)
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until(lambda: sql.fetchval(UNENDED), "all runs have ended")
        tables = [dict(row) for row in await sql.fetch(TABLES)]
    return {
        "minutes": lasting_s / 60,
        "full_runs_per_s": full_per_s,
        "runs_per_s": per_s,
        "run_count": seen.started_count,
        "unfinished_count": seen.started_count - seen.finished_count,
        **_memory(seen),
        **(_tables(seen, tables) if lasting_s >= VACUUMED_S else {}),
        "tables": tables,
        "samples": [vars(sample) for sample in seen.samples],
        "faults": seen.faults[:20],
        "notes": seen.faults[:3],
    }


def _mib(part: str, sample: Sample) -> float:
    return sample.mib[part]


def _memory(seen: Soak) -> dict[str, float]:
    figures = {}
    for part in PARTS:
        grown, first = seen.growth(partial(_mib, part), 0.25)
        figures[f"{part}_mib"] = seen.samples[-1].mib[part]
        figures[f"{part}_growth_mib"] = grown
        figures[f"{part}_growth_percent"] = grown / first * 100
    return figures


def _tables(seen: Soak, tables: list[dict[str, Any]]) -> dict[str, float]:
    grown, first = seen.growth(lambda one: one.tables_mib, 0.5)
    hot = [table for table in tables if table["name"] in {"runs", "nodes"}]
    dead, live = (sum(table[key] for table in hot) for key in ("dead", "live"))
    return {
        "tables_mib": seen.samples[-1].tables_mib,
        "tables_growth_percent": grown / first * 100,
        "dead_percent": dead / max(1, dead + live) * 100,
    }


async def _reach(port: int, lasting_s: float) -> float:
    """Return how many runs a second a closed loop reaches, when all is loaded."""
    await spread(port, range(2 * IN_FLIGHT), IN_FLIGHT, _move)
    began = time.monotonic()
    count = 0

    def numbers() -> Any:
        nonlocal count
        while time.monotonic() < began + lasting_s:
            count += 1
            yield count

    await spread(port, numbers(), IN_FLIGHT, _move)
    return count / (time.monotonic() - began)


async def _keep_pace(port: int, seen: Soak, per_s: float, lasting_s: float) -> None:
    """Start runs at fixed moments, and follow each to its end."""
    free: list[Connection] = []

    async def move(number: int) -> None:
        try:
            connection = free.pop() if free else await stack.enter_async_context(Connection(port))
            await _move(connection, number)
        except Exception as fault:  # noqa: BLE001 - whatever it was, the run did not finish: that is the figure
            seen.faults.append(repr(fault))
        else:
            seen.finished_count += 1
            free.append(connection)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as moving:
        began = time.monotonic()
        for number in range(round(per_s * lasting_s)):
            await asyncio.sleep(began + number / per_s - time.monotonic())
            seen.started_count += 1
            moving.create_task(move(number))


async def _move(connection: Connection, number: int) -> None:
    """Start a run and see its end; every so many wait for a yes."""
    if number % GATE_EVERY:
        await connection.follow(await start_run(connection, "three"))
        return
    run_id = await start_run(connection, "gate")
    path = f"/v1/runs/{run_id}/nodes/ok/approve"

    async def is_approved() -> bool:
        status, _ = await ask(connection, "POST", path, {})
        return status == 200

    await until(is_approved, f"{run_id} is approved")
    await connection.follow(run_id)


async def _prune(site: Site, kept_s: float) -> None:
    while True:
        await asyncio.sleep(kept_s / 4)
        await prune(site.dsn, timedelta(seconds=kept_s))


async def _sample(site: Site, sql: asyncpg.Pool, seen: Soak, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        tables = await sql.fetch(TABLES)
        mib = await asyncio.to_thread(pss_mib, site)
        seen.samples.append(
            Sample(
                time.monotonic() - seen.began,
                seen.finished_count,
                mib,
                sum(table["bytes"] for table in tables) / 2**20,
            )
        )
