"""What a fast run commits without a hint, listeners hear of soon afterwards: nobody polls here."""

import asyncio

from smithers.store.hints import Channel
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
STARTED = """
    SELECT 1 FROM smithers.events WHERE run_id = 'r' AND payload LIKE '%"NodeStarted"%"' || $1 || '"%'"""


FAST = """
    from smithers import Sequence, Task, workflow

    @workflow
    def fast(ctx):
        return Sequence(*(Task(f"n{n}", n) for n in range(40)))
"""


async def test_the_end_of_a_fast_run_is_told_of(world: World):
    hints: asyncio.Queue[str] = asyncio.Queue()
    await world.sql.add_listener(Channel.EVENTS, lambda *hint: hints.put_nowait(hint[3]))
    world.write("fast.py", FAST)
    world.start_pool(workers=1)
    await world.start("r", "fast.py")
    async with asyncio.timeout(PATIENCE_S):
        while await world.status("r") != "finished":
            assert await hints.get() == "r"
    await world.sql.reset()


async def test_a_run_that_slows_down_is_told_of_although_it_commits_nothing_more(world: World):
    hints: asyncio.Queue[str] = asyncio.Queue()
    await world.sql.add_listener(Channel.EVENTS, lambda *hint: hints.put_nowait(hint[3]))
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
