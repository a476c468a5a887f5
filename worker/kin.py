"""The hints about other runs that a run's commit changes."""

from collections.abc import Mapping

from smithers.engine.turn import Turn
from smithers.store.claims import ClaimedRun
from smithers.store.hints import Channel


def kin_hints(claim: ClaimedRun, turn: Turn) -> Mapping[Channel, set[str]]:
    """Return hints about the runs that a turn starts, and the parent that waited for this one's end."""
    ending, parent = turn.ending, claim.parent_run_id
    started = turn.children if ending is None else [*turn.children, ending.successor]
    queues: set[str] = {child.queue or claim.queue for child in started if child is not None}
    hints: dict[Channel, set[str]] = {}
    if ending is not None and ending.status.is_terminal and parent is not None:
        hints[Channel.EVENTS] = hints[Channel.NEWS] = {parent}
        queues.add(claim.queue)
    if queues:
        hints[Channel.DUE] = queues
    return hints
