"""What a caller may set of how a run is run, and how that is kept for its workers."""

from typing import Annotated

from pydantic import Field

from gateway.bodies import write_json
from gateway.fields import MAX_BIGINT, MAX_INTEGER, WHOLE, Body


class BudgetLimits(Body):
    """What a run's agents may use up before a person is asked; the lower of the author's limit and this one applies."""

    tokens: Annotated[int, Field(ge=1, le=MAX_BIGINT), WHOLE] | None = Field(
        None, description="in and out"
    )
    cost: Annotated[float, Field(ge=0.000001, le=MAX_INTEGER)] | None = Field(
        None, description="in dollars"
    )
    seconds: Annotated[float, Field(ge=0.001, le=MAX_INTEGER)] | None = Field(
        None, description="of the attempts of agents, added up"
    )


class RunConfig(Body):
    """What a caller may set, and nothing else: a request narrows, it never widens."""

    max_concurrency: Annotated[int, Field(ge=1, le=MAX_INTEGER), WHOLE] | None = Field(
        None, description="how many attempts of the run are under way at once"
    )
    budget: BudgetLimits | None = None


class StartConfig(RunConfig):
    """What a caller may set at the start."""

    priority: Annotated[int, Field(ge=-100, le=100), WHOLE] | None = Field(
        None, description="of the runs that are due the higher is taken up first; without one: 0"
    )


def write_config(config: RunConfig | None) -> str:
    """Write what is kept for the run's workers; a priority is the claimers', and a column."""
    if config is None:
        return "{}"
    kept = config.model_dump(by_alias=True, exclude_none=True, exclude={"priority"})
    return write_json({name: value for name, value in kept.items() if value != {}})
