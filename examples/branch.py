"""Choose one of two branches by a task's result; the other branch is recorded as skipped."""

from pydantic import BaseModel, Field

from smithers import Branch, Context, Sequence, Task, workflow


class Order(BaseModel):
    """What somebody wants to buy."""

    item: str = "tea"
    amount: float = Field(default=12.0, ge=0)


def is_large(order: Order) -> bool:
    """Say whether somebody should review this order."""
    return order.amount >= 100


@workflow(input=Order)
def check_order(ctx: Context[Order]) -> Sequence:
    """Accept a small order at once; hold a large one for review."""
    order = ctx.input
    large = ctx.output_maybe("is-large", bool)
    return Sequence(
        Task("is-large", lambda: is_large(order)),
        Branch(
            large,
            then=Task("set-aside", lambda: f"{order.item}: somebody looks at {order.amount:.2f}"),
            otherwise=Task("accept", lambda: f"{order.item}: on its way"),
        )
        if large is not None
        else None,
    )
