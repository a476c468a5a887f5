"""The closed sets of states, as they stand in rows and on the wire."""

from enum import StrEnum
from typing import Final


class RunStatus(StrEnum):
    """Where a run is; `queued` until its first claim."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_APPROVAL = "waiting-approval"
    WAITING_EVENT = "waiting-event"
    WAITING_TIMER = "waiting-timer"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CONTINUED = "continued"

    @property
    def is_terminal(self) -> bool:
        """Nothing happens any more until an explicit resume opens a new era."""
        return self in TERMINAL_STATUSES

    @property
    def is_parked(self) -> bool:
        """Only waits remain: no process holds the run."""
        return self in PARKED_STATUSES


TERMINAL_STATUSES: Final = frozenset(
    {RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.CONTINUED}
)
PARKED_STATUSES: Final = frozenset(
    {RunStatus.WAITING_APPROVAL, RunStatus.WAITING_EVENT, RunStatus.WAITING_TIMER}
)


class NodeState(StrEnum):
    """Where a node is."""

    PENDING = "pending"
    IN_PROGRESS = "in-progress"
    WAITING_APPROVAL = "waiting-approval"
    WAITING_EVENT = "waiting-event"
    WAITING_TIMER = "waiting-timer"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def is_settled(self) -> bool:
        """The tree moves on past the node."""
        return self in SETTLED_STATES

    @property
    def is_waiting(self) -> bool:
        """The node needs the outside."""
        return self in WAITING_STATES


SETTLED_STATES: Final = frozenset({NodeState.FINISHED, NodeState.FAILED, NodeState.SKIPPED})
WAITING_STATES: Final = frozenset(
    {NodeState.WAITING_APPROVAL, NodeState.WAITING_EVENT, NodeState.WAITING_TIMER}
)


class AttemptState(StrEnum):
    """How an attempt ended; one that has not ended has no row."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PARKED = "parked"  # it was about to ask a model, and the run's budget is spent
    LOST = "lost"  # its process died before the result was committed


class TryPhase(StrEnum):
    """Where a Try or a Saga is."""

    BODY = "body"
    CATCH = "catch"  # its body failed, and this is what it does about it
    AFTER = "after"  # its body has ended well: what it does finally
    CAUGHT = "caught"  # what it did about a failure has ended well: what it does finally; or a Saga went on
    FAILED = "failed"  # what it does finally, before the failure goes on to what stands around it
    RAISED = "raised"  # its failure has failed the run
    UNDO = "undo"  # of a Saga: what is done is undone, before the failure goes on
    BROKEN = "broken"  # of a Saga: undone, and its failure has failed the run, for good


class ToolCallState(StrEnum):
    """Where a call of a tool or a model is."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"


class ApprovalStatus(StrEnum):
    """What became of a question put to a person."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DENIED = "denied"
    CANCELLED = "cancelled"
