"""A node that has finished, and one in flight until its owner has died: takeovers."""

import asyncio

from smithers import Context, Sequence, Task, current_task, workflow


async def before() -> str:
    return "once"


async def gate() -> int:
    while current_task().attempt == 1:
        await asyncio.sleep(0.01)
    return current_task().attempt


async def after(attempt: int) -> int:
    return attempt


@workflow
def steady(_ctx: Context[object]) -> Sequence:
    return Sequence(
        Task("before", before), Task("gate", gate), Task("after", after, needs={"attempt": "gate"})
    )
