"""One timer, due when the input says: timers."""

from datetime import UTC, datetime

from pydantic import BaseModel

from smithers import Context, Timer, workflow


class Moment(BaseModel):
    due_ms: int


@workflow(input=Moment)
def alarm(ctx: Context[Moment]) -> Timer:
    return Timer("alarm", until=datetime.fromtimestamp(ctx.input.due_ms / 1000, UTC))
