"""As many signals as the input says, one after another, once somebody has opened the door: signals."""

from pydantic import BaseModel

from smithers import Approval, Context, Loop, Sequence, Signal, workflow


class Inbox(BaseModel):
    count: int


@workflow(input=Inbox)
def inbox(ctx: Context[Inbox]) -> Sequence:
    count = ctx.input.count
    return Sequence(
        Approval("open", title="Begin to wait?"),
        Loop(
            "letters",
            Signal("letter", output=int),
            until=ctx.iteration_count("letter") >= count,
            max_iterations=count + 10,
        ),
    )
