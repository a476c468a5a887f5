"""A handler's argument: the request, its credential, its path parameters, and the services."""

from dataclasses import dataclass, field, replace
from typing import Self

from aiohttp import web

from gateway.access import Access, Credential
from gateway.backlog import BacklogEstimate
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
    """Whether the gateway should get requests; the result is cached for a moment."""

    is_draining: bool = False
    failing: str | None = None
    checked_at: float = field(default=float("-inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that the handlers of one process share."""

    settings: GatewaySettings
    access: Access
    home: Database  # the server's own
    databases: Databases  # the workflows' own
    probes: Pool  # for queries about this process itself
    stream_tokens: StreamTokens
    metrics: Metrics
    load: Load
    backlog: BacklogEstimate
    tracer: Tracer | None  # None: traces are off
    readiness: Readiness
    revisions: Revisions


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its context."""

    request: web.BaseRequest
    request_id: str
    route: Route
    parts: tuple[Part, ...]
    credential: Credential
    services: Services
    database: Database  # where its run lives; else the server's own
    span: Span | None = None  # None: traces are off

    @property
    def trace_context(self) -> str | None:
        """Return the trace context for what this request starts, as a W3C traceparent."""
        place = read_caller(self.request) if self.span is None else self.span.place
        return None if place is None else place.traceparent

    async def at_run(self, run_id: RunId) -> Self:
        """Switch to the database that a run lives in; raises StoreError."""
        database = await self.services.databases.find(self.services.home, run_id)
        return replace(self, database=database)

    def run_id(self, *, missing: type[RunNotFound] = RunNotFound) -> RunId:
        """Read the run's id from the path; raises `missing` for an impossible id."""
        decoded = self.parts[0].decoded
        if decoded is None or not is_run_id(decoded):
            raise missing
        return RunId(decoded)

    def hint_due(self, queue: str | None) -> None:
        """Notify claimers, after the commit, that a run became claimable."""
        self.database.hints.send(Channel.DUE, [queue or DEFAULT_QUEUE])

    def hint_events(self, run_id: RunId) -> None:
        """Notify streams, after the commit, that a run has new events."""
        self.database.hints.send(Channel.EVENTS, [run_id])

    def hint_news(self, run_id: RunId) -> None:
        """Notify a run's owner, after the commit, that something arrived for it."""
        self.database.hints.send(Channel.NEWS, [run_id])
