"""The names of what is measured, in one place: metrics with their help, labels and bounds.

Prometheus' rules: base units, `_total` for what only grows. A label never holds an id, a path or a token: routes stand as
their templates, and what has no route is "none".
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NO_ROUTE: Final = "none"  # the route label of a request that found none
NO_METHOD: Final = "other"  # the method label of a word that is no method of ours


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is registered."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class DropReason(StrEnum):
    """Why the gateway cut a stream."""

    BUFFER = "buffer"  # its reader is behind by more than the buffer holds
    STALLED = "stalled"  # its reader took nothing for too long
    GONE = "gone"  # its reader went away


HTTP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

HTTP_REQUESTS: Final = Metric(
    "smithers_http_requests_total",
    "Requests answered, by method, route template and status.",
    ("method", "route", "status"),
)
HTTP_REQUEST_DURATION: Final = Metric(
    "smithers_http_request_duration_seconds",
    "Time from a request's head to its answer; streams excepted.",
    ("method", "route"),
    HTTP_SECONDS,
)
STREAMS_ACTIVE: Final = Metric("smithers_streams_active", "Event streams that are open.")
STREAMS_DROPPED: Final = Metric(
    "smithers_streams_dropped_total",
    "Event streams cut because of their readers, by reason.",
    ("reason",),
)
STREAM_EVENTS_SENT: Final = Metric(
    "smithers_stream_events_sent_total", "Events written to streams, once for each viewer."
)
STREAM_LAG: Final = Metric(
    "smithers_stream_lag_seconds",
    "Time from an event's commit to its writing to a stream, by the last event of each write.",
    (),
    LAG_SECONDS,
)
