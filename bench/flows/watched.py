"""What bench/waterfall.py draws: a step, one that takes a while, a question, and a tool at the end."""

import time

from smithers import Approval, Context, Sequence, Task, workflow
from smithers.tools import tool


@tool
def publish() -> str:
    """Publish what was approved."""
    time.sleep(0.3)
    return "published"


@workflow
def watched(_ctx: Context) -> Sequence:
    return Sequence(
        Task("prepare", lambda: time.sleep(0.2)),
        Task("work", lambda: time.sleep(2.5)),
        Approval("ask", title="Publish?"),
        Task("publish", lambda: publish().result()),
    )
