"""Count what the gateway does, and expose the metrics of the whole server.

A process counts on a page of the server's sheet: `/metrics` of any of its processes shows all of them. The database's
state (how many runs wait for what) is read from it, once for several scrapes, never incremented and decremented.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from smithers.defaults import DEFAULT_QUEUE
from smithers.errors import StoreError
from smithers.events import EventType
from smithers.states import TERMINAL_STATUSES, RunStatus
from smithers.store.gauges import MAX_QUEUES, Backlog, Gauges
from smithers.telemetry import names
from smithers.telemetry.exposition import expose
from smithers.telemetry.lanes import LaneMeter
from smithers.telemetry.names import DropReason, Role
from smithers.telemetry.sheet import Counter, Histogram, Key, MetricsPage, Sheet

METHODS: Final = frozenset({"GET", "HEAD", "POST"})
KEPT_S: Final = 5.0
READ_TIMEOUT_S: Final = 2.0
EMPTY: Final = Backlog(0, 0.0)

ReadGauges = Callable[[], Awaitable[Gauges]]  # may raise StoreError


class Metrics:
    """The metrics of one gateway process."""

    def __init__(
        self, page: MetricsPage | None = None, read_gauges: ReadGauges | None = None
    ) -> None:
        """`page`: this process's page of the shared sheet; without one it has a sheet to itself."""
        self._page = page or Sheet.create(1).open_page(Role.GATEWAY)
        self._gauges = None if read_gauges is None else _KeptGauges(read_gauges)
        self._events = {event: self._page.counter(names.EVENTS, event.value) for event in EventType}
        self._drops = {
            reason: self._page.counter(names.STREAMS_DROPPED, reason.value) for reason in DropReason
        }
        self._requests: dict[tuple[str, str, int], tuple[Counter, Histogram | None]] = {}
        self._listening = self._page.gauge(names.LISTENER_AGE, Role.GATEWAY)
        self._listening.set(0.0)
        self.lanes = LaneMeter(self._page)
        self.runs_resumed = self._page.counter(names.RUNS_RESUMED)
        self.streams_active = self._page.gauge(names.STREAMS_ACTIVE)
        self.events_sent = self._page.counter(names.STREAM_EVENTS_SENT)
        self.stream_lag = self._page.histogram(names.STREAM_LAG)
        self.spans_dropped = self._page.counter(names.SPANS_DROPPED)
        self._runs_started = self._page.counter(names.RUNS_STARTED)

    def count_request(self, method: str, route: str, status: int, duration_s: float | None) -> None:
        """Count an answer; a stream has no duration. Those of one method, route and status are all streams, or none is."""
        key = (method if method in METHODS else names.NO_METHOD, route, status)
        series = self._requests.get(key)
        if series is None:
            series = self._requests[key] = self._open_series(*key, is_timed=duration_s is not None)
        counted, timed = series
        counted.inc()
        if timed is not None and duration_s is not None:
            timed.observe(duration_s)

    def _open_series(
        self, method: str, route: str, status: int, *, is_timed: bool
    ) -> tuple[Counter, Histogram | None]:
        labels = (method, route, str(status))
        timed = self._page.histogram(names.HTTP_REQUEST_DURATION, *labels) if is_timed else None
        return self._page.counter(names.HTTP_REQUESTS, *labels), timed

    def count_start(self) -> None:
        """Count an accepted run, with its first event."""
        self._runs_started.inc()
        self._events[EventType.RUN_STARTED].inc()

    def count_event(self, event: EventType) -> None:
        """Count an event that a request wrote."""
        self._events[event].inc()

    def count_drop(self, reason: DropReason) -> None:
        """Count a stream that was closed."""
        self._drops[reason].inc()

    def hear_listening(self, is_connected: bool) -> None:
        """Record that the connection for hints is up, or lost."""
        self._listening.set(time.monotonic() if is_connected else 0.0)

    async def expose(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type, which the client may choose."""
        gauges = {} if self._gauges is None else await self._gauges.read()
        return expose(self._page.sheet, accept, gauges)


class _KeptGauges:
    """Gauges read from the database, cached for some seconds."""

    def __init__(self, read: ReadGauges) -> None:
        self._read = read
        self._kept: dict[Key, float] = {}
        self._queues = {DEFAULT_QUEUE}  # queues that ever had waiting runs
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def read(self) -> dict[Key, float]:
        """Refresh expired gauges; unreadable ones are not shown, rather than shown outdated."""
        async with self._reading:
            if time.monotonic() - self._read_at > KEPT_S:
                try:
                    async with asyncio.timeout(READ_TIMEOUT_S):
                        gauges = await self._read()
                except (TimeoutError, StoreError):
                    self._kept = {(names.DB_UP.name,): 0.0}
                else:
                    self._queues |= gauges.queues.keys()
                    if len(self._queues) > MAX_QUEUES:
                        self._queues = {DEFAULT_QUEUE, *gauges.queues}
                    self._kept = _as_series(gauges, self._queues)
                self._read_at = time.monotonic()
            return self._kept


def _as_series(gauges: Gauges, queues: set[str]) -> dict[Key, float]:
    """Return the gauges as series; a queue that has become empty is shown as 0."""
    series: dict[Key, float] = {
        (names.RUNS.name, status.value): gauges.runs.get(status, 0)
        for status in RunStatus
        if status not in TERMINAL_STATUSES
    }
    for queue in queues:
        backlog = gauges.queues.get(queue, EMPTY)
        series[names.QUEUE_DEPTH.name, queue] = backlog.count
        series[names.QUEUE_OLDEST.name, queue] = backlog.oldest_s
    series[names.APPROVALS_PENDING.name,] = gauges.approvals.count
    series[names.APPROVALS_OLDEST.name,] = gauges.approvals.oldest_s
    series[names.TIMERS_PENDING.name,] = gauges.runs.get(RunStatus.WAITING_TIMER, 0)
    series[names.DB_UP.name,] = 1.0
    return series
