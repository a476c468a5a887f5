"""Runs started at a fixed pace, whatever the server does: what is refused, how long does the rest take, do all end?"""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import uvloop

from bench import raw
from bench.client import Connection, Unexpected
from bench.loads.site import Site
from bench.loads.watching import until_counted
from bench.numbers import percentile
from bench.report import Goal
from bench.server import FLOWS_DIR
from gateway.load import raise_file_limit

GROUP_SIZE = 64
DRAIN_LIMIT_S = 300.0
PHASES = {"steady": (200, 300.0), "burst": (1_000, 10.0)}  # starts a second, for so many seconds
QUICK_PHASES = {"steady": (50, 6.0), "burst": (300, 2.0)}

ENDED = "SELECT count(*) FROM smithers.runs WHERE status = 'finished'"
LATENCIES = """
    SELECT extract(epoch FROM finished_at - created_at)::float8 FROM smithers.runs
    WHERE status = 'finished' AND run_id = ANY($1)"""


def _goals(phase: str, title: str) -> tuple[Goal, ...]:
    return (
        Goal("starts", f"{phase}_accepted_count", f"{title}: accepted with 200"),
        Goal("starts", f"{phase}_refused_count", "… refused with 503"),
        Goal("starts", f"{phase}_failed_count", "… any other answer, or none", 0),
        Goal("starts", f"{phase}_lost_count", "… accepted and never finished", 0),
        Goal("starts", f"{phase}_post_p50_ms", "… due → answered, p50 ms"),
        Goal("starts", f"{phase}_post_p99_ms", "… p99 ms", 1_000),
        Goal("starts", f"{phase}_run_p50_ms", "… accepted → finished, p50 ms"),
        Goal("starts", f"{phase}_run_p99_ms", "… p99 ms"),
        Goal("starts", f"{phase}_behind_count", "… not finished when the last was started"),
        Goal("starts", f"{phase}_drain_s", "… until all had, s"),
    )


GOALS = (
    *_goals("steady", "200 starts/s for five minutes"),
    *_goals("burst", "1,000 starts/s for ten seconds"),
    Goal("starts", "raw_grouped_runs_per_s", "raw: five bare commits a run, grouped by 64: runs/s"),
)


@dataclass
class Phase:
    """What became of the starts of one pace."""

    run_ids: list[str] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    refused_count: int = 0
    failed: list[str] = field(default_factory=list)


def starts(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    raise_file_limit()
    with Site(flows=FLOWS_DIR) as site:
        return uvloop.run(_measure(site, QUICK_PHASES if is_quick else PHASES))


async def _measure(site: Site, phases: dict[str, tuple[int, float]]) -> dict[str, Any]:
    limits = await raw.measure(site.dsn, commit_count=300, group_size=GROUP_SIZE)
    result: dict[str, Any] = {"raw_grouped_runs_per_s": limits["grouped_runs_per_s"]}
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql:
        await start_at_pace(site.port, 16, 1.0)  # what is loaded once
        await until_counted(sql, 16, ENDED)
        ended = 16
        for name, (per_s, lasting_s) in phases.items():
            phase = await start_at_pace(site.port, per_s, lasting_s)
            began, behind = time.perf_counter(), len(phase.run_ids)
            behind -= await sql.fetchval(ENDED) - ended
            ended += len(phase.run_ids)
            lost = await _drain(sql, ended)
            took_s = [row[0] for row in await sql.fetch(LATENCIES, phase.run_ids)]
            figures = {
                "accepted_count": len(phase.run_ids),
                "refused_count": phase.refused_count,
                "failed_count": len(phase.failed),
                "lost_count": lost,
                "post_p50_ms": percentile(phase.answered_s, 50),
                "post_p99_ms": percentile(phase.answered_s, 99),
                "run_p50_ms": percentile(took_s, 50),
                "run_p99_ms": percentile(took_s, 99),
                "behind_count": behind,
                "drain_s": time.perf_counter() - began,
                "failures": phase.failed[:20],
            }
            result |= {f"{name}_{key}": value for key, value in figures.items()}
    return result


async def _drain(sql: asyncpg.Pool, wanted: int) -> int:
    """Wait until all that was accepted has finished; return how many have not."""
    try:
        await until_counted(sql, wanted, ENDED, patience_s=DRAIN_LIMIT_S)
    except TimeoutError:
        ended: int = await sql.fetchval(ENDED)
        return wanted - ended
    return 0


async def start_at_pace(port: int, per_s: float, lasting_s: float) -> Phase:
    """Start runs of three nodes at moments that are fixed beforehand: an open loop, whose latencies count from those."""
    phase, free = Phase(), list[Connection]()

    async def start(due: float) -> None:
        connection = free.pop() if free else await stack.enter_async_context(Connection(port))
        try:
            answer = await connection.call("POST", "/v1/runs", {"workflowPath": "three.py"})
        except Unexpected as refusal:
            if ": 503 " in str(refusal):
                phase.refused_count += 1
            else:
                phase.failed.append(str(refusal))
        except (OSError, TimeoutError) as gone:
            phase.failed.append(repr(gone))
        else:
            phase.run_ids.append(answer["runId"])
            phase.answered_s.append(time.perf_counter() - due)
            free.append(connection)  # after any other answer the server may close it

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as starting:
        began = time.perf_counter()
        for number in range(round(per_s * lasting_s)):
            due = began + number / per_s
            await asyncio.sleep(due - time.perf_counter())
            starting.create_task(start(due))
    return phase
