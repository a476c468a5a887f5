"""Serve one run of one workflow, and its continuations: an application by itself, or below a prefix of another one.

    host.add_subapp("/run", create_serve_app(ServeOptions(workflow=..., store=..., run_id=run_id)))

It has its own small table of routes over the handlers of the whole gateway, and the same checks, limits and answers. Below
`/v1/runs/RUN` it has the gateway's routes for this run, so that clients and commands work with it as with any server.
Its services are opened when the application starts, and closed with it; the run may be started before or after that.
"""

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web

from gateway.access import Access, Scope
from gateway.approvals import ApprovalsQuery, get_approvals
from gateway.exchange import Exchange
from gateway.frames import get_frames
from gateway.front import Front
from gateway.health import get_health, get_metrics
from gateway.nodes import post_approve, post_deny
from gateway.paging import Page
from gateway.protocol import GatewayRunner
from gateway.responses import ApprovalList
from gateway.routes import ROUTES
from gateway.routing import OPEN, Handler, Part, Route, Router
from gateway.runs import get_run, post_cancel, post_resume
from gateway.services import open_services
from gateway.settings import GatewaySettings
from gateway.streams import get_events, post_stream_token
from smithers.ids import RunId, is_run_id
from smithers.store.connections import Pool
from smithers.store.reads import find_newest
from smithers.store.refusals import RunNotFound
from smithers.telemetry.sheet import MetricsPage

__all__ = ["ServeOptions", "StoreAddress", "WorkflowReference", "create_serve_app", "open_run_site"]

