"""Five short steps that harm nobody: hostile."""

import asyncio

from smithers import Context, Sequence, Task, workflow


async def step() -> None:
    await asyncio.sleep(0.1)


@workflow
def innocent(_ctx: Context[object]) -> Sequence:
    return Sequence(*[Task(f"s{number}", step) for number in range(5)])
