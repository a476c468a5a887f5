"""A collector for tests: it takes OTLP over HTTP and over gRPC on loopback ports, and decodes it with the real messages."""

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.support import canary

LIMIT_S = 30.0


@dataclass(frozen=True)
class SpanSeen:
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    began_ns: int
    ended_ns: int
    is_error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has arrived, and where to send it."""

    url: str
    protocol: str
    spans: list[SpanSeen] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def variables(self) -> dict[str, str]:
        """What a process is told to send its spans here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
        }

    def take(self, request: wire.ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        """Take in a request."""
        seen = [
            _seen(span, _plain_all(resource.resource.attributes))
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self.changed:
            self.spans += seen
            self.headers.append(headers)
            self.raw.append(request.SerializeToString())
            canary.look_through(self.raw[-1].decode("latin-1"), "a span")
            self.changed.notify_all()

    def until(self, condition: Callable[[list[SpanSeen]], Any]) -> Any:
        """Wait until the spans that have arrived are as they should be."""
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.spans), LIMIT_S), self.spans
            return condition(self.spans)


@contextmanager
def collecting(protocol: str) -> Iterator[Collector]:
    """Have a collector for one protocol: grpc or http/protobuf."""
    with _over_grpc() if protocol == "grpc" else _over_http() as collector:
        yield collector


@contextmanager
def _over_http() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            is_ours = self.path == "/v1/traces"
            if is_ours:
                assert self.headers["Content-Type"] == "application/x-protobuf"
                request = wire.ExportTraceServiceRequest.FromString(body)
                collector.take(request, dict(self.headers))
            self.send_response(200 if is_ours else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}", "http/protobuf")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _over_grpc() -> Iterator[Collector]:
    class Servicer(service.TraceServiceServicer):
        def Export(  # noqa: N802 - the service's name
            self, request: wire.ExportTraceServiceRequest, context: grpc.ServicerContext
        ) -> wire.ExportTraceServiceResponse:
            collector.take(
                request, {item.key: item.value for item in context.invocation_metadata()}
            )
            return wire.ExportTraceServiceResponse()

    threads = ThreadPoolExecutor(2)
    server = grpc.server(threads)
    service.add_TraceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    collector = Collector(f"http://127.0.0.1:{port}", "grpc")
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait(LIMIT_S)
        threads.shutdown()


def _seen(span: Any, resource: dict[str, Any]) -> SpanSeen:
    return SpanSeen(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        is_error=span.status.code == 2,
        attributes=_plain_all(span.attributes),
        resource=resource,
    )


def _plain_all(attributes: Any) -> dict[str, Any]:
    return {item.key: _plain(item.value) for item in attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
