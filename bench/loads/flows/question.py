"""A person's yes, with a time-out where the input has one, and what follows from it: parked, races."""

from pydantic import BaseModel

from smithers import Approval, Context, Sequence, Task, workflow


class Patience(BaseModel):
    timeout_s: float | None = None


async def publish() -> str:
    return "published"


@workflow(input=Patience)
def question(ctx: Context[Patience]) -> Sequence:
    return Sequence(
        Approval("ok", title="Go on?", timeout=ctx.input.timeout_s), Task("publish", publish)
    )
