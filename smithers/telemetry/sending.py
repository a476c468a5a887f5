"""Send spans to a collector, beside everything else: a bounded queue, a thread, and the library's exporters.

Imported only where traces are on. The settings are the standard `OTEL_*` variables, and the library's to read. A collector
that is slow or gone costs its spans: the queue is full, and what comes is dropped and counted.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON, Decision

from smithers.telemetry.otel_variables import read_settings
from smithers.telemetry.otlp import encode_field, encode_request, encode_span
from smithers.telemetry.spans import Span, plain

LOG: Final = structlog.get_logger(__name__)
SCOPE: Final = "smithers"
VERSION: Final = version("smithers-gateway")  # read from a file, which takes as long as 100 spans
COMPLAIN_EVERY_S: Final = 60.0

Export = Callable[[bytes, int], bool]  # a request and its number of spans; whether it was taken


class Sender:
    """The way out for the spans of one process."""

    def __init__(self, variables: Mapping[str, str], on_dropped: Callable[[int], None]) -> None:
        """`variables`: the `OTEL_*` ones. `on_dropped` is called in the sender's thread. Raises InvalidTelemetry."""
        settings = read_settings(variables)
        # The exporters complain at every try, and with tracebacks; we do in one line a minute.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        with _environment({"OTEL_SERVICE_NAME": "smithers", **variables}):
            self._provider = TracerProvider(shutdown_on_exit=False)
            self._export = _open_grpc() if settings.is_grpc else _open_http()
        resource = {**self._provider.resource.attributes, "process.pid": os.getpid()}
        self._resource = {name: plain(value) for name, value in resource.items()}
        self._samples_all = self._provider.sampler in (ALWAYS_ON, DEFAULT_ON)
        (self._span_key,) = trace.set_span_in_context(trace.INVALID_SPAN, context.Context())
        self._settings = settings
        self._on_dropped = on_dropped
        self._queue: deque[Span | bytes] = deque()
        self._overflow_count = 0
        self._complained_at = float("-inf")
        self._stopping = threading.Event()
        # A daemon: a collector that does not answer must not keep the process.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def is_sampled(self, trace_id: bytes, name: str) -> bool:
        """Say whether a trace that begins here is told: OTEL_TRACES_SAMPLER decides."""
        if self._samples_all:
            return True
        asked = self._provider.sampler.should_sample(None, int.from_bytes(trace_id), name)
        return asked.decision is Decision.RECORD_AND_SAMPLE

    def put(self, span: Span | bytes) -> None:
        """Have a span sent soon, or what it was written as already; returns at once."""
        if len(self._queue) < self._settings.max_queue:
            self._queue.append(span)
        else:
            self._overflow_count += 1

    def serve_authors(self) -> None:
        """Send what is traced in this process through OpenTelemetry's own API as well."""
        self._provider.add_span_processor(_AuthorsSpans(self.put))
        trace.set_tracer_provider(self._provider)

    def attach(self, span: Span) -> None:
        """Have spans of OpenTelemetry's own API stand below this one, in this task and its threads."""
        context.attach(context.Context({self._span_key: _Above(span)}))

    def close(self, limit_s: float) -> None:
        """Send what is there, for so long at the most."""
        self._stopping.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        # Without being woken: to ask at each span whether it must be costs more than to look once in a while.
        while not self._stopping.wait(self._settings.delay_s):
            self._send_waiting()
        self._send_waiting()  # what was put while the last of it left

    def _send_waiting(self) -> None:
        # What comes meanwhile waits for the next time: a busy process would else send without a pause, a few at a time.
        count, most = len(self._queue), self._settings.max_batch
        for start in range(0, count, most):
            self._send([self._queue.popleft() for _ in range(min(most, count - start))])

    def _send(self, batch: Sequence[Span | bytes]) -> None:
        told = [span if isinstance(span, bytes) else encode_span(span) for span in batch]
        request = encode_request(self._resource, SCOPE, VERSION, told)
        lost, self._overflow_count = self._overflow_count, 0
        if not self._export(request, len(batch)):
            lost += len(batch)
        if not lost:
            return
        self._on_dropped(lost)
        if time.monotonic() - self._complained_at > COMPLAIN_EVERY_S:
            self._complained_at = time.monotonic()
            LOG.warning("spans_dropped", span_count=lost)


class _Above(trace.NonRecordingSpan):
    """One of our spans, as the library finds its parents; few tasks ever look for one."""

    def __init__(self, span: Span) -> None:
        self._span = span  # in the place of a context, which is made for whoever asks

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"

    def get_span_context(self) -> trace.SpanContext:
        return trace.SpanContext(
            int.from_bytes(self._span.trace_id),
            int.from_bytes(self._span.span_id),
            is_remote=False,
            trace_flags=trace.TraceFlags(int(self._span.is_sampled)),
        )


class _AuthorsSpans(SpanProcessor):
    """Takes the library's own spans to the same queue."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put

    def on_end(self, span: ReadableSpan) -> None:
        for resource in encode_spans([span]).resource_spans:
            for scope in resource.scope_spans:
                for told in scope.spans:
                    body = told.SerializeToString()
                    self._put(encode_field(2, body))


def _open_http() -> Export:
    """Return what sends a request; retries, time-outs, headers and certificates are the library's."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    client = OTLPSpanExporter()._client  # noqa: SLF001 - below it, spans are bytes

    def export(request: bytes, _count: int) -> bool:
        return client.export(request).success

    return export


def _open_grpc() -> Export:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    class Exporter(OTLPSpanExporter):
        """Takes requests that are written already."""

        def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
            request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(data[0])
            return request

    exporter = Exporter()

    def export(request: bytes, count: int) -> bool:
        told: Any = (request,) * count  # its length is what the exporter counts
        return exporter.export(told) is SpanExportResult.SUCCESS

    return export


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let the library read its variables, which may hold secrets and are not in a worker's environment."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)
