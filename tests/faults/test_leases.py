"""Who goes on with a run, when: not before the old owner's processes are dead, where that is to be had."""

import os
import signal
from pathlib import Path

from tests.support.world import World, until

AGE = "UPDATE smithers.workers SET heartbeat_at = heartbeat_at - interval '31 s' WHERE dead_at IS NULL AND pid = $1"


async def test_a_body_that_runs_on_without_its_lease_is_killed_before_it_is_tried_again(
    world: World,
) -> None:
    world.write(
        "busy.py",
        """
        import asyncio
        from ledger import mark
        from smithers import Task, current_task, workflow

        async def work():
            attempt = current_task().attempt
            mark(f"attempt {attempt}")
            while attempt == 1:
                await asyncio.sleep(0.01)
                mark("attempt 1 works on")

        @workflow
        def busy(ctx):
            return Task("t", work)
        """,
    )
    lost = world.start_pool(workers=1)
    await world.start("r", "busy.py")
    await world.until_ledger("attempt 1 works on")
    child = await world.owner_pid("r")
    os.kill(lost.pid, signal.SIGSTOP)  # nobody beats for the child any more, and it works on
    try:
        world.start_pool(workers=1)

        async def is_silent() -> bool:
            await world.sql.execute(AGE, child)
            found = await world.sql.fetchval(
                "SELECT death FROM smithers.workers WHERE pid = $1", child
            )
            return found == "silent"

        await until(is_silent, "the child was given up for dead")
        await world.until_status("r", "finished")
        assert world.ledger_path.read_text().splitlines()[-1] == "attempt 2"
        assert not Path(
            f"/proc/{child}/cwd"
        ).exists()  # dead; its parent, which is stopped, does not reap it
    finally:
        os.kill(lost.pid, signal.SIGCONT)
