"""As many trivial nodes in a sequence as the input says: W3."""

from functools import partial

from pydantic import BaseModel

from smithers import Context, Sequence, Task, workflow


class Length(BaseModel):
    count: int


async def echo(number: int) -> int:
    return number


@workflow(input=Length)
def chain(ctx: Context[Length]) -> Sequence:
    return Sequence(*[Task(f"n{i}", partial(echo, i)) for i in range(ctx.input.count)])
