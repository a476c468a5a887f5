"""The exception tree: one class for each decision that a caller makes.

SmithersError
├── OutputMissing           a builder read an output that does not exist (yet)
├── WorkflowError           an author's mistake: reported to the author, fails the run
│   ├── DuplicateNodeId
│   ├── InvalidTree
│   └── RenderFailed
├── InvalidOutput           a task's result is not JSON, too large, or does not fit its model
├── InvalidInput            a run's input does not fit the workflow's model
├── SourceError             see smithers.source.errors
├── ToolError               see smithers.tools.errors
├── ClientError             see smithers.client.errors
├── GatewayError            see gateway.errors
└── StoreError              the database refused (see smithers.store.refusals), or did not answer
    ├── LeaseLost           another worker holds the run now: stop at once, write nothing
    ├── AnswerTooLarge      a value to read or to write is larger than the database holds, or takes too long to read
    └── StoreUnavailable    the database does not answer: whether the last write was committed is not known
        ├── StoreStarting   it has been started, and takes no connections yet
        ├── DiskFull        it answers, but its disk is full
        ├── ReadOnly        it answers, but takes no writes
        ├── RowsHeld        another transaction holds locks on the rows: nothing was written
        │   └── Deadlocked  and waited for this one's: the same call, repeated, succeeds
        └── CallTooLong     it aborted a call that took too long: what was committed by then stands

Modules of the store, and those that read settings or start processes, have further ones for themselves.
"""

from typing import Any


class SmithersError(Exception):
    """Base of the errors that callers, users and authors meet.

    Not below it: what modules of one process tell each other (LoadFailed, NoThread), and failures of a test.
    """

    code = "SERVER_ERROR"


class OutputMissing(SmithersError):
    """A builder read the output of a node that has none yet."""

    code = "OUTPUT_MISSING"


class WorkflowError(SmithersError):
    """The author's workflow cannot be run."""

    code = "RENDER_FAILED"


class DuplicateNodeId(WorkflowError):
    """Two leaves of one tree have the same id."""

    code = "DUPLICATE_NODE_ID"


class InvalidTree(WorkflowError, ValueError):
    """A builder's result is not a tree, or an element has an invalid argument."""

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
    """A result, or a value to write, is more than one value of the database holds, or takes too long to read."""


class StoreUnavailable(StoreError):
    """The database does not answer; whether the last write was committed is not known."""

    code = "UNAVAILABLE"


class StoreStarting(StoreUnavailable):
    """The database has been started, and takes no connections yet."""


class DiskFull(StoreUnavailable):
    """The database answers, but its disk is full."""


class ReadOnly(StoreUnavailable):
    """The database answers, but takes no writes: it is a standby, or set to read-only."""


class RowsHeld(StoreUnavailable):
    """Another transaction holds locks on the rows; nothing was written."""


class Deadlocked(RowsHeld):
    """It also waited for this transaction's locks; the same call, repeated, succeeds."""


class CallTooLong(StoreUnavailable):
    """The database aborted a call that took too long; what a procedure had committed by then stands."""
