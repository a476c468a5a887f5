"""A run with a little of everything: tasks at once and in a row, in threads and not, an approval, signals, a timer."""

import asyncio
import time
from functools import partial

from ledger import mark
from pydantic import BaseModel

from smithers import Approval, Context, Loop, Parallel, Sequence, Signal, Task, Timer, workflow


class Life(BaseModel):
    width: int = 2
    length: int = 2
    step_s: float = 0.1
    is_asking: bool = False
    patience_s: float = 20  # of whoever asks
    letter_count: int = 0
    nap_s: float = 0


async def step(given: Life, number: int) -> int:
    mark("begin")
    await asyncio.sleep(given.step_s)
    mark("end")
    return number


def step_in_thread(given: Life, number: int) -> int:
    mark("begin")
    time.sleep(given.step_s)  # this body is for a thread
    mark("end")
    return number


@workflow(input=Life)
def life(ctx: Context[Life]) -> Sequence:
    given = ctx.input
    letters_are_in = ctx.iteration_count("letter") >= given.letter_count
    return Sequence(
        Parallel(
            *[
                Task(f"a{number}", partial(step if number % 2 else step_in_thread, given, number))
                for number in range(given.width)
            ]
        ),
        given.is_asking and Approval("ok", title="Go on?", timeout=given.patience_s),
        given.letter_count > 0
        and Loop(
            "letters",
            Signal("letter", output=int),
            until=letters_are_in,
            max_iterations=given.letter_count,
        ),
        given.nap_s > 0 and Timer("nap", duration=given.nap_s),
        *[Task(f"b{number}", partial(step, given, number)) for number in range(given.length)],
    )
