"""Call tools, one after another, and say how long each call took."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel

from smithers import Context, Task, workflow
from smithers.tools import bash, read, tool


class Asked(BaseModel):
    count: int


@tool(side_effect=False)
async def nothing() -> None:
    """Do nothing: what is left is the call itself."""


@tool
async def nothing_twice() -> None:
    """Do nothing that may be repeated."""


async def measure(count: int) -> dict[str, list[float]]:
    """Return seconds by kind of call."""
    kinds: dict[str, Callable[[], Awaitable[Any]]] = {
        "nothing": nothing,
        "committed": nothing_twice,
        "read": lambda: read("tools.py"),
        "bash": lambda: bash("true"),
    }
    took: dict[str, list[float]] = {}
    for kind, call in kinds.items():
        await call()  # the first bash starts the jailer
        took[kind] = []
        for _ in range(count):
            began = time.perf_counter()
            await call()
            took[kind].append(time.perf_counter() - began)
    return took


@workflow(input=Asked)
def tools(ctx: Context[Asked]) -> Task[Any]:
    return Task("measure", lambda: measure(ctx.input.count))
