"""Open the parts of OpenTelemetry's library that export spans: its sampler, its resource, and its exporters' senders.

Imported only if traces are on. The library reads the standard `OTEL_*` variables; it also handles retries,
time-outs, headers and certificates.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from smithers.telemetry.otel_variables import OTEL_PREFIX, InvalidTelemetry, keep_set
from smithers.texts import text_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

COMPRESSION: Final = "OTEL_EXPORTER_OTLP_COMPRESSION"
TRACES_COMPRESSION: Final = "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"
EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

# Takes a request and its number of spans; returns why it was not accepted: a status, or an error's class. None: it was.
Export = Callable[[bytes, int], str | None]


class Library(NamedTuple):
    """The library's parts."""

    provider: "TracerProvider"
    export: Export
    close: Callable[[], None]  # of the exporter


def open_library(variables: Mapping[str, str], *, is_grpc: bool) -> Library:
    """Let the library read all `OTEL_*` variables; raises InvalidTelemetry if it refuses them."""
    # The exporters log every failed try with a traceback, and quote invalid headers; we log one line a minute.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        with _environment({"OTEL_SERVICE_NAME": "smithers", **_standard(variables)}):
            from opentelemetry.sdk.trace import TracerProvider  # reads some of them on import

            provider = TracerProvider(shutdown_on_exit=False)
            return Library(provider, *(_open_grpc() if is_grpc else _open_http()))
    except Exception as error:
        # Each part of the library has its own errors for an invalid value; none of them contains a header.
        told = f"{type(error).__name__}: {text_of(error)}"
        raise InvalidTelemetry(f"the OTEL_* variables are invalid: {told}") from error


def _open_http() -> tuple[Export, Callable[[], None]]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    client = OTLPSpanExporter()._client  # noqa: SLF001 - below it, spans are bytes

    def export(request: bytes, _count: int) -> str | None:
        result = client.export(request)
        if result.success:
            return None
        return str(result.status_code or type(result.error).__name__)

    return export, client.shutdown


def _open_grpc() -> tuple[Export, Callable[[], None]]:
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    class Exporter(OTLPSpanExporter):
        """Exports already encoded requests."""

        reason = ""

        def _initialize_channel_and_stub(self) -> None:
            # Called again when it reconnects.
            super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]  # the library's
            channel: Any = self._channel
            self._call = channel.unary_unary(EXPORT_METHOD)  # without serializers: bytes stay bytes
            self._client: Any = self

        def Export(self, **how: Any) -> None:  # noqa: N802 - the name of the stub's method, in whose place it is called
            """Make one call."""
            try:
                self._call(**how)
            except grpc.RpcError as error:
                self.reason = error.code().name
                raise

        def _translate_data(self, data: Any) -> Any:
            return data[0]

    exporter = Exporter()

    def export(request: bytes, count: int) -> str | None:
        told: Any = (request,) * count  # its length is what the exporter counts
        taken = exporter.export(told) is SpanExportResult.SUCCESS
        return None if taken else exporter.reason

    return export, exporter.shutdown


def _standard(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables as the standard defines them: an empty one is unset, and compression may be `none`."""
    told = keep_set(variables)
    general = told.pop(COMPRESSION, "none")
    compression = told.pop(TRACES_COMPRESSION, general)
    # The gRPC exporter refuses this value.
    return told if compression.lower() == "none" else {**told, COMPRESSION: compression}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let the library read only these `OTEL_*` variables; workers' environments have none with a secret."""
    before = dict(os.environ)
    try:
        for name in before:
            if name.startswith(OTEL_PREFIX):
                del os.environ[name]
        os.environ.update(variables)
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)
