"""Very many runs that wait for a person: what a list, a decision, a second of idling and the memory come to."""

import asyncio
import random
import time
from typing import Any

import asyncpg

from bench import raw
from bench.client import Connection, start_run
from bench.load import spread
from bench.loads.site import Site, pss_mib
from bench.loads.watching import until_counted
from bench.meters import Meter
from bench.numbers import percentile
from bench.report import Goal

FIRST_COUNT = 2_000  # these tell how fast the real path is, and are the pattern of copies
REAL_PATH_LIMIT_S = 180.0
PARKED = "SELECT count(*) FROM smithers.runs WHERE status = 'waiting-approval' AND owner_id IS NULL"
ENDED = "SELECT count(*) FROM smithers.runs WHERE status = 'finished'"

GOALS = (
    Goal("parked", "run_count", "runs that wait for an approval"),
    Goal("parked", "copied_count", "… of them copied in SQL from one that the real path parked"),
    Goal("parked", "parked_per_s", "started and parked by the real path, runs/s"),
    Goal("parked", "approvals_p50_ms", "GET /v1/approvals?limit=50, p50 ms", 50),
    Goal("parked", "approvals_p99_ms", "… p99 ms", 50),
    Goal("parked", "runs_p50_ms", "GET /v1/runs?status=waiting-approval, p50 ms", 50),
    Goal("parked", "runs_p99_ms", "… p99 ms", 50),
    Goal("parked", "approve_p50_ms", "POST approve, p50 ms", 50),
    Goal("parked", "approve_p99_ms", "… p99 ms", 50),
    Goal("parked", "raw_health_p50_ms", "raw: GET /health, p50 ms"),
    Goal("parked", "raw_commit_p50_ms", "raw: one bare commit, p50 ms"),
    Goal("parked", "gateway_before_mib", "gateway, PSS with the first 2% parked, MiB"),
    Goal("parked", "gateway_after_mib", "… with all parked, MiB"),
    Goal("parked", "children_before_mib", "two children, PSS with the first 2% parked, MiB"),
    Goal("parked", "children_after_mib", "… with all parked, MiB"),
    Goal("parked", "idle_gateway_ms_per_s", "idle over 10 s: gateway, CPU ms a second"),
    Goal("parked", "idle_children_ms_per_s", "… children"),
    Goal("parked", "idle_pool_ms_per_s", "… pool"),
    Goal("parked", "idle_postgres_ms_per_s", "… Postgres"),
)

# Every row that a run has, under a new id; the id inside the events' text as well.
COPIES = (
    """INSERT INTO smithers.run_requests SELECT (r).* FROM (
        SELECT jsonb_populate_record(q, jsonb_build_object('run_id', $1 || '-' || n)) AS r
        FROM smithers.run_requests q, generate_series($2::int, $3::int) n WHERE q.run_id = $1) AS c""",
    *(
        f"""INSERT INTO smithers.{table} SELECT (r).* FROM (
        SELECT jsonb_populate_record(q, jsonb_build_object('run_id', $1 || '-' || n)) AS r
        FROM smithers.{table} q, generate_series($2::int, $3::int) n WHERE q.run_id = $1) AS c"""
        for table in ("nodes", "frames", "approvals", "runs")
    ),
    """INSERT INTO smithers.events SELECT $1 || '-' || n, seq, epoch, replace(payload, $1, $1 || '-' || n)
        FROM smithers.events, generate_series($2::int, $3::int) n WHERE run_id = $1""",
)


def parked(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    count, first = (4_000, 500) if is_quick else (100_000, FIRST_COUNT)
    with Site() as site:
        result = asyncio.run(_park(site, 0, first))
        time.sleep(2)
        before = pss_mib(site)
        rest = count - first
        if rest / result["parked_per_s"] <= REAL_PATH_LIMIT_S:
            result = asyncio.run(_park(site, first, rest))
            copied = 0
        else:
            asyncio.run(copy_parked(site.dsn, 1, rest))
            copied = rest
        time.sleep(5)  # autovacuum has begun by then; what is measured is a server at rest
        after = pss_mib(site)
        with Meter(site) as meter:
            time.sleep(10)
        result |= {"run_count": count, "copied_count": copied}
        for part in ("gateway", "children"):
            result |= {f"{part}_before_mib": before[part], f"{part}_after_mib": after[part]}
        for part, used_s in meter.used_s.items():
            result[f"idle_{part}_ms_per_s"] = used_s * 1000 / meter.took_s
        result["idle_backends_s"] = meter.backends_s
        return result | asyncio.run(_measure(site, 50 if is_quick else 300))


async def _park(site: Site, already: int, count: int) -> dict[str, Any]:
    async def start(connection: Connection, _number: int) -> None:
        await start_run(connection, "question")

    began = time.perf_counter()
    await spread(site.port, range(count), 32, start)
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql:
        await until_counted(sql, already + count, PARKED)
    return {"parked_per_s": count / (time.perf_counter() - began)}


async def copy_parked(dsn: str, first: int, last: int) -> None:
    """Copy a run that waits, all its rows, under ids of its own with the numbers from first to last."""
    sql = await asyncpg.connect(dsn)
    try:
        waiting = "SELECT min(run_id) FROM smithers.approvals WHERE status = 'requested'"
        run_id = await sql.fetchval(waiting)
        async with sql.transaction():
            for copy in COPIES:
                await sql.execute(copy, run_id, first, last)
        await sql.execute("VACUUM ANALYZE")
    finally:
        await sql.close()


async def _measure(site: Site, count: int) -> dict[str, Any]:
    limits = await raw.measure(site.dsn, commit_count=300, group_size=1)
    return {"raw_commit_p50_ms": limits["commit_p50_ms"]} | await measure_parked(site, count)


async def measure_parked(site: Site, count: int) -> dict[str, Any]:
    """Look at lists so many times, and decide as many runs at random; milliseconds."""
    result: dict[str, Any] = {}
    async with Connection(site.port) as connection:
        for name, path in (
            ("raw_health", "/health"),
            ("approvals", "/v1/approvals?limit=50"),
            ("runs", "/v1/runs?status=waiting-approval"),
        ):
            took_s = [await _timed(connection, "GET", path) for _ in range(count)]
            result |= _figures(name, took_s)
        sql = await asyncpg.connect(site.dsn)
        waiting = "SELECT run_id FROM smithers.approvals WHERE status = 'requested'"
        run_ids = [row[0] for row in await sql.fetch(waiting)]
        ended = await sql.fetchval(ENDED)
        chosen = random.Random(7).sample(run_ids, count)
        took_s = [
            await _timed(connection, "POST", f"/v1/runs/{run_id}/nodes/ok/approve", {})
            for run_id in chosen
        ]
        result |= _figures("approve", took_s)
        await until_counted(sql, ended + count, ENDED)
        await sql.close()
    return result


async def _timed(connection: Connection, method: str, path: str, body: Any = None) -> float:
    began = time.perf_counter()
    await connection.call(method, path, body)
    return time.perf_counter() - began


def _figures(name: str, took_s: list[float]) -> dict[str, float]:
    return {f"{name}_p50_ms": percentile(took_s, 50), f"{name}_p99_ms": percentile(took_s, 99)}
