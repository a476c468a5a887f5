"""The types of answers: handlers return them, mypy checks them, and /openapi.json is generated from them.

Names are those of the API. Times are milliseconds since 1970 by the database's clock (`…Ms`), or ISO 8601 with Z.
`Any` stands for an author's own JSON value.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from smithers.events import EventType
from smithers.states import AttemptState, NodeState, RunStatus, ToolCallState


class LifeState(StrEnum):
    """A run's state in the terms of Smithers' clients."""

    RUNNING = "running"
    WAITING_APPROVAL = "waiting-approval"
    WAITING_EVENT = "waiting-event"
    WAITING_TIMER = "waiting-timer"
    RECOVERING = "recovering"  # its worker died, and no other has claimed it yet
    STALE = "stale"  # its worker is silent
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"


def one_of(states: type[StrEnum]) -> WithJsonSchema:
    """Describe a string as one of a closed set."""
    return WithJsonSchema({"type": "string", "enum": list(states)})


Status = Annotated[str, one_of(RunStatus)]
ReasonKind = Literal[
    "ended",
    "cancelling",
    "elsewhere",
    "worker-silent",
    "quarantined",
    "queued",
    "no-worker",
    "approval",
    "subflow",
    "signal",
    "timer",
    "back-off",
    "in-progress",
]
Count = Annotated[int, Field(ge=0)]
_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}
Schema = Annotated[Any, WithJsonSchema({"anyOf": [_OBJECT, {"type": "null"}]})]
Error = Annotated[
    Any,
    Field(description="`{name, message, code?, details?}`; for the scope `admin` also `traceback`"),
]
Misfits = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "array", "items": _OBJECT}, {"type": "null"}]})
]


class Healthy(TypedDict):
    """The process is alive."""

    ok: bool


class Ready(TypedDict):
    """The process takes requests."""

    ok: bool
    sandbox: Annotated[
        str | None,
        Field(
            description="how tools run commands here: `jailed; cgroup limits: …`, `unsafe: …`, `unavailable: …`; "
            "null without workers"
        ),
    ]
    database: Annotated[
        str | None,
        Field(description="what the database connection cannot do, and the remedy; null: nothing"),
    ]


class RunNamed(TypedDict):
    """The id of the run."""

    runId: str


class RunTaken(RunNamed):
    """A run that was started, resumed, or already active."""

    status: NotRequired[
        Annotated[Status, Field(description="`running`: already active, nothing has changed")]
    ]


class WorkflowAnswer(TypedDict):
    """A workflow, as its newest run has it."""

    workflowName: str
    workflowPath: Annotated[
        str, Field(description="the path for a start: `path.py`, or `path.py:name`")
    ]
    workflowHash: str
    lastStartedAtMs: int
    inputSchema: Annotated[
        Schema,
        Field(description="JSON Schema; null: any object, or not described yet"),
    ]
    queue: str | None
    isolation: str | None
    database: Annotated[str | None, Field(description="the name of its own database")]


class Blocked(TypedDict):
    """The first thing that a waiting run waits for."""

    kind: Literal["approval", "event", "timer"]
    nodeId: str
    requestedAt: NotRequired[str | None]
    correlationKey: NotRequired[str | None]
    wakeAt: NotRequired[str | None]


class Unhealthy(TypedDict):
    """Why a run may not be progressing."""

    kind: str
    lastHeartbeatAt: str


class RunState(TypedDict):
    """A run's state, beyond its status."""

    runId: str
    state: Annotated[str, one_of(LifeState)]
    computedAt: str
    blocked: NotRequired[Blocked]
    unhealthy: NotRequired[Unhealthy]


class RunAnswer(TypedDict):
    """A run by itself."""

    runId: str
    workflowName: str
    status: Status
    startedAtMs: int | None
    finishedAtMs: int | None
    runState: RunState
    summary: Annotated[
        Any,
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "integer"}}),
        Field(description="node state → number of nodes"),
    ]
    input: Any
    output: Annotated[Any, Field(description="of the workflow's `output` node or last task")]
    error: Error
    workflowHash: str
    lastSeq: Annotated[int, Field(description="of its last event; -1: there is none yet")]


class RunRowAnswer(TypedDict):
    """A run in a list; the `…Json` fields are texts of JSON."""

    runId: str
    parentRunId: str | None
    workflowName: str
    workflowPath: str
    workflowHash: str
    status: Status
    createdAtMs: int
    startedAtMs: int | None
    finishedAtMs: int | None
    heartbeatAtMs: int | None
    runtimeOwnerId: str | None
    cancelRequestedAtMs: int | None
    hijackRequestedAtMs: None
    hijackTarget: None
    vcsType: None
    vcsRoot: None
    vcsRevision: None
    errorJson: str | None
    configJson: str
    runState: RunState


