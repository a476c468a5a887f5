"""Spans: what a run did when, told to a collector over OTLP. Off, nothing of OpenTelemetry is even imported.

One trace holds the caller's request, the run, every attempt, and what attempts do, whoever performs them: the context is
kept with the run. A run's own span is told once, at its end, under an id that follows from the run: whoever ends the run
tells it, and everybody before could name it as a parent. A process that is killed loses the spans that it had not ended,
and those that ended within the delay before it (otel_variables.DELAY_S).

The library's own spans cost about 100 µs each, which is a tenth of a small run. Ours are written down as OTLP's bytes
when they end (see otlp), and leave through the library's exporters.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from smithers.ids import RunId
from smithers.telemetry.otel_variables import read_settings
from smithers.telemetry.otlp import SpanKind, Value, encode_attributes, encode_span

if TYPE_CHECKING:
    from smithers.telemetry.sending import Sender

RUN: Final = "smithers.run"
TASK: Final = "smithers.task"
WAIT: Final = "smithers.wait"
AGENT: Final = "smithers.agent"
MODEL: Final = "smithers.model"

RUN_ID: Final = "smithers.run_id"
WORKFLOW_NAME: Final = "smithers.workflow_name"
NODE_ID: Final = "smithers.node_id"
ITERATION: Final = "smithers.iteration"
ATTEMPT: Final = "smithers.attempt"
STATUS: Final = "smithers.status"
WAIT_REASON: Final = "smithers.wait_reason"
ERROR_TYPE: Final = "error.type"

NS_PER_MS: Final = 1_000_000
# Of version 00; later versions may say more behind it, and ff is none.
_TRACEPARENT: Final = re.compile(
    r"(?!ff|00.{53}-)[0-9a-f]{2}-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(-.*)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a trace something happens: below this span."""

    trace_id: bytes
    span_id: bytes
    is_sampled: bool = True

    @property
    def traceparent(self) -> str:
        """Write it as W3C's header."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-0{int(self.is_sampled)}"


def read_traceparent(text: str | None) -> Place | None:
    """Read W3C's header; None where there is none, or it says nothing."""
    read = _TRACEPARENT.fullmatch(text or "")
    if read is None:
        return None
    trace_id, span_id = bytes.fromhex(read["trace_id"]), bytes.fromhex(read["span_id"])
    if not any(trace_id) or not any(span_id):
        return None
    return Place(trace_id, span_id, bool(int(read["flags"], 16) & 1))


@dataclass(slots=True)
class Span:
    """Something under way; what is added to `attributes` before its end is told with it. No content, no secrets."""

    name: str
    place: Place
    parent_id: bytes
    kind: SpanKind
    began_ns: int
    fixed: bytes  # attributes that are encoded already
    attributes: dict[str, Value] = field(default_factory=dict)
    error_type: str | None = None


class Tracer:
    """The spans of one process."""

    def __init__(self, sender: "Sender") -> None:
        self._sender = sender

    def begin(
        self,
        name: str,
        parent: Place | None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        fixed: bytes = b"",
    ) -> Span:
        """Begin a span below another one, or a trace."""
        span_id = os.urandom(8)
        if parent is None:
            trace_id = os.urandom(16)
            place = Place(trace_id, span_id, self._sender.is_sampled(trace_id, name))
            return Span(name, place, b"", kind, time.time_ns(), fixed)
        place = Place(parent.trace_id, span_id, parent.is_sampled)
        return Span(name, place, parent.span_id, kind, time.time_ns(), fixed)

    def attach(self, place: Place) -> None:
        """Have what is traced through OpenTelemetry's own API stand below this place, in this task."""
        self._sender.attach(place.trace_id, place.span_id, is_sampled=place.is_sampled)

    def close(self, limit_s: float) -> None:
        """Send what is there, for so long at the most."""
        self._sender.close(limit_s)

    def end(self, span: Span, end_ns: int | None = None) -> None:
        """Tell a span; never blocks, and drops it where too many wait."""
        if not span.place.is_sampled:
            return
        attributes = span.attributes
        if span.error_type is not None:
            attributes[ERROR_TYPE] = span.error_type
        self._sender.put(
            encode_span(
                span.name,
                span.place.trace_id,
                span.place.span_id,
                span.parent_id,
                kind=span.kind,
                began_ns=span.began_ns,
                ended_ns=end_ns or time.time_ns(),
                attributes=span.fixed + encode_attributes(attributes),
                is_error=span.error_type is not None,
            )
        )


