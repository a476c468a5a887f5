"""Workflow code that harms its process, each beside ten runs that do not: how it ends, and what the others pay."""

import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from bench.client import Connection, Unexpected, start_run
from bench.loads.harms import FINISHED, HARMS, Harm
from bench.loads.site import FLOWS_DIR, Site
from bench.loads.watching import read_history, until_counted, until_ended
from bench.report import Goal

QUICK = ("an endless loop", "a segfault", "os._exit", "cancels all tasks", "import: raises")
REFUSED = "refused"  # its source was looked at before it was accepted, and is not run
INNOCENT_COUNT = 10
MEMORY_MIB = 1024
FLOOR_S = 0.5  # five steps of 0.1 s

GOALS = (
    Goal("hostile", "unfinished_count", "innocent runs that did not finish", 0),
    Goal("hostile", "fault_count", "histories with a gap, a node finished twice, or no end", 0),
    Goal("hostile", "wrong_count", "harmful runs that ended by another name than theirs", 0),
    Goal("hostile", "silent_count", "pools that took no further run afterwards", 0),
)


def hostile(*, is_quick: bool) -> dict[str, Any]:
    """Run the load: each harm on a site of its own."""
    harms = [harm for harm in HARMS if not is_quick or harm.name in QUICK]
    rows = [_try(harm) for harm in (None, *harms)]
    return {
        "kinds": rows,
        "unfinished_count": sum(row["unfinished_count"] for row in rows),
        "fault_count": sum(row["fault_count"] for row in rows),
        "wrong_count": sum(not row["is_right"] for row in rows),
        "silent_count": sum(not row["is_serving"] for row in rows),
        "notes": [_line(row) for row in rows],
    }


def _try(harm: Harm | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="smithers-harm-", dir="/tmp") as folder:
        flows = Path(folder)
        shutil.copy(FLOWS_DIR / "innocent.py", flows)
        if harm is not None:
            (flows / "harm.py").write_text(harm.source)
        with Site(flows=flows, memory_mib=MEMORY_MIB) as site:
            return asyncio.run(_measure(site, harm))


async def _measure(site: Site, harm: Harm | None) -> dict[str, Any]:
    """Start one harmful run among ten others; None: only the others, which is the raw figure."""
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
        harmful = await _start(connection) if harm else None
        innocent += [await start_run(connection, "innocent") for _ in range(half)]

        async def wait(run_id: str) -> tuple[str, float]:
            return await until_ended(sql, run_id), time.perf_counter() - began

        ends = await asyncio.gather(*[wait(run_id) for run_id in innocent])
        took_s = sorted(took for _, took in ends)
        ended, ended_s = REFUSED if harm else FINISHED, 0.0
        if harmful:
            _, ended_s = await wait(harmful)
            ended = await _end_of(sql, harmful)
        after = await until_ended(sql, await start_run(connection, "innocent"))
        histories = [await read_history(sql, one) for one in (*innocent, harmful) if one]
        deaths = (
            "SELECT count(*) FROM smithers.workers WHERE death LIKE 'exit-%' AND death <> 'exit-0'"
        )
        return {
            "kind": harm.name if harm else "nothing",
            "ended": ended,
            "ended_s": ended_s,
            "is_right": harm is None or ended in (harm.end, REFUSED),
            "is_serving": after == "finished",
            "death_count": await sql.fetchval(deaths),
            "unfinished_count": sum(status != "finished" for status, _ in ends),
            "fault_count": sum(len(history.faults()) for history in histories),
            "innocent_p50_s": took_s[len(took_s) // 2],
            "innocent_p100_s": took_s[-1],
        }


async def _start(connection: Connection) -> str | None:
    try:
        return await start_run(connection, "harm")
    except Unexpected:
        return None


async def _end_of(sql: asyncpg.Pool, run_id: str) -> str:
    row = await sql.fetchrow("SELECT status, error FROM smithers.runs WHERE run_id = $1", run_id)
    assert row is not None
    error = json.loads(row["error"] or "{}")
    end: str = error.get("code") or error.get("name") or row["status"]
    return end


def _line(row: dict[str, Any]) -> str:
    end = row["ended"] if not row["ended_s"] else f"{row['ended']} after {row['ended_s']:.1f} s"
    return (
        f"{row['kind']:<44}{end:<32}innocent p50 {row['innocent_p50_s']:.2f} s,"
        f" p100 {row['innocent_p100_s']:.2f} s (floor {FLOOR_S:g} s)"
    )