LOG: Final = structlog.get_logger(__name__)
FRONT: Final = web.AppKey("smithers-front", Front)
# The run's owner releases it at its end, and only whole gateways check stream tokens.
NOT_SERVED: Final = (post_resume, post_stream_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowReference:
    """A workflow: its file below the root, the hash of its source, its name. No code is loaded here."""

    path: str
    source_hash: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """Where the run is stored: the URL of its Postgres, and one for LISTEN if the first goes through a pooler.

    `own_databases`: URLs, by the names that workflows have for databases of their own; the run may live in one of them.
    `data_dir`: of an embedded Postgres in another place than the default; `variables`: names of the environment's variables
    that have the URLs of a given one. `why` names them in the command that resumes the run.
    """

    dsn: str = field(repr=False)
    direct_dsn: str | None = field(default=None, repr=False)
    own_databases: Mapping[str, str] = field(default_factory=dict, repr=False)
    data_dir: Path | None = None
    variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings of an application for one run. Its continuations (`ContinueAsNew`) are served in its place.

    Without an `auth_token` only requests that name this host as `localhost`, `127.0.0.1` or `::1` are answered.
    Raises ValueError for an invalid run id.
    """

    workflow: WorkflowReference
    store: StoreAddress
    run_id: str
    abort: asyncio.Event | None = None  # set when the run was cancelled here
    auth_token: str | None = field(default=None, repr=False)
    metrics: bool = True  # whether there is a /metrics

    def __post_init__(self) -> None:
        """Check the run's id."""
        if not is_run_id(self.run_id):
            raise ValueError(f"{self.run_id!r} is not a run id")


def create_serve_app(options: ServeOptions, *, page: MetricsPage | None = None) -> web.Application:
    """Make the application.

    `page`: its page of the sheet that /metrics shows; by default it has a sheet to itself. Starting it may raise StoreError.
    """
    app = web.Application()
    everything = EveryPath("/{path}")
    app.router.register_resource(everything)
    everything.add_route("*", _answer, expect_handler=_leave_expectation)

    async def serve(app: web.Application) -> AsyncIterator[None]:
        async with _open_front(options, page, prefix=_prefix_of(everything)) as front:
            app[FRONT] = front
            yield

    app.cleanup_ctx.append(serve)
    app.on_shutdown.append(_drain)
    return app


@asynccontextmanager
async def open_run_site(
    options: ServeOptions, listener: socket.socket, page: MetricsPage, *, drain_timeout_s: float
) -> AsyncIterator[None]:
    """Serve one run on a listening socket, until the block is left; raises StoreError."""
    async with _open_front(options, page) as front:
        services = front.services
        runner = GatewayRunner(front, services.settings, services.load, drain_s=drain_timeout_s)
        await runner.setup()
        try:
            await runner.listen(listener)
            yield
        finally:
            front.drain()
            await runner.cleanup()


@asynccontextmanager
async def _open_front(
    options: ServeOptions, page: MetricsPage | None, *, prefix: str = ""
) -> AsyncIterator[Front]:
    """Open what answers the requests; `prefix`: the path below which they come."""
    access = Access(auth_token=options.auth_token, tokens_file=None, only_loopback_names=True)
    async with AsyncExitStack() as stack:
        services = await open_services(_settings(options), access, stack, page)
        LOG.info("run_served", run_id=options.run_id, workflow=options.workflow.name)
        router, leading = Router(_routes(options)), (Part(options.run_id),)
        yield Front(services, router, prefix=prefix, leading=leading)


def _settings(options: ServeOptions) -> GatewaySettings:
    return GatewaySettings(
        dsn=options.store.dsn,
        direct_dsn=options.store.direct_dsn or options.store.dsn,
        root_dir=None,
        auth_token=options.auth_token,
        own_databases=options.store.own_databases,
        data_dir=options.store.data_dir,
        database_variables=options.store.variables,
    )


class ServedRun:
    """The served run: the one of the options, or its newest continuation."""

    def __init__(self, run_id: RunId) -> None:
        self._run_id = run_id

    def route(self, method: str, template: str, scope: Scope, handler: Handler) -> Route:
        """Make a route for the run from a handler of the gateway."""

        @functools.wraps(handler)
        async def answer(exchange: Exchange, **given: Any) -> Any:
            at_run, newest = await self._at_newest(exchange)
            _, *parts = exchange.parts
            return await handler(replace(at_run, parts=(Part(newest), *parts)), **given)

        return Route(method, template, scope, answer)

    def named(self, route: Route, handler: Handler) -> Route:
        """Make a route of the gateway's whose path names the run, or one that it continues."""

        @functools.wraps(handler)
        async def answer(exchange: Exchange, **given: Any) -> Any:
            at_run, newest = await self._at_newest(exchange)
            at_run = replace(at_run, parts=exchange.parts[1:])
            if not await _is_continued_as(at_run.database.pool, at_run.run_id(), newest):
                raise RunNotFound
            return await handler(at_run, **given)

        return Route(route.method, route.template, route.scope, answer)

    async def get_approvals(self, exchange: Exchange, query: ApprovalsQuery) -> Page[ApprovalList]:
        """List the run's open questions to people."""
        at_run, newest = await self._at_newest(exchange)
        page = await get_approvals(at_run, query)
        asked = [one for one in page.value["approvals"] if one["runId"] == newest]
        return Page({"approvals": asked}, page.link)

    async def _at_newest(self, exchange: Exchange) -> tuple[Exchange, RunId]:
        # The newest is remembered: a chain may be long, and retention removes it from its start. All of it lives in one
        # database.
        at_run = await exchange.at_run(self._run_id)
        newest = await find_newest(at_run.database.pool, self._run_id)
        self._run_id = newest  # another request may set it before our caller reads it
        return at_run, newest


async def _is_continued_as(pool: Pool, named: RunId, newest: RunId) -> bool:
    """Say whether a run's chain leads to the newest; that may have continued since it was looked up."""
    end = await find_newest(pool, named)
    return end == newest or end == await find_newest(pool, newest)


def _routes(options: ServeOptions) -> tuple[Route, ...]:
    @functools.wraps(post_cancel)
    async def cancel(exchange: Exchange, **given: Any) -> Any:
        answer = await post_cancel(exchange, **given)
        if options.abort is not None:
            options.abort.set()
        return answer

    run = ServedRun(RunId(options.run_id))
    named = tuple(
        run.named(route, cancel if route.handler is post_cancel else route.handler)
        for route in ROUTES
        if route.template.startswith("/v1/runs/:runId") and route.handler not in NOT_SERVED
    )
    routes = (
        Route("GET", "/health", OPEN, get_health),
        run.route("GET", "/", Scope.RUNS_READ, get_run),
        run.route("GET", "/events", Scope.RUNS_READ, get_events),
        run.route("GET", "/frames", Scope.RUNS_READ, get_frames),
        run.route("POST", "/approve/:nodeId", Scope.APPROVALS_DECIDE, post_approve),
        run.route("POST", "/deny/:nodeId", Scope.APPROVALS_DECIDE, post_deny),
        run.route("POST", "/cancel", Scope.RUNS_WRITE, cancel),
        Route("GET", "/v1/approvals", Scope.RUNS_READ, run.get_approvals),
        *named,
    )
    counted = (Route("GET", "/metrics", Scope.METRICS_READ, get_metrics),)
    return routes + counted if options.metrics else routes


class EveryPath(web.DynamicResource):
    """Matches any request target, even `*` and encoded newlines, which aiohttp's own patterns would not match."""

    def _match(self, _path: str) -> dict[str, str]:
        return {}


def _prefix_of(everything: EveryPath) -> str:
    """Return the path below which the application was mounted; known when it starts."""
    return everything.canonical.removesuffix("/{path}")


async def _answer(request: web.Request) -> web.StreamResponse:
    return await request.app[FRONT](request)


async def _leave_expectation(_request: web.Request) -> None:
    """Ignore Expect for now: 100 Continue is sent when all checks before the body have passed."""


async def _drain(app: web.Application) -> None:
    app[FRONT].drain()
