"""What a tool call costs in a task, and a jail by itself: beside the same command without one."""

import asyncio
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import until_ended
from bench.numbers import percentile
from bench.report import Goal
from smithers.tools.toolbox import Command
from worker.sandbox.commands import Commands, SandboxPolicy

TRUE = Command(argv=("/bin/true",), timeout_s=10, max_output_bytes=1000)

GOALS = (
    Goal("tools", "nothing_p50_ms", "a call that only looks, p50 ms"),
    Goal("tools", "committed_p50_ms", "a call that is committed first, p50 ms"),
    Goal("tools", "read_p50_ms", "read of a small file, p50 ms"),
    Goal("tools", "bash_p50_ms", 'bash("true"), p50 ms'),
    Goal("tools", "jail_p50_ms", "a command in the jail, p50 ms"),
    Goal("tools", "open_p50_ms", "the same without one, p50 ms"),
    Goal("tools", "raw_p50_ms", "the same by subprocess.run, p50 ms"),
    Goal("tools", "jail_cpu_ms", "a command in the jail, ms of all CPUs"),
    Goal("tools", "open_cpu_ms", "the same without one, ms of all CPUs"),
    Goal("tools", "raw_cpu_ms", "the same by subprocess.run, ms of all CPUs"),
)


def tools(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    count = 30 if is_quick else 300
    took, cpu_ms = asyncio.run(_measure_jails(count))
    with Site(children=1) as site:
        took |= asyncio.run(_measure_calls(site, count))
    return {
        f"{kind}_p{rank}_ms": percentile(seconds, rank)
        for kind, seconds in took.items()
        for rank in (50, 99)
    } | cpu_ms


async def _measure_calls(site: Site, count: int) -> dict[str, list[float]]:
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=2) as sql,
        Connection(site.port) as connection,
    ):
        run_id = await start_run(connection, "tools", {"count": count})
        status = await until_ended(sql, run_id)
        assert status == "finished", status
        took_s: dict[str, list[float]] = json.loads(
            await sql.fetchval("SELECT output FROM smithers.nodes WHERE run_id = $1", run_id)
        )
        return took_s


async def _measure_jails(count: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return how long each took, in seconds, and what a command of each kind took of the CPUs on average, without starts."""
    began_s = _cpu_s()
    took: dict[str, list[float]] = {"raw": [_timed(_run_raw) for _ in range(count)]}
    cpu_ms = {"raw_cpu_ms": (_cpu_s() - began_s) / count * 1000}
    with tempfile.TemporaryDirectory() as root:
        for kind, is_jailed in (("jail", True), ("open", False)):
            policy = SandboxPolicy(root=Path(root), is_jailed=is_jailed)
            _, one_s = await _run_in_turn(policy, 1)
            took[kind], all_s = await _run_in_turn(policy, count + 1)
            del took[kind][0]
            cpu_ms[f"{kind}_cpu_ms"] = (all_s - one_s) / count * 1000
    return took, cpu_ms


async def _run_in_turn(policy: SandboxPolicy, count: int) -> tuple[list[float], float]:
    """Run so many commands with a jailer of their own; return how long each took, and what all took of the CPUs."""
    began_s = _cpu_s()
    commands, took = Commands(policy), []
    for _ in range(count):
        began = time.perf_counter()
        await commands.run(TRUE)
        took.append(time.perf_counter() - began)
    commands.close()  # only the times of processes that somebody has waited for are counted
    return took, _cpu_s() - began_s


def _cpu_s() -> float:
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _run_raw() -> None:
    subprocess.run(["/bin/true"], check=True)


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
