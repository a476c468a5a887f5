"""The events of a run: their names, and their encoding.

An event is written in two parts, because its time is the database's and known only once the run's row is locked:
`head + now_ms + tail` is the JSON text that is stored and sent. The SQL function `event_v1` writes the same form for the
events that come from outside; a test compares the two.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Self

import orjson

from smithers.ids import RunId


class EventType(StrEnum):
    """The types of a run's events, as Smithers names them."""

    RUN_STARTED = "RunStarted"
    RUN_STATUS_CHANGED = "RunStatusChanged"
    RUN_FINISHED = "RunFinished"
    RUN_FAILED = "RunFailed"
    RUN_CANCELLED = "RunCancelled"
    RUN_CONTINUED_AS_NEW = "RunContinuedAsNew"
    RUN_AUTO_RESUMED = "RunAutoResumed"
    FRAME_COMMITTED = "FrameCommitted"
    NODE_PENDING = "NodePending"
    NODE_STARTED = "NodeStarted"
    NODE_FINISHED = "NodeFinished"
    NODE_FAILED = "NodeFailed"
    NODE_RETRYING = "NodeRetrying"
    NODE_CANCELLED = "NodeCancelled"
    NODE_SKIPPED = "NodeSkipped"
    NODE_WAITING_APPROVAL = "NodeWaitingApproval"
    NODE_WAITING_EVENT = "NodeWaitingEvent"
    NODE_WAITING_TIMER = "NodeWaitingTimer"
    NODE_OUTPUT = "NodeOutput"
    TASK_HEARTBEAT = "TaskHeartbeat"
    TASK_HEARTBEAT_TIMEOUT = "TaskHeartbeatTimeout"
    TOOL_CALL_STARTED = "ToolCallStarted"
    TOOL_CALL_FINISHED = "ToolCallFinished"
    TOKEN_USAGE_REPORTED = "TokenUsageReported"  # noqa: S105 - tokens of a model
    SUBFLOW_STARTED = "SubflowStarted"
    SUBFLOW_ENDED = "SubflowEnded"
    APPROVAL_REQUESTED = "ApprovalRequested"
    APPROVAL_GRANTED = "ApprovalGranted"
    APPROVAL_DENIED = "ApprovalDenied"
    SIGNAL_RECEIVED = "SignalReceived"
    TIMER_CREATED = "TimerCreated"
    TIMER_FIRED = "TimerFired"
    TIMER_CANCELLED = "TimerCancelled"
    WORKFLOW_RELOADED = "WorkflowReloaded"


class Envelope(NamedTuple):
    """What each event of one run contains besides its own fields: JSON texts."""

    run_id: str
    correlation: str

    @classmethod
    def of(cls, run_id: RunId, workflow_name: str) -> Self:
        """Return the envelope of a run's events."""
        correlation = {"runId": run_id, "workflowName": workflow_name}
        return cls(orjson.dumps(run_id).decode(), orjson.dumps(correlation).decode())


def event_parts(
    event_type: EventType, envelope: Envelope, fields: Mapping[str, Any]
) -> tuple[str, str]:
    """Return an event's JSON text before and after its time."""
    head = f'{{"type":"{event_type}","runId":{envelope.run_id},"timestampMs":'
    middle = "," + orjson.dumps(fields).decode()[1:-1] if fields else ""
    return head, f'{middle},"correlation":{envelope.correlation}}}'
