"""The metrics in one place: every family with its name, help, labels and bounds.

Prometheus' rules: base units, `_total` for counters. A label never contains an id, a path or a token: routes are
templates, and unknown routes are "none". Labels whose values authors choose (queues, tools, agents, models) keep
the first MAX_OPEN_SERIES combinations; later ones are counted as "other".
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from smithers.events import EventType

NO_ROUTE: Final = "none"  # the route label of a request without a route
NO_METHOD: Final = "other"  # the method label of an unknown method
OTHER: Final = "other"  # the labels of combinations beyond the limit
MAX_OPEN_SERIES: Final = 64


class Kind(StrEnum):
    """Prometheus' type of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(StrEnum):
    """How gauges of several processes are merged."""

    SUM = "sum"
    MIN = "min"
    MAX = "max"


class Role(StrEnum):
    """The role of a server's process."""

    SERVER = "server"  # starts the others; with one HTTP process it is the gateway itself
    GATEWAY = "gateway"
    POOL = "pool"
    CHILD = "child"


class DropReason(StrEnum):
    """Why the gateway closed a stream."""

    STALLED = "stalled"  # its reader took nothing for too long
    GONE = "gone"  # its reader disconnected


class CallFailure(StrEnum):
    """Why the database did not execute a group's call."""

    DISK_FULL = "disk-full"
    READ_ONLY = "read-only"  # it is a standby, or set to read-only
    UNAVAILABLE = "unavailable"  # no answer, no connection, or none in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A family of series."""

    name: str
    help: str
    kind: Kind = Kind.COUNTER
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds of a histogram, without infinity
    merge: Merge = Merge.SUM
    is_open: bool = False  # authors choose the values of its labels
    is_since: bool = False  # stored as a monotonic timestamp, shown as its age


HTTP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
WORK_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0),
    *(300.0, 900.0, 3_600.0, 14_400.0, 86_400.0),
)
PEOPLE_SECONDS: Final = (1.0, 10.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0, 604_800.0)
GROUP_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