class RunTrace:
    """The trace of one run, as far as this process tells it."""

    def __init__(
        self, tracer: Tracer, run_id: RunId, workflow_name: str, era: int, context: str | None
    ) -> None:
        """`context`: what was kept with the run. Without it the trace's id, too, follows from the run's."""
        self._tracer = tracer
        digest = sha256(f"{run_id}\n{era}".encode()).digest()
        above = read_traceparent(context)
        self._parent_id = b"" if above is None else above.span_id
        self.place = Place(
            sha256(run_id.encode()).digest()[:16] if above is None else above.trace_id,
            digest[:8],
            above is None or above.is_sampled,
        )
        self._fixed = encode_attributes({RUN_ID: run_id, WORKFLOW_NAME: workflow_name})

    def begin_attempt(self, node_id: str, iteration: int, attempt: int) -> Span:
        """Begin an attempt's span."""
        span = self._tracer.begin(TASK, self.place, fixed=self._fixed)
        span.attributes = {NODE_ID: node_id, ITERATION: iteration, ATTEMPT: attempt}
        return span

    def end_attempt(self, span: Span, status: str, error_type: str | None) -> None:
        """Tell an attempt's span."""
        span.attributes[STATUS] = status
        span.error_type = error_type
        self._tracer.end(span)

    def tell_wait(
        self, node_id: str, iteration: int, reason: str, *, began_ms: int, ended_ms: int
    ) -> None:
        """Tell for how long a node has needed the outside."""
        span = self._tracer.begin(WAIT, self.place, fixed=self._fixed)
        span.began_ns = began_ms * NS_PER_MS
        span.attributes = {NODE_ID: node_id, ITERATION: iteration, WAIT_REASON: reason}
        self._tracer.end(span, ended_ms * NS_PER_MS)

    def tell_run(
        self, status: str, error_type: str | None, *, began_ms: int, ended_ms: int
    ) -> None:
        """Tell the run's own span."""
        began_ns = began_ms * NS_PER_MS
        span = Span(RUN, self.place, self._parent_id, SpanKind.INTERNAL, began_ns, self._fixed)
        span.attributes = {STATUS: status}
        span.error_type = error_type
        self._tracer.end(span, ended_ms * NS_PER_MS)

    def make_current(self, place: Place) -> None:
        """Have what this asyncio task does from now on stand below a place: the run's own, or an attempt's."""
        _CURRENT.set(_Current(self._tracer, place, self._fixed))
        self._tracer.attach(place)


@dataclass(frozen=True, slots=True)
class _Current:
    tracer: Tracer
    place: Place
    fixed: bytes


_CURRENT: Final[ContextVar[_Current | None]] = ContextVar("smithers_span", default=None)


def find_current() -> Place | None:
    """Say where in a trace the caller stands; None where traces are off, or nothing is told here."""
    current = _CURRENT.get()
    return None if current is None else current.place


@contextmanager
def span(
    name: str, attributes: Mapping[str, Value] | None = None, *, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[dict[str, Value]]:
    """Tell what the block does as a span below the current attempt; nothing where traces are off.

    Yields the span's attributes, to which more may be added; never content (inputs, outputs, prompts). What leaves
    the block by an exception is told as failed, by the exception's class.
    """
    above = _CURRENT.get()
    if above is None:
        yield {}
        return
    begun = above.tracer.begin(name, above.place, kind=kind, fixed=above.fixed)
    begun.attributes.update(attributes or {})
    token = _CURRENT.set(_Current(above.tracer, begun.place, above.fixed))
    try:
        yield begun.attributes
    except BaseException as error:
        begun.error_type = type(error).__name__
        raise
    finally:
        _CURRENT.reset(token)
        above.tracer.end(begun)


def open_tracer(
    variables: Mapping[str, str] | None, on_dropped: Callable[[int], None], *, has_authors: bool
) -> Tracer | None:
    """Begin to trace this process; None: traces are off. `variables`: the `OTEL_*` ones.

    `has_authors`: code that is not ours runs here, and may use OpenTelemetry's own API. Raises InvalidTelemetry.
    """
    if variables is None or read_settings(variables).is_disabled:
        return None
    from smithers.telemetry.sending import Sender

    sender = Sender(variables, on_dropped)
    if has_authors:
        sender.serve_authors()
    return Tracer(sender)
