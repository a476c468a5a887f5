"""What a handler is given: the request, whose it is, what its path names, and the services."""

from dataclasses import dataclass, field, replace
from typing import Self

from aiohttp import web

from gateway.access import Credential
from gateway.backlog import Backlog
from gateway.databases import Database, Databases
from gateway.load import Load
from gateway.metrics import Metrics
from gateway.routing import Part, Route
from gateway.settings import GatewaySettings
from gateway.stream_tokens import StreamTokens
from gateway.traces import read_caller
from smithers.defaults import DEFAULT_QUEUE
from smithers.ids import RunId, is_run_id
from smithers.store.connections import Pool
from smithers.store.hints import Channel
from smithers.store.refusals import RunNotFound
from smithers.store.revisions import Revisions
from smithers.telemetry.spans import Span
from smithers.telemetry.tracing import Tracer


@dataclass(slots=True)
class Readiness:
    """Whether the gateway should get requests; what was found is kept for a moment."""

    is_draining: bool = False
    failing: str | None = None
    checked_at: float = field(default=float("-inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the handlers of one process share."""

    settings: GatewaySettings
    home: Database  # the server's own
    databases: Databases  # the workflows' own
    probes: Pool  # for what is asked about this process
    stream_tokens: StreamTokens
    metrics: Metrics
    load: Load
    backlog: Backlog
    tracer: Tracer | None  # None: traces are off
    readiness: Readiness
    revisions: Revisions


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request on its way through its handler."""

    request: web.Request
    request_id: str
    route: Route
    parts: tuple[Part, ...]
    credential: Credential
    services: Services
    database: Database  # where the run lives that it is about; else the server's own
    span: Span | None = None  # None: traces are off

    @property
    def trace_context(self) -> str | None:
        """Write where what this request starts stands in a trace, as W3C's traceparent."""
        place = read_caller(self.request) if self.span is None else self.span.place
        return None if place is None else place.traceparent

    async def at_run(self, run_id: RunId) -> Self:
        """Turn to the database that a run lives in; raises StoreError."""
        database = await self.services.databases.find(self.services.home, run_id)
        return replace(self, database=database)

    def run_id(self, *, missing: type[RunNotFound] = RunNotFound) -> RunId:
        """Read which run the path names; raises `missing` for what can be no run's name."""
        decoded = self.parts[0].decoded
        if decoded is None or not is_run_id(decoded):
            raise missing
        return RunId(decoded)

    def hint_due(self, queue: str | None) -> None:
        """Tell claimers, after the commit, that a run became claimable."""
        self.database.hints.send(Channel.DUE, [queue or DEFAULT_QUEUE])

    def hint_events(self, run_id: RunId) -> None:
        """Tell streams, after the commit, that a run has new events."""
        self.database.hints.send(Channel.EVENTS, [run_id])

    def hint_news(self, run_id: RunId) -> None:
        """Tell a run's owner, after the commit, that something came in."""
        self.database.hints.send(Channel.NEWS, [run_id])
