"""The requests, as values: what is sent, and how its answer is read. Shared by the two clients, and without any I/O."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import TypeAdapter

from smithers.client.errors import UnexpectedAnswer
from smithers.client.wire import (
    Approval,
    Event,
    Frame,
    Node,
    Run,
    RunSummary,
    SignalRecord,
    StreamToken,
    Why,
    WorkflowSummary,
)
from smithers.defaults import LOOPBACK_NAMES

Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Answer]):
    """One request; None among the parameters means: not sent."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def sent_params(self) -> dict[str, Any]:
        """The parameters that are sent."""
        return _given(self.params)


_RUNS: Final = TypeAdapter(list[RunSummary])
_NODES: Final = TypeAdapter(list[Node])
_FRAMES: Final = TypeAdapter(list[Frame])
_APPROVALS: Final = TypeAdapter(list[Approval])
_WORKFLOWS: Final = TypeAdapter(list[WorkflowSummary])


def read_answer(call: Call[Answer], content: bytes, url: str) -> Answer:
    """Read an answer's body; raise UnexpectedAnswer for one that no server of ours gives."""
    try:
        return call.read(json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedAnswer(
            f"what answers at {url} is not a smithers server: {call.path} gave something else"
        ) from error


def start(
    workflow_path: str,
    input: Mapping[str, Any] | None,
    *,
    run_id: str | None,
    max_concurrency: int | None,
    priority: int | None,
    budget: Mapping[str, float] | None = None,
    idempotency_key: str | None,
) -> Call[str]:
    """Start a run."""
    config = _given({"maxConcurrency": max_concurrency, "priority": priority, "budget": budget})
    return Call(
        method="POST",
        path="/v1/runs",
        body={
            "workflowPath": workflow_path,
            "input": dict(input or {}),
            **_given({"runId": run_id, "config": config or None}),
        },
        headers={} if idempotency_key is None else {"Idempotency-Key": idempotency_key},
        read=_run_id,
    )


def resume(run_id: str, *, workflow_path: str | None) -> Call[str]:
    """Resume a run."""
    body = _given({"workflowPath": workflow_path})
    return Call(method="POST", path=_run(run_id, "resume"), body=body, read=_run_id)


def cancel(run_id: str) -> Call[str]:
    """Cancel a run."""
    return Call(method="POST", path=_run(run_id, "cancel"), body={}, read=_run_id)


def get(run_id: str) -> Call[Run]:
    """Read a run."""
    return Call(method="GET", path=_run(run_id), read=Run.model_validate)


def why(run_id: str) -> Call[Why]:
    """Ask why a run does not move."""
    return Call(method="GET", path=_run(run_id, "why"), read=Why.model_validate)


def list_runs(
    *, status: str | None, workflow: str | None, limit: int | None
) -> Call[list[RunSummary]]:
    """List runs, newest first."""
    params = {"status": status, "workflow": workflow, "limit": limit}
    return Call(method="GET", path="/v1/runs", params=params, read=_RUNS.validate_python)


def list_nodes(run_id: str) -> Call[list[Node]]:
    """List a run's nodes, oldest first."""
    return Call(method="GET", path=_run(run_id, "nodes"), read=_NODES.validate_python)


def get_node(run_id: str, node_id: str, *, iteration: int | None) -> Call[Node]:
    """Read a node."""
    params = {"iteration": iteration}
    path = _run(run_id, "nodes", node_id)
    return Call(method="GET", path=path, params=params, read=Node.model_validate)


def list_frames(run_id: str, *, limit: int | None, order: str) -> Call[list[Frame]]:
    """List a run's frames."""
    params = {"limit": limit, "order": order}
    path = _run(run_id, "frames")
    return Call(method="GET", path=path, params=params, read=_FRAMES.validate_python)


def list_workflows() -> Call[list[WorkflowSummary]]:
    """List the workflows that runs were started of."""
    return Call(method="GET", path="/v1/workflows", read=_WORKFLOWS.validate_python)


def list_approvals() -> Call[list[Approval]]:
    """List what people are asked, oldest first."""
    return Call(
        method="GET",
        path="/v1/approvals",
        read=lambda answer: _APPROVALS.validate_python(answer["approvals"]),
    )


def decide(
    run_id: str,
    node_id: str,
    *,
    is_approved: bool,
    note: str | None,
    decided_by: str | None,
    iteration: int | None,
    decision: Mapping[str, Any] | None = None,
) -> Call[str]:
    """Approve or deny what a node asks."""
    return Call(
        method="POST",
        path=_run(run_id, "nodes", node_id, "approve" if is_approved else "deny"),
        body=_given(
            {
                "note": note,
                "decidedBy": decided_by,
                "iteration": iteration,
                "decision": decision,
            }
        ),
        read=_run_id,
    )


def choice(selected: str | None, ranked: Sequence[str] | None) -> dict[str, Any] | None:
    """Write a choice among options; None where there is none."""
    if selected is not None:
        return {"selected": selected}
    return None if ranked is None else {"ranked": list(ranked)}


def answer(
    run_id: str, node_id: str, value: Any, *, answered_by: str | None, iteration: int | None
) -> Call[str]:
    """Answer a form."""
    return Call(
        method="POST",
        path=_run(run_id, "nodes", node_id, "answer"),
        body={"value": value, **_given({"answeredBy": answered_by, "iteration": iteration})},
        read=_run_id,
    )


def signal(
    run_id: str,
    signal_name: str,
    data: Any,
    *,
    correlation_id: str | None,
    signal_id: str | None,
) -> Call[SignalRecord]:
    """Send a signal."""
    return Call(
        method="POST",
        path=_run(run_id, "signals", signal_name),
        body={"data": data, **_given({"correlationId": correlation_id, "id": signal_id})},
        read=SignalRecord.model_validate,
    )


def ready() -> Call[bool]:
    """Ask whether the server takes requests."""
    return Call(method="GET", path="/ready", read=lambda answer: bool(answer["ok"]))


def stream_token(run_id: str) -> Call[StreamToken]:
    """Have a token made for a run's stream."""
    path = _run(run_id, "events", "token")
    return Call(method="POST", path=path, body={}, read=StreamToken.model_validate)


def events_path(run_id: str) -> str:
    """Return where a run's stream is."""
    return _run(run_id, "events")


def read_event(seq: str, data: str) -> Event:
    """Read one event of a stream."""
    return Event.model_validate({**json.loads(data), "seq": int(seq)})


def headers_for(token: str | None) -> dict[str, str]:
    """Return the headers of every request."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def is_loopback(url: str) -> bool:
    """Say whether a URL stays on this host: a proxy of the environment is not for it then."""
    return urlsplit(url).hostname in LOOPBACK_NAMES


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None: the server takes it as not given, but for values of the caller's own."""
    return {name: value for name, value in fields.items() if value is not None}


def _run(*parts: str) -> str:
    return "/v1/runs/" + "/".join(quote(part, safe="") for part in parts)


def _run_id(answer: Any) -> str:
    return str(answer["runId"])
