"""Task bodies that harm the process that they run in: hostile."""

import ctypes
import os
import re
import time

from pydantic import BaseModel

from smithers import Context, Task, workflow


class Harm(BaseModel):
    kind: str


def loop_endlessly() -> None:
    while True:
        pass


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(0)


async def block_the_loop() -> None:
    time.sleep(3600)  # noqa: ASYNC251 - the harm itself


def backtrack() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # the regex engine holds the GIL: every thread stands still


@workflow(input=Harm)
def hostile(ctx: Context[Harm]) -> Task:
    match ctx.input.kind:
        case "endless loop":
            return Task("harm", loop_endlessly, timeout=2)
        case "segfault":
            return Task("harm", crash)
        case "os._exit(0)":
            return Task("harm", leave)
        case "blocked event loop":
            return Task("harm", block_the_loop)
        case _:
            return Task("harm", backtrack)
