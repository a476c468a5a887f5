"""A node, a person's yes, another node: W5."""

from smithers import Approval, Context, Sequence, Task, workflow


async def prepare() -> str:
    return "ready"


async def publish() -> str:
    return "published"


@workflow
def gate(_ctx: Context[object]) -> Sequence:
    return Sequence(
        Task("prepare", prepare), Approval("ok", title="Go on?"), Task("publish", publish)
    )
