"""Hash a hundred words concurrently and add up the results.

Node ids come from data: a resumed run finds its finished words by name, wherever they are in the list.
"""

import hashlib

from pydantic import BaseModel, Field

from smithers import Context, Parallel, Sequence, Task, workflow


class Request(BaseModel):
    """How many words."""

    count: int = Field(default=100, ge=1, le=10_000)


def digest(word: str) -> int:
    """Hash one word; a plain function runs in a thread."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:2])


@workflow(input=Request)
def fan_out(ctx: Context[Request]) -> Sequence:
    """Run `count` tasks in parallel, then one over all their outputs."""
    words = [f"word-{number}" for number in range(ctx.input.count)]
    return Sequence(
        Parallel(Task(word, lambda word=word: digest(word)) for word in words),
        Task("sum", lambda: sum(ctx.output(word, int) for word in words)),
    )
