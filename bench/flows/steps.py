"""Slow nodes that write into a ledger when their body has ended: W6."""

import asyncio
import os
from functools import partial

from pydantic import BaseModel

from smithers import Context, Sequence, Task, workflow


class Steps(BaseModel):
    count: int
    step_s: float
    ledger: str


async def step(run_id: str, number: int, given: Steps) -> int:
    await asyncio.sleep(given.step_s)
    # One write with O_APPEND: lines of several processes do not mix, and a kill leaves a line or none.
    ledger = os.open(given.ledger, os.O_WRONLY | os.O_APPEND)
    os.write(ledger, f"{run_id} s{number}\n".encode())
    os.close(ledger)
    return number


@workflow(input=Steps)
def steps(ctx: Context[Steps]) -> Sequence:
    run_id, given = ctx.run_id, ctx.input
    return Sequence(
        *[Task(f"s{i}", partial(step, run_id, i, given)) for i in range(given.count)],
    )
