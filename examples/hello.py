"""Greet somebody: two tasks, one after the other."""

from smithers import Context, Sequence, Task, workflow


@workflow
def hello(ctx: Context) -> Sequence:
    """Say hello to input.name, loudly."""
    name = ctx.input.get("name", "world")
    greeting = ctx.output_maybe("greet", str)
    return Sequence(
        Task("greet", lambda: f"hello, {name}"),
        Task("shout", lambda: greeting.upper() + "!"),
    )
