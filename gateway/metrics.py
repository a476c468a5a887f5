"""Count what the gateway does, and show it as Prometheus wants to read it.

A registry of its own: several gateways in one process (as in tests) do not add up. Children of labelled metrics are kept
by the tuple of their labels, because looking one up in the library costs more than counting.
"""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from smithers.telemetry import names

METHODS: Final = frozenset({"GET", "HEAD", "POST"})


class Metrics:
    """The gateway's metrics."""

    def __init__(self) -> None:
        # A second series for each counter, that nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's only bare one
        self.registry = CollectorRegistry()
        self._requests = Counter(
            *_named(names.HTTP_REQUESTS), names.HTTP_REQUESTS.labels, registry=self.registry
        )
        self._durations = Histogram(
            *_named(names.HTTP_REQUEST_DURATION),
            names.HTTP_REQUEST_DURATION.labels,
            registry=self.registry,
            buckets=names.HTTP_REQUEST_DURATION.buckets,
        )
        self._dropped = Counter(
            *_named(names.STREAMS_DROPPED), names.STREAMS_DROPPED.labels, registry=self.registry
        )
        self.streams_active = Gauge(*_named(names.STREAMS_ACTIVE), registry=self.registry)
        self.events_sent = Counter(*_named(names.STREAM_EVENTS_SENT), registry=self.registry)
        self.stream_lag = Histogram(
            *_named(names.STREAM_LAG), registry=self.registry, buckets=names.STREAM_LAG.buckets
        )
        self._kept_requests: dict[tuple[str, str, int], Counter] = {}
        self._kept_durations: dict[tuple[str, str], Histogram] = {}
        for reason in names.DropReason:
            self._dropped.labels(reason.value)

    def count_request(self, method: str, route: str, status: int, duration_s: float | None) -> None:
        """Count an answer; a stream has no duration."""
        method = method if method in METHODS else names.NO_METHOD
        counted = self._kept_requests.get((method, route, status))
        if counted is None:
            counted = self._requests.labels(method, route, str(status))
            self._kept_requests[method, route, status] = counted
        counted.inc()
        if duration_s is None:
            return
        timed = self._kept_durations.get((method, route))
        if timed is None:
            timed = self._durations.labels(method, route)
            self._kept_durations[method, route] = timed
        timed.observe(duration_s)

    def count_drop(self, reason: names.DropReason) -> None:
        """Count a stream that was cut."""
        self._dropped.labels(reason.value).inc()

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Write all metrics; answer the text and its content type, which the asker may choose."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _named(metric: names.Metric) -> tuple[str, str]:
    return metric.name.removesuffix("_total"), metric.help
