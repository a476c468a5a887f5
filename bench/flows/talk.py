"""A task that prints as many lines as the input says, each an event, then a question, then a few lines more."""

import asyncio
from functools import partial

from pydantic import BaseModel

from smithers import Approval, Context, Sequence, Task, workflow

LINES_PER_TASK = 10_000  # below what an attempt may print


class Talk(BaseModel):
    lines: int


async def talk(lines: int) -> int:
    for number in range(lines):
        print(number % 10)
        if number % 100 == 99:
            await asyncio.sleep(0)
    return lines


@workflow(input=Talk)
def talking(ctx: Context[Talk]) -> Sequence:
    whole, rest = divmod(ctx.input.lines, LINES_PER_TASK)
    sizes = [LINES_PER_TASK] * whole + [rest] * bool(rest)
    return Sequence(
        *[Task(f"talk{i}", partial(talk, size)) for i, size in enumerate(sizes)],
        Approval("more", title="Go on?"),
        Task("last", partial(talk, 3)),
    )
