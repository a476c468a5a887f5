"""Find a square root by Newton's method: a loop that ends when its last result is good enough."""

from pydantic import BaseModel, Field

from smithers import Context, Loop, Sequence, Task, workflow


class Request(BaseModel):
    """The number, and the precision."""

    number: float = Field(default=2.0, gt=0)
    tolerance: float = Field(default=1e-9, gt=0)


def improve(guess: float, number: float) -> float:
    """Take one step."""
    return (guess + number / guess) / 2


@workflow(input=Request)
def square_root(ctx: Context[Request]) -> Sequence:
    """Improve a guess until its square is close enough, thirty times at the most."""
    number = ctx.input.number
    guess = ctx.latest("guess", float) or max(number, 1.0)
    is_good = abs(guess * guess - number) <= ctx.input.tolerance * number
    return Sequence(
        Loop(
            "newton",
            Task("guess", lambda: improve(guess, number)),
            until=is_good,
            max_iterations=30,
        ),
        Task("root", lambda: ctx.latest("guess", float)),
    )
