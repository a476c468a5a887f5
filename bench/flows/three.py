"""Three nodes in a sequence, each with what the one before made: W1 and W2."""

from smithers import Context, Sequence, Task, workflow


async def first() -> int:
    return 1


async def add_one(number: int) -> int:
    return number + 1


@workflow
def three(_ctx: Context[object]) -> Sequence:
    return Sequence(
        Task("first", first),
        Task("second", add_one, needs={"number": "first"}),
        Task("third", add_one, needs={"number": "second"}),
    )