RUNS_STARTED: Final = Metric(
    name="smithers_runs_started_total",
    help="Runs accepted, or started by other runs.",
)
RUNS_RESUMED: Final = Metric(
    name="smithers_runs_resumed_total",
    help="Failed and cancelled runs that were resumed.",
)
RUN_DURATION: Final = Metric(
    name="smithers_run_duration_seconds",
    help="Time from a run's first claim to its end, waits included, by how it ended.",
    kind=Kind.HISTOGRAM,
    labels=("status",),
    buckets=WORK_SECONDS,
)
RUNS: Final = Metric(
    name="smithers_runs",
    help="Runs that have not ended, by status; read from the database.",
    kind=Kind.GAUGE,
    labels=("status",),
)
NODE_DURATION: Final = Metric(
    name="smithers_node_duration_seconds",
    help="Time from a task's first start on its worker to its end, retries and back-offs included, by how it ended.",
    kind=Kind.HISTOGRAM,
    labels=("state",),
    buckets=WORK_SECONDS,
)
NODES_ACTIVE: Final = Metric(
    name="smithers_nodes_active",
    help="Attempts in progress.",
    kind=Kind.GAUGE,
)
ATTEMPT_DURATION: Final = Metric(
    name="smithers_attempt_duration_seconds",
    help="Time from an attempt's start to the commit of its end, by how it ended.",
    kind=Kind.HISTOGRAM,
    labels=("state",),
    buckets=WORK_SECONDS,
)
QUEUE_DEPTH: Final = Metric(
    name="smithers_queue_depth",
    help="Runs that are due and not claimed, by queue; read from the database.",
    kind=Kind.GAUGE,
    labels=("queue",),
    is_open=True,
)
QUEUE_OLDEST: Final = Metric(
    name="smithers_queue_oldest_seconds",
    help="How long the longest waiting of these runs has been due, by queue; read from the database.",
    kind=Kind.GAUGE,
    labels=("queue",),
    is_open=True,
)
QUEUE_WAIT: Final = Metric(
    name="smithers_queue_wait_seconds",
    help="Time from when a run is due to its claim.",
    kind=Kind.HISTOGRAM,
    buckets=WORK_SECONDS,
)
EVENTS: Final = Metric(
    name="smithers_events_emitted_total",
    help="Events committed, by type.",
    labels=("type",),
)
APPROVALS_PENDING: Final = Metric(
    name="smithers_approvals_pending",
    help="Approvals that nobody has decided; read from the database.",
    kind=Kind.GAUGE,
)
APPROVALS_OLDEST: Final = Metric(
    name="smithers_approvals_oldest_seconds",
    help="How long the oldest of these has waited; read from the database.",
    kind=Kind.GAUGE,
)
APPROVAL_WAIT: Final = Metric(
    name="smithers_approval_wait_seconds",
    help="Time from an approval's request until its run has processed the decision or withdrawal.",
    kind=Kind.HISTOGRAM,
    buckets=PEOPLE_SECONDS,
)
TIMERS_PENDING: Final = Metric(
    name="smithers_timers_pending",
    help="Runs parked until a time; read from the database.",
    kind=Kind.GAUGE,
)
TIMER_DELAY: Final = Metric(
    name="smithers_timer_delay_seconds",
    help="How late timers fired.",
    kind=Kind.HISTOGRAM,
    buckets=WORK_SECONDS,
)
TOOL_CALLS: Final = Metric(
    name="smithers_tool_calls_total",
    help="Tool calls that have ended, by tool and by how they ended.",
    labels=("tool", "status"),
    is_open=True,
)
TOOL_DURATION: Final = Metric(
    name="smithers_tool_call_duration_seconds",
    help="Time that tool calls took, by tool.",
    kind=Kind.HISTOGRAM,
    labels=("tool",),
    buckets=WORK_SECONDS,
    is_open=True,
)
TOKENS: Final = Metric(
    name="smithers_tokens_total",
    help="Tokens that models consumed and produced, by direction (input, output), agent and model.",
    labels=("direction", "agent", "model"),
    is_open=True,
)
HTTP_REQUESTS: Final = Metric(
    name="smithers_http_requests_total",
    help="Requests answered, by method, route template and status.",
    labels=("method", "route", "status"),
)
HTTP_REQUEST_DURATION: Final = Metric(
    name="smithers_http_request_duration_seconds",
    help="Time from a request's head to its answer, by method, route template and status; except streams.",
    kind=Kind.HISTOGRAM,
    labels=("method", "route", "status"),
    buckets=HTTP_SECONDS,
)
STREAMS_ACTIVE: Final = Metric(
    name="smithers_streams_active", help="Open event streams.", kind=Kind.GAUGE
)
STREAMS_DROPPED: Final = Metric(
    name="smithers_streams_dropped_total",
    help="Event streams closed because of their readers, by reason.",
    labels=("reason",),
)
STREAM_EVENTS_SENT: Final = Metric(
    name="smithers_stream_events_sent_total",
    help="Events written to streams, once for each viewer.",
)
STREAM_LAG: Final = Metric(
    name="smithers_stream_lag_seconds",
    help="Time from the commit of a write's first event until it is written to a stream, by the database's clock.",
    kind=Kind.HISTOGRAM,
    buckets=LAG_SECONDS,
)
DB_TRANSACTION: Final = Metric(
    name="smithers_db_transaction_duration_seconds",
    help="Duration of a group's one database call, by lane.",
    kind=Kind.HISTOGRAM,
    labels=("lane",),
    buckets=HTTP_SECONDS,
)
DB_GROUP_SIZE: Final = Metric(
    name="smithers_db_group_size",
    help="Items sent in one call, by lane.",
    kind=Kind.HISTOGRAM,
    labels=("lane",),
    buckets=GROUP_SIZES,
)
DB_WAIT: Final = Metric(
    name="smithers_db_wait_duration_seconds",
    help="Time that a group's first item waited for the connection, by lane; as `pool`: a cold query for one of a gateway's.",
    kind=Kind.HISTOGRAM,
    labels=("lane",),
    buckets=HTTP_SECONDS,
)
DB_CALLS_FAILED: Final = Metric(
    name="smithers_db_calls_failed_total",
    help="Groups' calls that the database did not execute, by reason: its disk is full, it takes no writes, or it is away.",
    labels=("reason",),
)
DB_UP: Final = Metric(
    name="smithers_db_up",
    help="1 if the database answered the last query for these metrics.",
    kind=Kind.GAUGE,
    merge=Merge.MIN,
)
LEASES_LOST: Final = Metric(
    name="smithers_leases_lost_total",
    help="Runs that a worker lost to another owner.",
)
TAKEOVERS: Final = Metric(
    name="smithers_takeovers_total",
    help="Runs handed back from workers that were declared dead, by how the death was noticed.",
    labels=("reason",),
)
CHILDREN_ENDED: Final = Metric(
    name="smithers_children_ended_total",
    help="Worker processes that ended and were buried by their pool, by reason.",
    labels=("reason",),
)
PROCESSES_DIED: Final = Metric(
    name="smithers_processes_died_total",
    help="Pools (worker) and HTTP processes (gateway) that died and were restarted, by module.",
    labels=("module",),
)
LISTENER_AGE: Final = Metric(
    name="smithers_listener_age_seconds",
    help="How long a role's youngest connection for notifications has been up; 0 while one is down.",
    kind=Kind.GAUGE,
    labels=("role",),
    merge=Merge.MIN,
    is_since=True,
)
BEAT_AGE: Final = Metric(
    name="smithers_heartbeat_age_seconds",
    help="How long ago the pool last wrote its workers' heartbeats; of several pools the longest.",
    kind=Kind.GAUGE,
    merge=Merge.MAX,
    is_since=True,
)
PROCESSES: Final = Metric(
    name="smithers_processes",
    help="Living processes of this server, by role.",
    kind=Kind.GAUGE,
    labels=("role",),
)
PROCESS_UPTIME: Final = Metric(
    name="smithers_process_uptime_seconds",
    help="Age of the youngest process of a role.",
    kind=Kind.GAUGE,
    labels=("role",),
    merge=Merge.MIN,
)
PROCESS_MEMORY: Final = Metric(
    name="smithers_process_resident_memory_bytes",
    help="Resident memory of the processes of a role; shared memory is counted in each.",
    kind=Kind.GAUGE,
    labels=("role",),
)
SERIES_LOST: Final = Metric(
    name="smithers_metric_series_lost",
    help="Series for which a process's page had no room, and processes without a page: their values are not shown.",
    kind=Kind.GAUGE,
)
SPANS_DROPPED: Final = Metric(
    name="smithers_spans_dropped_total",
    help="Spans that were not exported: the queue was full, the collector did not accept them, or they could not be encoded.",
)
BUILD_INFO: Final = Metric(
    name="smithers_build_info",
    help="1, with the version as its label.",
    kind=Kind.GAUGE,
    labels=("version",),
)

