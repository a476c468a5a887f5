"""Spans: what a run did when, exported to a collector over OTLP. With traces off, nothing of OpenTelemetry is imported.

One trace contains the caller's request, the run, every attempt, and what attempts do, in any process: the context is
stored with the run. A run's own span is emitted once, at its end, under an id derived from the run: the process that ends
the run emits it, and all earlier ones can use it as a parent. A killed process loses the spans that it had not ended,
and those that ended within the delay before it (otel_variables.DELAY_S).

Traced code only creates a plain value for each span. Code that runs once in a millisecond runs with cold
caches, ten times slower than in a tight loop: so the sender does everything else, many spans at a time.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from smithers.ids import RunId
from smithers.telemetry.otel_variables import read_settings
from smithers.telemetry.spans import Place, Span, SpanKind, Value, plain, plain_name, read_kept

if TYPE_CHECKING:
    from smithers.telemetry.sending import Sender

RUN: Final = "smithers.run"
TASK: Final = "smithers.task"
WAIT: Final = "smithers.wait"
TOOL: Final = "smithers.tool"
AGENT: Final = "smithers.agent"
MODEL: Final = "smithers.model"

RUN_ID: Final = "smithers.run_id"
WORKFLOW_NAME: Final = "smithers.workflow_name"
NODE_ID: Final = "smithers.node_id"
ITERATION: Final = "smithers.iteration"
ATTEMPT: Final = "smithers.attempt"
STATUS: Final = "smithers.status"
WAIT_REASON: Final = "smithers.wait_reason"

NS_PER_MS: Final = 1_000_000
# Looking up an enum member takes as long as creating a span.
_INTERNAL: Final = SpanKind.INTERNAL
_NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})


class Tracer:
    """The spans of one process."""

    def __init__(self, sender: "Sender") -> None:
        self._sender = sender
        self._attach = sender.attach
        self.is_sampled = sender.is_sampled
        self._draw = Random().getrandbits  # noqa: S311 - no secrets; its own, since authors may seed the module's

    def begin(self, name: str, parent: Place | None, *, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """Begin a span below a place, or a new trace."""
        if parent is None:
            drawn = self._draw(192).to_bytes(24)
            trace_id, span_id, parent_id = drawn[:16], drawn[16:], b""
        else:
            trace_id, parent_id, _ = parent
            span_id = self._draw(64).to_bytes(8)
        is_sampled = self.is_sampled(trace_id, name, parent)
        began_ns = time.time_ns()
        return Span(name, kind, trace_id, span_id, parent_id, is_sampled, began_ns, {}, _NOTHING)

    def begin_below(
        self,
        name: str,
        above: Span,
        attributes: dict[str, Value],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        """Begin a span below another one, with its inherited attributes."""
        return Span(
            name,
            kind,
            above.trace_id,
            self._draw(64).to_bytes(8),
            above.span_id,
            above.is_sampled,
            time.time_ns(),
            attributes,
            above.inherited,
        )

    def make_current(self, span: Span) -> None:
        """Make a span the parent of everything that this asyncio task does from now on, with OpenTelemetry's own API too."""
        _CURRENT.set((self, span))
        self._attach(span)

    def end(self, span: Span, ended_ns: int | None = None) -> None:
        """Emit an ended span, which must not change any more; never blocks, and drops it if the queue is full."""
        if span.is_sampled:
            span.ended_ns = ended_ns or time.time_ns()
            self._sender.put(span)

    def close(self, limit_s: float) -> None:
        """Export the queued spans, within a time limit."""
        self._sender.close(limit_s)


