"""Greet somebody: two tasks, one after the other."""

from smithers import Context, Sequence, Task, workflow


def shout(greeting: str) -> str:
    """Say it louder."""
    return greeting.upper() + "!"


@workflow
def hello(ctx: Context) -> Sequence:
    """Say hello to input.name, loudly."""
    name = ctx.input.get("name", "world")
    return Sequence(
        Task("greet", lambda: f"hello, {name}"),
        Task("shout", shout, needs={"greeting": "greet"}),
    )
