"""The server's answers, as values.

Fields have Python names, and are dumped `by_alias` with the names of the API. A newer server's additional fields are kept.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from smithers.states import AttemptState, NodeState, RunStatus

# The key under which an event's number in the stream is added: no field of the API has this name.
STREAM_SEQ: Final = "stream:seq"


class _Wire(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="allow", frozen=True
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object that this was read from."""
        return self.model_dump(mode="json", by_alias=True)


class RunState(_Wire):
    """A run's state, beyond its status."""

    state: str
    blocked: Mapping[str, Any] | None = None
    unhealthy: Mapping[str, Any] | None = None


class RunSummary(_Wire):
    """A run in a list."""

    run_id: str
    workflow_name: str
    workflow_path: str
    status: RunStatus
    created_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    error_json: str | None = None
    run_state: RunState | None = None


class Run(_Wire):
    """A run by itself."""

    run_id: str
    workflow_name: str
    status: RunStatus
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    run_state: RunState | None = None
    summary: Mapping[str, int] = Field(default_factory=dict)
    input: Any = None
    output: Any = None
    error: Mapping[str, Any] | None = None
    workflow_hash: str | None = None
    last_seq: int  # of its events; -1: none are there yet


class Attempt(_Wire):
    """One try at a node."""

    attempt: int
    state: AttemptState | str
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    error: Mapping[str, Any] | None = None


class ToolCall(_Wire):
    """A call that an attempt made of a tool or a model."""

    attempt: int
    seq: int
    kind: str
    tool_name: str
    state: str
    side_effect: bool
    idempotent: bool
    input: Any = None
    input_bytes: int | None = None
    output: Any = None
    output_bytes: int | None = None
    error: Mapping[str, Any] | None = None
    started_at_ms: int
    finished_at_ms: int | None = None


class Node(_Wire):
    """A node of a run, in one iteration."""

    run_id: str
    node_id: str
    iteration: int
    kind: str
    label: str | None = None
    state: NodeState
    attempt: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    due_at_ms: int | None = None
    output: Any = None
    output_bytes: int | None = None
    error: Mapping[str, Any] | None = None
    attempts: tuple[Attempt, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()  # only if one node is read: the newest hundred


class Frame(_Wire):
    """A committed render whose tree differs from the one before."""

    run_id: str
    frame_no: int
    created_at_ms: int
    xml_json: str
    xml_hash: str


class Approval(_Wire):
    """A question to a person."""

    run_id: str
    node_id: str
    iteration: int
    workflow_name: str
    run_status: RunStatus
    label: str | None = None
    request_title: str | None = None
    request_summary: str | None = None
    request_mode: str = "approve"  # or select, rank, form
    request_options: tuple[str, ...] | None = None
    request_schema: Mapping[str, Any] | None = None  # of a form
    # Why the last answer to a form was rejected.
    request_errors: tuple[Mapping[str, Any], ...] | None = None
    requested_at_ms: int
    waiting_ms: int


class WorkflowSummary(_Wire):
    """A workflow with runs, as its newest run has it."""

    workflow_name: str
    workflow_path: str
    workflow_hash: str
    last_started_at_ms: int
    input_schema: Mapping[str, Any] | None = None
    queue: str | None = None
    isolation: str | None = None
    database: str | None = None


class Reason(_Wire):
    """One thing that blocks a run; `unblock` has the command and the request that would help."""

    kind: str
    text: str
    node_id: str | None = None
    since: str | None = None
    until: str | None = None
    unblock: Mapping[str, str] | None = None


class Why(_Wire):
    """Why a run does not progress."""

    run_id: str
    status: RunStatus
    summary: str
    reasons: tuple[Reason, ...] = ()


class SignalRecord(_Wire):
    """A signal as it is stored."""

    run_id: str
    seq: int
    signal_name: str
    correlation_id: str | None = None
    received_at_ms: int


class StreamToken(_Wire):
    """A token that opens one run's event stream in a URL, as `?token=`, until it expires."""

    token: str
    expires_at_ms: int


class Event(_Wire):
    """A fact about a run; `seq` is its number in the stream, and not part of the JSON that was sent.

    The JSON field `seq` of some types, the number of a signal or of a call, is `field("seq")`.
    """

    seq: int = Field(validation_alias=STREAM_SEQ, exclude=True)
    type: str
    run_id: str
    timestamp_ms: int
    node_id: str | None = None
    iteration: int | None = None
    attempt: int | None = None

    def field(self, name: str) -> Any:
        """Return a field that only some types have, by its name in the API."""
        return (self.model_extra or {}).get(name)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object that this was read from: an event has no fields that are null."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
