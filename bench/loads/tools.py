"""What a tool call costs in a task, and a jail by itself: beside the same command without one."""

import asyncio
import json
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
)


def tools(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    count = 30 if is_quick else 300
    took = asyncio.run(_measure_jails(count))
    with Site(children=1) as site:
        took |= asyncio.run(_measure_calls(site, count))
    return {
        f"{kind}_p{rank}_ms": percentile(seconds, rank)
        for kind, seconds in took.items()
        for rank in (50, 99)
    }


async def _measure_calls(site: Site, count: int) -> dict[str, list[float]]:
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=2) as sql,
        Connection(site.port) as connection,
    ):
        run_id = await start_run(connection, "tools", {"count": count})
        status = await until_ended(sql, run_id)
        assert status == "finished", status
        return json.loads(
            await sql.fetchval("SELECT output FROM smithers.nodes WHERE run_id = $1", run_id)
        )


async def _measure_jails(count: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {"raw": [_timed(_run_raw) for _ in range(count)]}
    with tempfile.TemporaryDirectory() as root:
        for kind, is_jailed in (("jail", True), ("open", False)):
            commands = Commands(SandboxPolicy(root=Path(root), is_jailed=is_jailed))
            await commands.run(TRUE)
            took[kind] = []
            for _ in range(count):
                began = time.perf_counter()
                await commands.run(TRUE)
                took[kind].append(time.perf_counter() - began)
            commands.close()
    return took


def _run_raw() -> None:
    subprocess.run(["/bin/true"], check=True)


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
