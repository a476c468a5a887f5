"""Kill whoever mirrors, in the middle: what is copied is in order, complete, and there once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway import Rows
from tests.support.mirrors import NAME, assert_equal, two_worlds, until_mirrored
from tests.support.world import World, until

LONG_RUNS = 40
LIVE_RUNS = 5

FLOW = """
    import asyncio
    from smithers import Loop, Task, workflow

    async def turn(n):
        await asyncio.sleep(0.05)
        return n

    @workflow
    def flow(ctx):
        return Loop("again", Task("turn", lambda: turn(ctx.iteration)), max_iterations=100,
                    until=ctx.iteration_count("turn") >= 100)
"""


@pytest.fixture
async def worlds(
    database: str, postgres_server: str, database_template: str, tmp_path: Path
) -> AsyncIterator[tuple[World, World]]:
    async with two_worlds(database, postgres_server, database_template, tmp_path) as both:
        yield both


async def count_events(world: World) -> int:
    return await world.sql.fetchval("SELECT coalesce(sum(last_seq + 1), 0)::int FROM smithers.runs")


async def kill_in_the_middle(home: World, own: World) -> bool:
    """Have a mirror begin to copy, and kill it; say whether it had more to do."""
    before = await count_events(home)
    mirror = own.start_pool(workers=0, mirror_name=NAME, mirror_dsn=home.dsn)

    async def has_moved() -> bool:
        return await count_events(home) > before

    await until(has_moved, "the mirror copies")
    mirror.kill()
    await asyncio.to_thread(mirror.wait)
    return await count_events(home) < await count_events(own)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
async def test_a_mirror_that_is_killed_again_and_again_goes_on_where_it_stopped(
    worlds: tuple[World, World], kills: int
) -> None:
    home, own = worlds
    own.write("flow.py", FLOW)
    rows = Rows(own.sql, own.root)
    long_runs = [
        await rows.add_run(f"long{number}", status="running") for number in range(LONG_RUNS)
    ]
    own.start_pool(workers=1)
    for number in range(LIVE_RUNS):
        await own.start(f"live{number}", "flow.py")
    interrupted = 0
    while interrupted < kills:
        for run_id in long_runs:  # more than it copies before anybody notices that it has begun
            await rows.add_events(run_id, 500, hint=False)
        interrupted += await kill_in_the_middle(home, own)
    own.start_pool(workers=0, mirror_name=NAME, mirror_dsn=home.dsn)
    for number in range(LIVE_RUNS):
        await own.until_status(f"live{number}", "finished", patience_s=120)
    await until_mirrored(home, own)


async def test_of_two_mirrors_one_copies_and_the_other_takes_over(
    worlds: tuple[World, World],
) -> None:
    home, own = worlds
    rows = Rows(own.sql, own.root)
    mirrors = [own.start_pool(workers=0, mirror_name=NAME, mirror_dsn=home.dsn) for _ in range(2)]
    for number in range(50):
        await rows.add_run(f"r{number}", events=50)
    await until_mirrored(home, own)
    for mirror in mirrors:
        await rows.add_run(f"before-{mirror.pid}", events=50)
        mirror.kill()
        await asyncio.to_thread(mirror.wait)
        await rows.add_events("r0", 10)
        if mirror is mirrors[0]:
            await until_mirrored(home, own)
    own.start_pool(workers=0, mirror_name=NAME, mirror_dsn=home.dsn)
    await until_mirrored(home, own)
    await assert_equal(home.sql, own.sql)
