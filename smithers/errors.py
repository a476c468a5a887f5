"""The exception tree: one class for each decision that a caller makes.

SmithersError
├── OutputMissing           a builder asked for an output that is not there (yet)
├── WorkflowError           what an author wrote cannot be run: told to the author, fails the run
│   ├── DuplicateNodeId
│   ├── InvalidTree
│   └── RenderFailed
├── InvalidOutput           what a task returned is no JSON, too large, or does not fit its model
├── InvalidInput            what a caller sent does not fit the workflow's input model
├── SourceError             see smithers.source.errors
└── StoreError              the database refused (see smithers.store.refusals), or did not answer
    ├── LeaseLost           another worker holds the run now: stop at once, write nothing
    ├── AnswerTooLarge      what was asked for, or is to be written, is more than one value of the database holds
    └── StoreUnavailable    the database does not answer: whether the last write was kept is not known
        ├── StoreStarting   it has been started, and takes no connections yet
        ├── RowsHeld        another transaction keeps rows that were asked for: nothing was written
        │   └── Deadlocked  and waited for what this one had: the same call, made again, goes through
        └── CallTooLong     it has given a call up for its length: what was committed by then stands
"""

from typing import Any


class SmithersError(Exception):
    """Root of everything that this project raises on purpose."""

    code = "SERVER_ERROR"


class OutputMissing(SmithersError):
    """A builder asked for the output of a node that has none yet."""

    code = "OUTPUT_MISSING"


class WorkflowError(SmithersError):
    """What the author wrote cannot be run."""

    code = "RENDER_FAILED"


class DuplicateNodeId(WorkflowError):
    """Two leaves of one tree have the same id."""

    code = "DUPLICATE_NODE_ID"


class InvalidTree(WorkflowError, ValueError):
    """What a builder returned is no tree, or an element was given what it does not take."""

    code = "RENDER_FAILED"


class RenderFailed(WorkflowError):
    """A builder raised, or took too long."""

    code = "RENDER_FAILED"


class InvalidOutput(SmithersError):
    """A task's result cannot be stored."""

    code = "INVALID_OUTPUT"

    def __init__(self, message: str, *, details: Any = None) -> None:
        super().__init__(message)
        self.details = details


class InvalidInput(SmithersError):
    """A run's input does not fit the workflow's model."""

    code = "INVALID_INPUT"

    def __init__(self, message: str, *, details: Any = None) -> None:
        super().__init__(message)
        self.details = details


class StoreError(SmithersError):
    """The database refused or did not answer."""


class LeaseLost(StoreError):
    """Another worker holds this run now: stop at once, write nothing."""

    code = "LEASE_LOST"


class AnswerTooLarge(StoreError):
    """What was asked for, or is to be written, is more than one value of the database holds."""


class StoreUnavailable(StoreError):
    """The database does not answer; whether the last write was kept is not known."""

    code = "UNAVAILABLE"


class StoreStarting(StoreUnavailable):
    """The database has been started, and takes no connections yet."""


class RowsHeld(StoreUnavailable):
    """Another transaction has rows that were asked for, and keeps them; nothing was written."""


class Deadlocked(RowsHeld):
    """It also waited for what this one had; the same call, made again, goes through."""


class CallTooLong(StoreUnavailable):
    """The database has given a call up that took too long; what a procedure had committed by then stands."""