# These are derived: every committed event is counted by its type.
_BY_EVENT: Final = {
    EventType.RUN_FINISHED: ("runs_finished", "Runs that finished."),
    EventType.RUN_FAILED: ("runs_failed", "Runs that failed."),
    EventType.RUN_CANCELLED: ("runs_cancelled", "Runs that were cancelled."),
    EventType.RUN_CONTINUED_AS_NEW: ("runs_continued", "Runs that were continued as new ones."),
    EventType.RUN_AUTO_RESUMED: ("runs_taken_over", "Runs that resumed after an owner's death."),
    EventType.FRAME_COMMITTED: ("frames_committed", "Renders whose tree changed."),
    EventType.NODE_STARTED: ("nodes_started", "Attempts that began."),
    EventType.NODE_FINISHED: ("nodes_finished", "Nodes that finished."),
    EventType.NODE_FAILED: ("nodes_failed", "Attempts and waits that failed."),
    EventType.NODE_RETRYING: ("nodes_retried", "Failed attempts that are retried."),
    EventType.NODE_CANCELLED: ("nodes_cancelled", "Nodes that were cancelled."),
    EventType.NODE_SKIPPED: ("nodes_skipped", "Nodes that were skipped."),
    EventType.APPROVAL_REQUESTED: ("approvals_requested", "Approvals that were requested."),
    EventType.APPROVAL_GRANTED: ("approvals_granted", "Approvals that were granted."),
    EventType.APPROVAL_DENIED: ("approvals_denied", "Approvals denied, including by a time-out."),
    EventType.TIMER_CREATED: ("timers_created", "Timers that were set."),
    EventType.TIMER_FIRED: ("timers_fired", "Timers that fired."),
    EventType.SIGNAL_RECEIVED: ("signals_received", "Signals that were recorded."),
}
OF_EVENTS: Final = {
    event: Metric(name=f"smithers_{name}_total", help=text)
    for event, (name, text) in _BY_EVENT.items()
}

FAMILIES: Final = (
    RUNS_STARTED,
    RUNS_RESUMED,
    RUN_DURATION,
    RUNS,
    NODE_DURATION,
    NODES_ACTIVE,
    ATTEMPT_DURATION,
    QUEUE_DEPTH,
    QUEUE_OLDEST,
    QUEUE_WAIT,
    EVENTS,
    *OF_EVENTS.values(),
    APPROVALS_PENDING,
    APPROVALS_OLDEST,
    APPROVAL_WAIT,
    TIMERS_PENDING,
    TIMER_DELAY,
    TOOL_CALLS,
    TOOL_DURATION,
    TOKENS,
    HTTP_REQUESTS,
    HTTP_REQUEST_DURATION,
    STREAMS_ACTIVE,
    STREAMS_DROPPED,
    STREAM_EVENTS_SENT,
    STREAM_LAG,
    DB_TRANSACTION,
    DB_GROUP_SIZE,
    DB_WAIT,
    DB_CALLS_FAILED,
    DB_UP,
    LEASES_LOST,
    TAKEOVERS,
    CHILDREN_ENDED,
    PROCESSES_DIED,
    LISTENER_AGE,
    BEAT_AGE,
    PROCESSES,
    PROCESS_UPTIME,
    PROCESS_MEMORY,
    SERIES_LOST,
    SPANS_DROPPED,
    BUILD_INFO,
)
