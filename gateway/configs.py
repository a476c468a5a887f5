"""A run's configuration by its caller, and how it is stored for its workers."""

from typing import Annotated

from pydantic import Field

from gateway.bodies import write_json
from gateway.fields import MAX_BIGINT, MAX_INTEGER, WHOLE, Body


class BudgetLimits(Body):
    """How much a run's agents may use before a person is asked; the lower of the author's limit and this one applies."""

    tokens: Annotated[int, Field(ge=1, le=MAX_BIGINT), WHOLE] | None = Field(
        None, description="input and output tokens"
    )
    cost: Annotated[float, Field(ge=0.000001, le=MAX_INTEGER)] | None = Field(
        None, description="in dollars"
    )
    seconds: Annotated[float, Field(ge=0.001, le=MAX_INTEGER)] | None = Field(
        None, description="total time of agents' attempts"
    )


class RunConfig(Body):
    """What a caller may set: a request narrows the author's settings, it never widens them."""

    max_concurrency: Annotated[int, Field(ge=1, le=MAX_INTEGER), WHOLE] | None = Field(
        None, description="how many attempts of the run may be running at once"
    )
    budget: BudgetLimits | None = None


class StartConfig(RunConfig):
    """What a caller may set at the start."""

    priority: Annotated[int, Field(ge=-100, le=100), WHOLE] | None = Field(
        None, description="due runs of higher priority are claimed first; default: 0"
    )


def write_config(config: RunConfig | None) -> str:
    """Encode what is set for the run's workers; the priority is for claimers, and a column."""
    if config is None:
        return "{}"
    kept = config.model_dump(by_alias=True, exclude_none=True, exclude={"priority"})
    return write_json({name: value for name, value in kept.items() if value != {}})
