"""Requests as values: what is sent, and how its answer is parsed. Shared by both clients, without any I/O."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import TypeAdapter

from smithers.client.errors import (
    RequestRefused,
    ServerUnreachable,
    UnexpectedAnswer,
    Unsendable,
    refusal,
)
from smithers.client.wire import (
    STREAM_SEQ,
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

# A stream occupies its connection for as long as its run takes, and a caller may follow any number of runs.
LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=20)

# A server takes 8,190 bytes of a URL, and httpx no more than 65,536, of which each byte here may need three.
MAX_PART_BYTES: Final = 10_000

# A valid header value: one line, without blanks at its ends.
_HEADER_VALUE: Final = re.compile(rb"[^\x00\s]+([ \t]+[^\x00\s]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Answer]):
    """One request; None among the parameters means: not sent."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[bytes, bytes] = field(default_factory=dict)

    def request_args(self, url: str) -> dict[str, Any]:
        """Return what httpx's `request` takes, for this call's own path or a link to a further page of its answer.

        Raises Unsendable for parameters and bodies that cannot be encoded as UTF-8, or as JSON.
        """
        args: dict[str, Any] = {"method": self.method, "url": url, "headers": self.headers}
        if url == self.path:  # a link has its own parameters
            given = _given(self.params)
            args["params"] = {name: _utf8(str(value)) for name, value in given.items()}
        if self.body is not None:
            args["content"] = _json(self.body)
            args["headers"] = {**self.headers, b"Content-Type": b"application/json"}
        return args


_RUNS: Final = TypeAdapter(list[RunSummary])
_NODES: Final = TypeAdapter(list[Node])
_FRAMES: Final = TypeAdapter(list[Frame])
_APPROVALS: Final = TypeAdapter(list[Approval])
_WORKFLOWS: Final = TypeAdapter(list[WorkflowSummary])


def read_answer(call: Call[Answer], content: bytes, url: str) -> Answer:
    """Parse an answer's body; raise UnexpectedAnswer for one that is not from a server of this kind."""
    try:
        return call.read(json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedAnswer(
            f"{url} is not a smithers server: unexpected answer to {call.path}"
        ) from error


def read_refusal(status: int, content: bytes) -> RequestRefused:
    """Return the exception for a non-2xx answer, by its body."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    return refusal(status, body)


def unreachable(url: str, error: Exception) -> ServerUnreachable:
    """Return the exception for a request that was not answered; `error` is httpx's."""
    return ServerUnreachable(f"no server answers at {url} ({type(error).__name__})")


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
    headers: dict[bytes, bytes] = {}
    if idempotency_key is not None:
        headers[b"Idempotency-Key"] = _header_value(idempotency_key, "the idempotency key")
    return Call(
        method="POST",
        path="/v1/runs",
        body={
            "workflowPath": workflow_path,
            "input": dict(input or {}),
            **_given({"runId": run_id, "config": config or None}),
        },
        headers=headers,
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
    """Read why a run does not progress."""
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
    """List the workflows with runs."""
    return Call(method="GET", path="/v1/workflows", read=_WORKFLOWS.validate_python)


def list_approvals() -> Call[list[Approval]]:
    """List open questions to people, oldest first."""
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
    """Approve or deny a node."""
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
    """Return a choice among options as sent; None if there is none."""
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
    """Create a token for a run's stream."""
    path = _run(run_id, "events", "token")
    return Call(method="POST", path=path, body={}, read=StreamToken.model_validate)


def events_path(run_id: str) -> str:
    """Return the path of a run's stream."""
    return _run(run_id, "events")


def read_event(seq: str, data: str) -> Event:
    """Parse one event of a stream; raise UnexpectedAnswer for one that is not from a server of this kind."""
    try:
        return Event.model_validate({**json.loads(data), STREAM_SEQ: int(seq)})
    except (ValueError, TypeError) as error:
        raise UnexpectedAnswer(f"event {seq!r} of a stream is malformed") from error


def headers_for(token: str | None) -> dict[bytes, bytes]:
    """Return the headers of every request; raise Unsendable for a token that no header can contain."""
    if token is None:
        return {}
    return {b"Authorization": b"Bearer " + _header_value(token, "the token")}


def is_loopback(url: str) -> bool:
    """Say whether a URL stays on this host: then a proxy of the environment is not used."""
    return urlsplit(url).hostname in LOOPBACK_NAMES


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Omit None, which to the server means absent, except for values of the caller's own."""
    return {name: value for name, value in fields.items() if value is not None}


def _utf8(text: str) -> str:
    """Return a part of a URL, if it fits into one."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise Unsendable(f"{text!r} cannot be sent: it is not valid UTF-8") from None
    if size_bytes > MAX_PART_BYTES:
        raise Unsendable(
            f"{text[:20]!r}… cannot be sent: it has {size_bytes} bytes, and a part of a URL at most {MAX_PART_BYTES}"
        )
    return text


def _json(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (ValueError, RecursionError) as error:
        raise Unsendable(f"this cannot be sent as JSON: {error}") from error


def _header_value(text: str, what: str) -> bytes:
    """Encode a header's value in UTF-8; undecodable bytes of the environment are sent unchanged."""
    try:
        value = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Unsendable(f"{what} cannot be sent: it is not valid UTF-8") from None
    if not _HEADER_VALUE.fullmatch(value):
        raise Unsendable(
            f"{what} cannot be sent: it is empty, begins or ends with a blank, or contains a line break or NUL"
        )
    return value


def _run(*parts: str) -> str:
    return "/v1/runs/" + "/".join(map(_segment, parts))


def _segment(part: str) -> str:
    # URLs remove `.` and `..`, which no run has for an id: the server must see them to say so.
    return part.replace(".", "%2E") if part in {".", ".."} else quote(_utf8(part), safe="")


def _run_id(answer: Any) -> str:
    return str(answer["runId"])
