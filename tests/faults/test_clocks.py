"""Hosts whose clocks are minutes apart, or leap, and a database whose own clock is set: nobody steals, loses or repeats.

Whatever decides (leases, timers, time-outs, who is silent) goes by the database's clock, and, between two of its answers,
by clocks that only count.
"""

import asyncio
import os
import signal
from typing import Any

import asyncpg
import pytest

from chaos import clocks
from chaos.checker import Runs
from chaos.site import Site
from tests.support.ordeals import go_through, site_on
from tests.support.world import World, until

SKEW_S = 600
CLOCK = """
    CREATE OR REPLACE FUNCTION smithers.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT clock_timestamp() + interval '{seconds} seconds' $$
"""
LIVING = "SELECT count(*) FROM smithers.workers WHERE dead_at IS NULL"
DEAD = "SELECT death FROM smithers.workers WHERE dead_at IS NOT NULL"


def fired(runs: Runs) -> list[dict[str, Any]]:
    return [
        event.body for run in runs.values() for event in run.events if event.type == "TimerFired"
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not clocks.CAN_MOVE, reason="cc is not installed: it makes what moves clocks")
async def test_hosts_whose_clocks_are_minutes_apart_break_no_promise() -> None:
    """Gateways and pools ahead, behind and leaping, and each pool has a child killed, so that runs are taken over."""

    async def skew(site: Site) -> asyncpg.Connection:
        for part, seconds in zip(site.parts, (SKEW_S, -SKEW_S, SKEW_S, -SKEW_S, 0), strict=True):
            part.clock.move(seconds)
        for leap in range(80):
            site.pools[-1].clock.move((-SKEW_S, 0, SKEW_S)[leap % 3])
            if leap in {20, 35, 50}:
                await kill_child(site, (leap - 20) // 15)
            await asyncio.sleep(0.1)
        return await site.connect()

    async with site_on(pools=3) as site:
        runs, ledger = await go_through(site, skew)
    shown = {round((line["shown"] - line["at"]) / SKEW_S) for line in ledger}
    assert shown == {-1, 0, 1}  # bodies were really told other times
    assert fired(runs)
    assert all(-50 <= late["delayMs"] < 20_000 for late in fired(runs))


async def kill_child(site: Site, number: int) -> None:
    for pid in (await site.find_children(site.pools[number]))[:1]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_database_whose_clock_is_set_breaks_no_promise() -> None:
    """Set back ten minutes, right again, and then ahead: what was due while it was right is due again."""

    async def set_clock(site: Site) -> asyncpg.Connection:
        connection = await site.connect()
        for seconds in (-SKEW_S, 0, SKEW_S):
            await asyncio.sleep(3)
            await connection.execute(CLOCK.format(seconds=seconds))
        return connection

    async with site_on(pools=2) as site:
        runs, _ = await go_through(site, set_clock, has_true_times=False)
    assert fired(runs)


async def test_nobody_is_given_up_for_dead_because_the_databases_clock_leaps(world: World) -> None:
    """Each pool's heartbeats look ten minutes old to the other, until its next one."""
    for _ in range(2):
        world.start_pool(workers=1)

    async def are_there() -> bool:
        return await world.sql.fetchval(LIVING) == 2

    await until(are_there, "both pools have a child")
    for leap in (1, 2):
        await world.sql.execute(CLOCK.format(seconds=leap * SKEW_S))

        async def have_beaten() -> bool:
            return await world.sql.fetchval(
                """
                SELECT count(*) = 2 FROM smithers.workers
                WHERE heartbeat_at > smithers.clock() - interval '500 s' AND dead_at IS NULL
                """
            )

        await until(have_beaten, "both beat by the new clock")
    assert await world.sql.fetch(DEAD) == []
