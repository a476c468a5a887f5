"""A fast run's end is told with its commit; what it commits without a hint, listeners hear of soon: nobody polls here."""

import asyncio

import pytest

from smithers.store.hints import Channel
from tests.support.turns import hear
from tests.support.world import PATIENCE_S, World

STEPS = 6
STUTTER = f"""
    import asyncio
    from pathlib import Path
    from smithers import Sequence, Task, workflow

    async def hold(step):
        while not Path(f"go{{step}}").exists():
            await asyncio.sleep(0.01)

    @workflow
    def stutter(ctx):
        return Sequence(
            *(
                Sequence(
                    *(Task(f"fast{{step}}-{{n}}", n) for n in range(12)),
                    Task(f"hold{{step}}", lambda step=step: hold(step)),
                )
                for step in range({STEPS})
            )
        )
"""
FAST = """
    from smithers import Approval, Sequence, Task, workflow

    @workflow
    def fast(ctx):
        return Sequence(*(Task(f"n{n}", n) for n in range(40)), LAST)
"""
STARTED = """
    SELECT 1 FROM smithers.events WHERE run_id = 'r' AND payload LIKE '%"NodeStarted"%"' || $1 || '"%'"""


@pytest.mark.parametrize(
    ("last", "status"),
    [("Task('last', 0)", "finished"), ("Approval('ok', title='?')", "waiting-approval")],
)
async def test_the_end_of_a_fast_run_is_told_with_its_commit(world: World, last: str, status: str):
    hints = await hear(world.sql, Channel.EVENTS)
    world.write("fast.py", FAST.replace("LAST", last))
    world.start_pool(workers=1, module="tests.support.silent")
    await world.start("r", "fast.py")
    async with asyncio.timeout(PATIENCE_S):
        while await world.status("r") != status:
            assert await hints.get() == "r"
    await world.sql.reset()


async def test_a_run_that_slows_down_is_told_of_although_it_commits_nothing_more(world: World):
    hints = await hear(world.sql, Channel.EVENTS)
    world.write("stutter.py", STUTTER)
    world.start_pool(workers=1)
    await world.start("r", "stutter.py")

    for step in range(STEPS):
        async with asyncio.timeout(PATIENCE_S):
            while await world.sql.fetchval(STARTED, f"hold{step}") is None:
                assert await hints.get() == "r"
        (world.root / f"go{step}").touch()

    await world.until_status("r", "finished")
    await world.sql.reset()