class AttemptAnswer(TypedDict):
    """One try at a node that has ended."""

    attempt: int
    state: Annotated[str, one_of(AttemptState)]
    startedAtMs: int | None
    finishedAtMs: int
    error: Error


class NodeAnswer(TypedDict):
    """A node of a run, in one iteration."""

    runId: str
    nodeId: str
    iteration: Count
    kind: str
    label: str | None
    state: Annotated[str, one_of(NodeState)]
    attempt: Count
    createdAtMs: int
    startedAtMs: int | None
    finishedAtMs: int | None
    dueAtMs: int | None
    wait: Any
    output: Annotated[Any, Field(description="null also if it is larger than `maxBytes`")]
    outputBytes: int | None
    error: Error
    attempts: Annotated[
        list[AttemptAnswer],
        Field(description="the newest hundred that have ended, oldest first"),
    ]


class ToolCallAnswer(TypedDict):
    """A call that an attempt made of a tool or a model."""

    attempt: Count
    seq: Annotated[int, Field(description="numbers the attempt's calls, from 1")]
    kind: str
    toolName: str
    state: Annotated[str, one_of(ToolCallState)]
    sideEffect: bool
    idempotent: bool
    input: Annotated[Any, Field(description="null also if it is larger than `maxBytes`")]
    inputBytes: int | None
    output: Annotated[Any, Field(description="null also if it is larger than `maxBytes`")]
    outputBytes: int | None
    error: Any
    startedAtMs: int
    finishedAtMs: int | None


class NodeDetailAnswer(NodeAnswer):
    """A node, and the newest hundred calls that its attempts made, oldest first."""

    toolCalls: list[ToolCallAnswer]


class FrameAnswer(TypedDict):
    """A committed render whose tree differs from the one before; the `…Json` fields are texts of JSON."""

    runId: str
    frameNo: Annotated[int, Field(ge=1)]
    createdAtMs: int
    xmlJson: str
    xmlHash: Annotated[str, Field(description="SHA-256 of `xmlJson`")]
    encoding: str
    mountedTaskIdsJson: str
    taskIndexJson: str
    note: None


class ApprovalAnswer(TypedDict):
    """An open question."""

    runId: str
    nodeId: str
    iteration: Count
    workflowName: str
    runStatus: Status
    label: str  # the node's, else the title, else the id
    requestTitle: str | None
    requestSummary: str | None
    requestMode: Literal["approve", "select", "rank", "form"]
    requestOptions: list[str] | None  # the options to select from, or to rank
    requestSchema: Schema  # the JSON Schema of a form
    requestErrors: Misfits  # why the last answer to a form was rejected
    allowedUsers: list[str] | None
    allowedScopes: list[str] | None
    requestedAtMs: int
    waitingMs: Count
    note: None
    decidedBy: None


class ApprovalList(TypedDict):
    """Open questions, the oldest first."""

    approvals: list[ApprovalAnswer]


class SignalRecord(TypedDict):
    """A signal as it is stored."""

    runId: str
    seq: Annotated[int, Field(ge=0, description="numbers the run's signals")]
    signalName: str
    correlationId: str | None
    receivedAtMs: int


class StreamToken(TypedDict):
    """A token that opens a run's event stream, as `?token=`."""

    token: str
    expiresAtMs: int


class Reason(TypedDict):
    """One thing that blocks a run."""

    kind: ReasonKind
    text: str
    nodeId: NotRequired[str]
    iteration: NotRequired[int]
    since: NotRequired[str]
    until: NotRequired[str]
    unblock: NotRequired[
        Annotated[
            dict[str, str], Field(description="the `command` and the `request` that would help")
        ]
    ]


class WhyAnswer(TypedDict):
    """Why a run does not progress."""

    runId: str
    status: Status
    computedAt: str
    summary: str
    reasons: list[Reason]


class Event(TypedDict):
    """The `data` of a stream's event; its `id` is its number in the run. Each type has fields of its own."""

    type: Annotated[str, one_of(EventType)]
    runId: str
    timestampMs: int
    nodeId: NotRequired[str]
    iteration: NotRequired[Count]
    attempt: NotRequired[Count]
    correlation: dict[str, str]


class Problem(TypedDict):
    """What went wrong: `code` and `details` for programs, `message` for people."""

    code: str
    message: str
    details: NotRequired[dict[str, Any]]


class ProblemAnswer(TypedDict):
    """Every answer that is not a success."""

    error: Problem
