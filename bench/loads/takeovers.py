"""Kill what owns a run, in each way that a death can be noticed: how long until somebody goes on with it.

Times are from the fault (or what the row says) to the commit of RunAutoResumed, by the clock of this one machine.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from bench import processes
from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import read_history, until, until_counted, until_ended
from bench.numbers import percentile
from bench.report import Goal

LIVING = "SELECT count(*) FROM smithers.workers WHERE dead_at IS NULL"
# For (c) nobody counts as gone in the first 10 s of Postgres; for (d) silence counts from its start at the earliest.
SERVER_UP_S = {"gone": 12, "silent": 35}
# A pool that was stopped takes that for an outage, and gives nobody up for 10 s.
BELIEVES_AFTER_S = 12.0

GOALS = (
    Goal("takeovers", "child_p50_s", "(a) child killed → run goes on, p50 s"),
    Goal("takeovers", "child_p100_s", "… p100 s", 5),
    Goal("takeovers", "pool_p50_s", "(b) whole pool killed: restart → run goes on, p50 s"),
    Goal("takeovers", "pool_p100_s", "… p100 s"),
    Goal("takeovers", "raw_start_p50_s", "raw: a pool's start until its first child lives, p50 s"),
    Goal("takeovers", "gone_p50_s", "(c) another host's pool killed → run goes on, p50 s"),
    Goal("takeovers", "gone_p100_s", "… p100 s", 5),
    Goal("takeovers", "silent_p50_s", "(d) stopped; heartbeat aged by 31 s → run goes on, p50 s"),
    Goal("takeovers", "silent_p100_s", "… p100 s (and 30 s of silence before it: 40)", 10),
    Goal("takeovers", "kill_count", "faults in all"),
    Goal("takeovers", "fault_count", "histories with a gap, a node finished twice, or no end", 0),
)


class Rounds:
    """One site, one gateway, a run for each fault."""

    def __init__(self, site: Site, sql: asyncpg.Pool) -> None:
        self.site = site
        self.sql = sql
        self.faults: list[str] = []
        self.kill_count = 0

    async def take(
        self, count: int, fault: Callable[[int], Awaitable[float]], *, pause_s: float = 0.0
    ) -> list[float]:
        """Play rounds of one kind, with a pause before each; return how long each took, in seconds."""
        took_s = []
        for _ in range(count):
            await asyncio.sleep(pause_s)
            took_s.append(await self._take_one(fault))
        return took_s

    async def _take_one(self, fault: Callable[[int], Awaitable[float]]) -> float:
        await until_counted(self.sql, self.site.child_count, LIVING)
        async with Connection(self.site.port) as connection:
            run_id = await start_run(connection, "steady")
        pid = await until(lambda: self._find_owner(run_id), f"run {run_id} is in flight")
        began_at = await fault(pid)
        self.kill_count += 1
        await until_ended(self.sql, run_id)
        history = await read_history(self.sql, run_id)
        self.faults += [f"{run_id}: {fault}" for fault in history.faults()]
        resumed = history.of("RunAutoResumed")
        if len(resumed) != 1:
            self.faults.append(f"{run_id}: RunAutoResumed {len(resumed)} times")
        resumed_at: float = resumed[0]["timestampMs"] / 1000
        return resumed_at - began_at

    async def _find_owner(self, run_id: str) -> int | None:
        pid: int | None = await self.sql.fetchval(
            """
            SELECT w.pid FROM smithers.runs r JOIN smithers.workers w ON w.worker_id = r.owner_id
            JOIN smithers.nodes n USING (run_id)
            WHERE r.run_id = $1 AND n.node_id = 'gate' AND n.state = 'in-progress'
            """,
            run_id,
        )
        return pid

    async def until_server_is_up(self, seconds: float) -> None:
        """Wait until Postgres has run for so long."""
        await until_counted(
            self.sql,
            1,
            "SELECT (clock_timestamp() - pg_postmaster_start_time() > make_interval(secs => $1))::int",
            seconds,
        )


def takeovers(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    count, silent_count = (3, 2) if is_quick else (95, 15)
    with Site() as one, Site(pools=2, children=1) as two:
        result, more = asyncio.run(_on_both(one, two, count, silent_count))
    faults = result.pop("faults") + more.pop("faults")
    kill_count = result.pop("kill_count") + more.pop("kill_count")
    return {
        **result,
        **more,
        "kill_count": kill_count,
        "fault_count": len(faults),
        "notes": faults[:20],
    }


async def _on_both(
    one: Site, two: Site, count: int, silent_count: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Play on two sites at once: a takeover is mostly waiting, and the figures are the worse for it, if anything."""
    return await asyncio.gather(_on_one_pool(one, count), _on_two_pools(two, count, silent_count))


