"""The closed sets of states, as they are stored and sent."""

from enum import StrEnum
from functools import cached_property
from typing import Final


class RunStatus(StrEnum):
    """The status of a run; `queued` until its first claim."""

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
    """The state of a node."""

    PENDING = "pending"
    IN_PROGRESS = "in-progress"
    WAITING_APPROVAL = "waiting-approval"
    WAITING_EVENT = "waiting-event"
    WAITING_TIMER = "waiting-timer"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @cached_property  # read a dozen times for each node
    def is_settled(self) -> bool:
        """The tree goes on after the node."""
        return self in SETTLED_STATES

    @cached_property
    def is_waiting(self) -> bool:
        """The node waits for something outside the run."""
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
    PARKED = "parked"  # it was about to ask a model, but the run's budget is spent
    LOST = "lost"  # its process died before the result was committed


class TryPhase(StrEnum):
    """The phase of a Try or a Saga."""

    BODY = "body"
    CATCH = "catch"  # its body failed: `catch` runs
    AFTER = "after"  # its body has ended well: `finally_` runs
    CAUGHT = "caught"  # `catch` has ended well, or a Saga went on: `finally_` runs
    FAILED = "failed"  # `finally_` runs, before the failure propagates
    RAISED = "raised"  # its failure has failed the run
    UNDO = "undo"  # of a Saga: completed steps are undone, before the failure propagates
    BROKEN = "broken"  # of a Saga: undone, and its failure has failed the run, for good


class ToolCallState(StrEnum):
    """The state of a call of a tool or a model."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"


class ApprovalStatus(StrEnum):
    """The outcome of a question to a person."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DENIED = "denied"
    CANCELLED = "cancelled"
