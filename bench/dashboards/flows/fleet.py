"""What bench/dashboards has a server do: something for every panel to show."""

import asyncio
import random

from smithers import Approval, Context, Parallel, Retry, Sequence, Signal, Task, Timer, workflow
from smithers.tools import tool


@tool(side_effect=False)
async def look_up() -> int:
    """Take a moment."""
    await asyncio.sleep(random.uniform(0.005, 0.05))
    return 1


@tool
async def publish() -> None:
    """Take longer, and now and then fail."""
    await asyncio.sleep(random.uniform(0.05, 0.2))
    if random.random() < 0.1:
        raise ConnectionError


async def work() -> int:
    await asyncio.sleep(random.uniform(0.01, 0.3))
    return 1


async def rest() -> None:
    await asyncio.sleep(2)


async def flaky() -> int:
    if random.random() < 0.5:
        raise ConnectionError
    return await work()


async def broken() -> None:
    await asyncio.sleep(0.1)
    raise LookupError


async def use_tools() -> None:
    await look_up()
    await publish()


@workflow
def steps(_ctx: Context[object]) -> Sequence:
    return Sequence(Task("one", work), Parallel(Task("two", work), Task("three", work)))


@workflow
def takes_long(_ctx: Context[object]) -> Task:
    return Task("rest", rest)


@workflow
def retries(_ctx: Context[object]) -> Task:
    return Task("flaky", flaky, retries=3, retry=Retry(initial=0.2))


@workflow
def breaks(_ctx: Context[object]) -> Task:
    return Task("broken", broken)


@workflow
def asks(_ctx: Context[object]) -> Sequence:
    return Sequence(Task("before", work), Approval("go", title="Go?"), Task("after", work))


@workflow
def listens(_ctx: Context[object]) -> Sequence:
    return Sequence(Signal("paid"), Task("after", work))


@workflow
def naps(_ctx: Context[object]) -> Sequence:
    return Sequence(Timer("nap", duration=3), Task("after", work))


@workflow
def tools(_ctx: Context[object]) -> Task:
    return Task("use", use_tools)