async def _on_one_pool(site: Site, count: int) -> dict[str, Any]:
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=2) as sql:
        rounds = Rounds(site, sql)
        starts_s: list[float] = []

        async def kill_child(pid: int) -> float:
            began_at = time.time()
            os.kill(pid, signal.SIGKILL)
            return began_at

        async def kill_pool(pid: int) -> float:
            site.kill_pool(site.find_pool(pid))
            began_at = time.time()
            site.start_pool()
            first = "SELECT count(*) FROM smithers.workers WHERE started_at > to_timestamp($1)"
            await until_counted(sql, 1, first, began_at)
            starts_s.append(time.time() - began_at)
            return began_at

        result = _figures("child", await rounds.take(count, kill_child))
        result |= _figures("pool", await rounds.take(count, kill_pool))
        result["raw_start_p50_s"] = percentile(starts_s, 50) / 1000
        return result | {"faults": rounds.faults, "kill_count": rounds.kill_count}


async def _on_two_pools(site: Site, count: int, silent_count: int) -> dict[str, Any]:
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=2) as sql:
        rounds = Rounds(site, sql)

        async def lose_host(pid: int) -> float:
            pool = site.find_pool(pid)
            await sql.execute(
                """
                UPDATE smithers.workers SET boot_id = 'another host' WHERE dead_at IS NULL AND pool_id =
                    (SELECT pool_id FROM smithers.workers WHERE pid = $1 AND dead_at IS NULL)
                """,
                pid,
            )
            began_at = time.time()
            site.kill_pool(pool)
            site.start_pool()
            return began_at

        stopped: list[int] = []

        async def silence(pid: int) -> float:
            pool = site.find_pool(pid)
            stopped[:] = [pool.pid, *processes.descendants(pool.pid)]
            for each in stopped:
                os.kill(each, signal.SIGSTOP)
            began_at = time.time()
            await sql.execute(
                """
                UPDATE smithers.workers SET heartbeat_at = heartbeat_at - interval '31 seconds'
                WHERE dead_at IS NULL AND pool_id =
                    (SELECT pool_id FROM smithers.workers WHERE pid = $1 AND dead_at IS NULL)
                """,
                pid,
            )
            buried = "SELECT count(*) FROM smithers.workers WHERE pid = $1 AND death = 'silent'"
            await until_counted(sql, 1, buried, pid)
            await asyncio.sleep(1)  # the frozen one sleeps through the takeover
            for each in stopped:
                # Who buried it has killed it: it is of this host.
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)
            return began_at

        await rounds.until_server_is_up(SERVER_UP_S["gone"])
        result = _figures("gone", await rounds.take(count, lose_host))
        await rounds.until_server_is_up(SERVER_UP_S["silent"])
        result |= _figures(
            "silent", await rounds.take(silent_count, silence, pause_s=BELIEVES_AFTER_S)
        )
        return result | {"faults": rounds.faults, "kill_count": rounds.kill_count}


def _figures(name: str, took_s: list[float]) -> dict[str, Any]:
    return {
        f"{name}_p50_s": percentile(took_s, 50) / 1000,
        f"{name}_p100_s": max(took_s),
        f"{name}_all_s": sorted(took_s),
    }
