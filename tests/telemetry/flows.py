"""Workflows whose metrics, traces and logs the tests here look at; copied into a root of their own."""

import os
import time
from pathlib import Path

from pydantic import BaseModel

from smithers import Approval, Parallel, Sequence, Signal, Task, Timer, workflow
from smithers.current import current_task
from smithers.telemetry.tracing import span
from smithers.tools import tool


class Told(BaseModel):
    """What a run is told."""

    word: str = ""


@tool(side_effect=False)
def deeper() -> int:
    """Be called by another tool."""
    return 1


@tool(name="look-up", side_effect=False)
def look_up() -> int:
    """Be called by a task's body."""
    return deeper().result()


def ask_tools():
    with span("own"):
        return look_up().result()


def fail_once():
    if current_task().attempt == 1:
        raise LookupError("not yet")
    return 2


def hold_on():
    """Take up to a minute, or until somebody lets go."""
    place = Path(os.environ["LET_GO"])
    until = time.monotonic() + 60
    while not place.exists() and time.monotonic() < until:
        time.sleep(0.02)


@workflow(input=Told)
def chain(ctx):
    return Sequence(
        Task("a", ask_tools),
        Task("b", lambda: ctx.input.word),
        Task("c", lambda: "done"),
    )


@workflow
def retries(ctx):
    return Task("flaky", fail_once, retries=1)


@workflow
def asks(ctx):
    return Sequence(
        Task("before", lambda: 1), Approval("go", title="Go?"), Task("after", lambda: 2)
    )


@workflow
def listens(ctx):
    return Sequence(Signal("paid"), Task("after", lambda: 1))


@workflow
def naps(ctx):
    return Sequence(Timer("nap", duration=0.2), Task("after", lambda: 1))


@workflow
def holds(ctx):
    return Sequence(Task("first", lambda: 1), Task("hold", hold_on), Task("last", lambda: 3))


@workflow
def dies(ctx):
    return Task("die", lambda: os._exit(3))


@workflow
def breaks(ctx):
    return Parallel(Task("cross", lambda: 1 / 0))