class RunTrace:
    """This process's part of a run's trace."""

    def __init__(
        self, tracer: Tracer, run_id: RunId, workflow_name: str, era: int, context: str | None
    ) -> None:
        """`context`: as stored with the run. Without it the trace's id, too, is derived from the run's."""
        self._tracer = tracer
        self.make_current = tracer.make_current  # for its own span, and its attempts'
        span_id = sha256(f"{run_id}\n{era}".encode()).digest()[:8]
        parent = None if context is None else read_kept(context)
        trace_id, parent_id = (
            (sha256(run_id.encode()).digest()[:16], b"") if parent is None else parent[:2]
        )
        # Every owner of the run makes the same sampling decision for the same trace.
        is_sampled = tracer.is_sampled(trace_id, RUN, parent)
        handed_down = {RUN_ID: run_id, WORKFLOW_NAME: workflow_name}
        # The run's own span; its begin is set at its end.
        self.span = Span(
            RUN, _INTERNAL, trace_id, span_id, parent_id, is_sampled, 0, {}, handed_down
        )

    def begin_attempt(self, node_id: str, iteration: int, attempt: int) -> Span:
        """Begin an attempt's span."""
        attributes: dict[str, Value] = {NODE_ID: node_id, ITERATION: iteration, ATTEMPT: attempt}
        return self._tracer.begin_below(TASK, self.span, attributes)

    def end_attempt(self, span: Span, status: str, error_type: str | None) -> None:
        """Emit an attempt's span."""
        span.attributes[STATUS] = status
        span.error_type = error_type
        self._tracer.end(span)

    def tell_wait(
        self, node_id: str, iteration: int, reason: str, *, began_ms: int, ended_ms: int
    ) -> None:
        """Emit the span of a node's wait."""
        attributes: dict[str, Value] = {
            NODE_ID: node_id,
            ITERATION: iteration,
            WAIT_REASON: reason,
        }
        span = self._tracer.begin_below(WAIT, self.span, attributes)
        span.began_ns = began_ms * NS_PER_MS
        self._tracer.end(span, ended_ms * NS_PER_MS)

    def tell_run(
        self, status: str, error_type: str | None, *, began_ms: int, ended_ms: int
    ) -> None:
        """Emit the run's own span; once."""
        self.span.began_ns = began_ms * NS_PER_MS
        self.span.attributes[STATUS] = status
        self.span.error_type = error_type
        self._tracer.end(self.span, ended_ms * NS_PER_MS)


_CURRENT: Final[ContextVar[tuple[Tracer, Span] | None]] = ContextVar("smithers_span", default=None)


def find_current() -> Span | None:
    """Find the caller's current span; None if traces are off, or nothing is sampled here."""
    current = _CURRENT.get()
    return None if current is None else current[1]


@contextmanager
def span(
    name: str, attributes: Mapping[str, Value] | None = None, *, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[dict[str, Value]]:
    """Emit a span for the block, below the current attempt; does nothing if traces are off.

    Yields the span's attributes, to which more may be added; never content (inputs, outputs, prompts). A value that is not
    a Value is exported as its text. If the block raises, the span fails, with the exception's class.
    """
    current = _CURRENT.get()
    told = dict(attributes or {})
    if current is None:
        yield told
        return
    tracer, above = current
    begun = tracer.begin_below(plain_name(name), above, told, kind=kind)
    token = _CURRENT.set((tracer, begun))
    try:
        yield told
    except BaseException as error:
        begun.error_type = plain_name(type(error).__name__)
        raise
    finally:
        _CURRENT.reset(token)
        # The block's author still has the other mapping, and may have added anything.
        begun.attributes = {plain_name(key): plain(value) for key, value in told.copy().items()}
        tracer.end(begun)


def check_tracing(variables: Mapping[str, str]) -> None:
    """Raise InvalidTelemetry for invalid `OTEL_*` variables."""
    settings = read_settings(variables)
    if settings.is_disabled:
        return
    from smithers.telemetry.exporters import open_library

    open_library(variables, is_grpc=settings.is_grpc).close()


def open_tracer(
    variables: Mapping[str, str] | None, on_dropped: Callable[[int], None], *, has_authors: bool
) -> Tracer | None:
    """Start tracing this process; None: traces are off. `variables`: the `OTEL_*` ones.

    `has_authors`: authors' code runs here, and may use OpenTelemetry's own API. Raises InvalidTelemetry.
    """
    if variables is None or read_settings(variables).is_disabled:
        return None
    from smithers.telemetry.sending import Sender

    sender = Sender(variables, on_dropped)
    if has_authors:
        sender.serve_authors()
    return Tracer(sender)
