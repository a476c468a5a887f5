"""Bodies that harm their process, each beside ten runs that do not: how each ends, and what the others pay."""

import asyncio
import json
import time
from typing import Any

import asyncpg

from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import read_history, until_counted, until_ended
from bench.report import Goal

KINDS = (
    "endless loop",
    "segfault",
    "os._exit(0)",
    "blocked event loop",
    "catastrophic regex",
)
INNOCENT_COUNT = 10
FLOOR_S = 0.5  # five steps of 0.1 s

GOALS = (
    Goal("hostile", "unfinished_count", "innocent runs that did not finish", 0),
    Goal("hostile", "fault_count", "histories with a gap, a node finished twice, or no end", 0),
)


def hostile(*, is_quick: bool) -> dict[str, Any]:
    """Run the load; the quick one leaves out what is only noticed after 20 s."""
    rows = []
    for kind in (None, *(KINDS[:3] if is_quick else KINDS)):
        with Site() as site:
            rows.append(asyncio.run(_measure(site, kind)))
    return {
        "kinds": rows,
        "unfinished_count": sum(row["unfinished_count"] for row in rows),
        "fault_count": sum(row["fault_count"] for row in rows),
        "notes": [_line(row) for row in rows],
    }


async def _measure(site: Site, kind: str | None) -> dict[str, Any]:
    """Start one harmful run among ten others; kind None: only the others, which is the raw figure."""
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=4) as sql,
        Connection(site.port) as connection,
    ):
        living = "SELECT count(*) FROM smithers.workers WHERE dead_at IS NULL"
        await until_counted(sql, site.child_count, living)
        await until_ended(sql, await start_run(connection, "innocent"))  # what is loaded once
        began = time.perf_counter()
        half = INNOCENT_COUNT // 2
        innocent = [await start_run(connection, "innocent") for _ in range(half)]
        harmful = await start_run(connection, "hostile", {"kind": kind}) if kind else None
        innocent += [await start_run(connection, "innocent") for _ in range(half)]

        async def wait(run_id: str) -> tuple[str, float]:
            return await until_ended(sql, run_id), time.perf_counter() - began

        ends = await asyncio.gather(*[wait(run_id) for run_id in innocent])
        took_s = sorted(took for _, took in ends)
        harm = {
            "kind": kind or "nothing",
            "ended": "",
            "code": "",
            "ended_s": 0.0,
            "death_count": 0,
        }
        if harmful:
            harm["ended"], harm["ended_s"] = await wait(harmful)
            error = await sql.fetchval("SELECT error FROM smithers.runs WHERE run_id = $1", harmful)
            harm["code"] = json.loads(error or "{}").get("code")
            harm["death_count"] = await sql.fetchval(
                "SELECT count(*) FROM smithers.workers WHERE death LIKE 'exit-%'"
            )
        histories = [await read_history(sql, one) for one in (*innocent, harmful) if one]
    return harm | {
        "unfinished_count": sum(status != "finished" for status, _ in ends),
        "fault_count": sum(len(history.faults()) for history in histories),
        "innocent_p50_s": took_s[len(took_s) // 2],
        "innocent_p100_s": took_s[-1],
    }


def _line(row: dict[str, Any]) -> str:
    end = f"{row['ended']} {row['code']} after {row['ended_s']:.1f} s" if row["ended"] else "-"
    return (
        f"{row['kind']:<20}{end:<42}innocent p50 {row['innocent_p50_s']:.2f} s,"
        f" p100 {row['innocent_p100_s']:.2f} s (floor {FLOOR_S:g} s)"
    )
