"""Say where to look for what a run's commit has changed of other runs."""

from smithers.engine.turn import Turn
from smithers.store.claims import ClaimedRun
from smithers.store.hints import Channel, Hints


def hint_kin(hints: Hints, claim: ClaimedRun, turn: Turn) -> None:
    """Hint at the runs that a committed turn has started, and at the parent that waited for this one's end."""
    ending, parent = turn.ending, claim.parent_run_id
    started = turn.children if ending is None else [*turn.children, ending.successor]
    queues = {child.queue or claim.queue for child in started if child is not None}
    if ending is not None and ending.status.is_terminal and parent is not None:
        hints.send(Channel.EVENTS, (parent,))
        hints.send(Channel.NEWS, (parent,))
        queues.add(claim.queue)
    if queues:
        hints.send(Channel.DUE, sorted(queues))
