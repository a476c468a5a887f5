"""Workflows that the tests here run; copied into a root of their own where one is needed."""

import os
from pathlib import Path

from pydantic import BaseModel

from smithers import (
    Approval,
    ApprovalDecision,
    ContinueAsNew,
    HumanTask,
    Loop,
    Parallel,
    Sequence,
    Signal,
    Subflow,
    Task,
    Timer,
    current_task,
    workflow,
)


class Words(BaseModel):
    """Some words."""

    word: str
    count: int = 1


def break_down():
    raise RuntimeError("the bridge is out")


def wait_for_ever():
    current_task().cancelled.wait()


@workflow(input=Words)
def repeats(ctx):
    return Task("repeat", lambda: " ".join([ctx.input.word] * ctx.input.count))


@workflow
def breaks(ctx):
    return Sequence(Task("cross", break_down))


@workflow
def asks(ctx):
    return Sequence(
        Task("prepare", lambda: "ready"),
        Approval("go", title="Shall we go?", summary="It is dark outside."),
        Task("leave", lambda: "gone"),
    )


@workflow
def naps(ctx):
    return Sequence(Timer("nap", duration=1), Approval("go", title="Go?"), Task("leave", "gone"))


@workflow
def moves_on(ctx):
    return Sequence(
        Approval("now", title="Now?", timeout=2, on_deny="continue"),
        Approval("which", title="Which?", mode="select", options=["red", "white"]),
        Task("end", lambda: ctx.output("which")["selected"]),
    )


class Guest(BaseModel):
    """Who comes."""

    name: str


@workflow
def chooses(ctx):
    wine = ctx.output_maybe("wine", ApprovalDecision)
    seats = ctx.output_maybe("seats", ApprovalDecision)
    return Sequence(
        Approval("wine", title="Which?", mode="select", options=["red", "white"]),
        Approval("seats", title="Who sits where?", mode="rank", options=["Ann", "Bob"]),
        Task("serve", lambda: [wine.selected, seats.ranked]),
    )


@workflow
def invites(ctx):
    return Sequence(HumanTask("guest", prompt="Who comes?", output=Guest), Task("greet", "hello"))


@workflow(queue="rounds")
def counts_down(ctx):
    left = 2 if ctx.carried is None else ctx.carried
    if left == 1:
        return Approval("last", title="The last round?"), Task("left", left)
    return Task("left", left), ContinueAsNew(left - 1)


@workflow(queue="scales")
def weighs(_ctx):
    return Task("weigh", 3)


@workflow
def sends(_ctx):
    return Subflow("parcel", weighs), Task("send", lambda kg: kg, needs={"kg": "parcel"})


@workflow
def hands_over(_ctx):
    return Subflow("counter", counts_down), Task(
        "thank", lambda left: left, needs={"left": "counter"}
    )


@workflow
def asks_twice(_ctx):
    return Parallel(Subflow("wine", asks), Subflow("news", listens)), Task("end", "both")


@workflow
def listens(ctx):
    return Sequence(
        Task("before", lambda: "b"), Signal("paid"), Task("after", lambda: ctx.output("paid"))
    )


@workflow
def hangs(ctx):
    return Sequence(Task("first", os.getpid), Task("hang", wait_for_ever))


@workflow
def sleeps_once(ctx):
    """Hang as long as no file named by the input is there."""

    def until_there():
        path = Path(ctx.input["path"])
        while not path.exists():
            if current_task().cancelled.wait(0.05):
                return None
        return "there"

    return Sequence(Task("first", os.getpid), Task("wait", until_there))


@workflow
def tells_environment(ctx):
    return Task("names", lambda: sorted(os.environ))


@workflow
def goes_round(ctx):
    """Go round, with events each time, until a file named by the input is there."""

    def look():
        current_task().cancelled.wait(0.05)
        return Path(ctx.input["path"]).exists()

    return Loop(
        "rounds", Task("look", look), until=ctx.latest("look") is True, max_iterations=9_999
    )
