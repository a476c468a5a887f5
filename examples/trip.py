"""Book a trip as a whole or not at all, in a child run for each traveller, after two questions."""

from pydantic import BaseModel, Field

import smithers
from smithers import (
    Approval,
    ApprovalDecision,
    Context,
    HumanTask,
    Parallel,
    Saga,
    Sequence,
    Step,
    Subflow,
    Task,
    TaskError,
    Try,
)


class Trip(BaseModel):
    """The travellers, and the possible means of transport."""

    travellers: list[str] = Field(default=["Ada", "Grace"], min_length=1, max_length=20)
    ways: list[str] = Field(default=["train", "plane"], min_length=1)
    beds: int = Field(default=2, ge=0)


class Wish(BaseModel):
    """What the form asks for."""

    nights: int = Field(ge=1, le=30)


class Stay(BaseModel):
    """The input of one traveller's run."""

    traveller: str
    way: str
    nights: int
    has_bed: bool


def reserve_bed(stay: Stay) -> str:
    """Reserve a bed, or say that there is none."""
    if not stay.has_bed:
        raise LookupError(f"no bed is left for {stay.traveller}")
    return f"{stay.nights} nights for {stay.traveller}"


def apologise(error: TaskError | None) -> str:
    """Say why there is no trip."""
    return f"no trip: {error.message}" if error else "no trip"


@smithers.workflow(input=Stay)
def book(ctx: Context[Stay]) -> Saga:
    """Book the way and the bed of one traveller; without a bed, give the way back."""
    stay = ctx.input
    return Saga(
        "booking",
        Step(
            Task("way", lambda: f"{stay.way} for {stay.traveller}"),
            Task("give-way-back", lambda: f"{stay.way} of {stay.traveller} given back", retries=5),
        ),
        Step(Task("bed", lambda: reserve_bed(stay))),
    )


@smithers.workflow(input=Trip)
def trip(ctx: Context[Trip]) -> Sequence:
    """Ask how and how long, then book for everybody at once."""
    way = ctx.output_maybe("way", ApprovalDecision)
    wish = ctx.output_maybe("wish", Wish)
    return Sequence(
        Approval("way", title="How do they travel?", mode="select", options=ctx.input.ways),
        HumanTask("wish", prompt="How long do they stay?", output=Wish),
        Try(
            "bookings",
            way
            and wish
            and Parallel(
                Subflow(
                    f"book-{number}",
                    book,
                    {
                        "traveller": traveller,
                        "way": way.selected,
                        "nights": wish.nights,
                        "has_bed": number < ctx.input.beds,
                    },
                )
                for number, traveller in enumerate(ctx.input.travellers)
            ),
            catch=Task("apologise", lambda: apologise(ctx.error("bookings"))),
            finally_=Task("say", lambda: f"{len(ctx.input.travellers)} have been told"),
        ),
    )


# Of the two in this file, the one that is started by default.
workflow = trip
