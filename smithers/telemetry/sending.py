"""Export spans to a collector in the background: a bounded queue, a thread, and the library's exporters.

Imported only if traces are on. Spans are encoded by the block, where they end: there they are still in the processor's
caches, and no second thread competes for the interpreter. The thread sends what is encoded, and encodes what fills
no block. If a collector is slow or gone, the queue fills up, and further spans are dropped and counted. So is a single
span that cannot be encoded.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Final

import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision

from smithers.complaints import Complaint
from smithers.telemetry.exporters import open_library
from smithers.telemetry.otel_variables import read_settings
from smithers.telemetry.otlp import encode_field, encode_request, encode_span
from smithers.telemetry.spans import Place, Span, plain, plain_name

LOG: Final = structlog.get_logger(__name__)
SCOPE: Final = "smithers"
VERSION: Final = version("smithers-gateway")  # read from a file, which takes as long as 100 spans
THREAD_NAME: Final = "spans"
BLOCK_COUNT: Final = 32  # spans, encoded in 0.1 ms
MAX_REQUEST_BYTES: Final = 1 << 20  # receivers refuse requests above 4 MiB, with all their spans


class Sender:
    """The exporter of one process's spans."""

    def __init__(self, variables: Mapping[str, str], on_dropped: Callable[[int], None]) -> None:
        """`variables`: the `OTEL_*` ones. `on_dropped` is called in the sender's thread. Raises InvalidTelemetry."""
        settings = read_settings(variables)
        self._provider, self._export, _ = open_library(variables, is_grpc=settings.is_grpc)
        resource = {**self._provider.resource.attributes, "process.pid": os.getpid()}
        self._resource = {name: plain(value) for name, value in resource.items()}
        self._is_left_to_callers = self._provider.sampler is DEFAULT_ON
        (self._span_key,) = trace.set_span_in_context(trace.INVALID_SPAN, context.Context())
        self._settings = settings
        self._on_dropped = on_dropped
        self._ended: deque[Span | ReadableSpan] = deque()
        self._encoded: deque[bytes] = deque()
        self._lost: Counter[str] = Counter()  # by reason, ever; told by the thread
        self._told: Counter[str] = Counter()
        self._complaint = Complaint()
        self._stopping = threading.Event()
        # A daemon: a collector that does not answer must not keep the process.
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def is_sampled(self, trace_id: bytes, name: str, parent: Place | None) -> bool:
        """Say whether a span below another process's `parent` is sampled: OTEL_TRACES_SAMPLER decides."""
        if self._is_left_to_callers:
            return parent is None or parent.is_sampled
        above = (
            None
            if parent is None
            else trace.set_span_in_context(_elsewhere(parent), context.Context())
        )
        asked = self._provider.sampler.should_sample(above, int.from_bytes(trace_id), name)
        return asked.decision is Decision.RECORD_AND_SAMPLE

    def put(self, span: Span | ReadableSpan) -> None:
        """Queue a span for export; returns at once."""
        waiting_count = len(self._ended) + 1
        if waiting_count + len(self._encoded) > self._settings.max_queue:
            self._lost["queue-full"] += 1
            return
        self._ended.append(span)
        if waiting_count >= BLOCK_COUNT:
            self._encode_ended()

    def serve_authors(self) -> None:
        """Also export spans made in this process with OpenTelemetry's own API."""
        self._provider.add_span_processor(_AuthorsSpans(self.put))
        trace.set_tracer_provider(self._provider)

    def attach(self, span: Span) -> None:
        """Make this span the parent of OpenTelemetry's own spans, in this task and its threads."""
        context.attach(context.Context({self._span_key: _Above(span)}))

    def close(self, limit_s: float) -> None:
        """Export the queued spans, within a time limit."""
        self._stopping.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        # By polling: checking at each span whether to wake the thread costs more.
        while not self._stopping.wait(self._settings.delay_s):
            self._send_waiting()
        self._send_waiting()  # queued during the last export

    def _encode_ended(self) -> None:
        """Encode the spans that have ended; several threads may, at once."""
        for _ in range(len(self._ended)):
            try:
                span = self._ended.popleft()
            except IndexError:
                return
            try:
                told = encode_span(span) if isinstance(span, Span) else _encode_authors(span)
            except Exception as error:  # noqa: BLE001 - what an author has put into a span must cost no other one
                self._lost[plain_name(type(error).__name__)] += 1
            else:
                self._encoded.append(told)

    def _send_waiting(self) -> None:
        self._encode_ended()
        batch: list[bytes] = []
        size = 0
        # Later spans wait for the next round: a busy process would otherwise export continuously, a few at a time.
        for _ in range(len(self._encoded)):
            told = self._encoded.popleft()
            if len(batch) == self._settings.max_batch or size + len(told) > MAX_REQUEST_BYTES:
                self._send(batch)
                batch, size = [], 0
            batch.append(told)
            size += len(told)
        self._send(batch)
        for reason, count in self._lost.copy().items():
            if count > self._told[reason]:
                self._drop(count - self._told[reason], reason)
                self._told[reason] = count

    def _send(self, batch: Sequence[bytes]) -> None:
        if not batch:
            return
        request = encode_request(self._resource, SCOPE, VERSION, batch)
        try:
            reason = self._export(request, len(batch))
        except Exception as error:  # noqa: BLE001 - whatever the library raises, the next request may go out
            reason = type(error).__name__
        if reason is not None:
            self._drop(len(batch), reason)

    def _drop(self, count: int, reason: str) -> None:
        self._on_dropped(count)
        if self._complaint.may_be_said():
            LOG.warning("spans_dropped", span_count=count, reason=reason)


class _Above(trace.NonRecordingSpan):
    """One of our spans as a parent for the library; few tasks ever need one."""

    def __init__(self, span: Span) -> None:
        self._span = span  # instead of a context, which is created on demand

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"

    def get_span_context(self) -> trace.SpanContext:
        return _context_of(self._span.place, is_remote=False)


class _AuthorsSpans(SpanProcessor):
    """Puts the library's own spans into the same queue."""

    def __init__(self, put: Callable[[ReadableSpan], None]) -> None:
        self._put = put

    def on_end(self, span: ReadableSpan) -> None:
        self._put(span)


def _encode_authors(span: ReadableSpan) -> bytes:
    """Return a span of the library, encoded as an element of a scope."""
    told = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
    return encode_field(2, told.SerializeToString())


def _elsewhere(place: Place) -> trace.Span:
    """Return a span of another process as the library's samplers look at it."""
    return trace.NonRecordingSpan(_context_of(place, is_remote=True))


def _context_of(place: Place, *, is_remote: bool) -> trace.SpanContext:
    return trace.SpanContext(
        int.from_bytes(place.trace_id),
        int.from_bytes(place.span_id),
        is_remote=is_remote,
        trace_flags=trace.TraceFlags(int(place.is_sampled)),
    )
