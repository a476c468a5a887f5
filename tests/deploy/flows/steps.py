"""Steps that need nothing but the image."""

from smithers import Sequence, Task, workflow


@workflow
def steps(_ctx):
    return Sequence(Task("one", lambda: 1), Task("two", lambda one: one + 1, needs={"one": "one"}))
