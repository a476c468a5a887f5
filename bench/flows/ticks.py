"""Nodes that end at a steady pace, for viewers to see: W4."""

import asyncio
from functools import partial

from pydantic import BaseModel

from smithers import Context, Sequence, Task, workflow


class Pace(BaseModel):
    count: int
    pause_s: float


async def tick(number: int, pause_s: float) -> int:
    await asyncio.sleep(pause_s)
    return number


@workflow(input=Pace)
def ticks(ctx: Context[Pace]) -> Sequence:
    pace = ctx.input
    return Sequence(
        *[Task(f"t{i}", partial(tick, i, pace.pause_s)) for i in range(pace.count)],
    )
