"""Every request passes here, once: its id, its credential, its route, its answer, its headers, its count.

The checks' order: authentication, route, scope, then the handler's own. It is one function instead of a chain of
middlewares, each of which would cost as much as a small answer.
"""

import re
import time
from typing import Final

import structlog
from aiohttp import web

from gateway.access import ANYBODY, Credential, Scope
from gateway.bodies import read_object
from gateway.envelope import find_status, new_request_id, problem, reply, translate
from gateway.errors import (
    Forbidden,
    InvalidRequest,
    Overloaded,
    RouteNotFound,
    Unauthorized,
    UnknownExpectation,
)
from gateway.exchange import Exchange, Services
from gateway.fields import Fields, read_each_once, read_fields
from gateway.load import Room
from gateway.paging import Page
from gateway.protocol import GatewayProtocol
from gateway.routing import OPEN, Part, Route, Router
from gateway.traces import begin_request, end_request
from smithers.complaints import Complaint
from smithers.errors import StoreUnavailable
from smithers.ids import RunId, is_run_id
from smithers.telemetry.names import NO_ROUTE
from smithers.telemetry.spans import Span

LOG: Final = structlog.get_logger(__name__)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


class Front:
    """The application's one handler."""

    def __init__(
        self,
        services: Services,
        router: Router,
        *,
        prefix: str = "",
        leading: tuple[Part, ...] = (),
    ) -> None:
        """`prefix`: below which the routes lie; `leading`: parameters that the route table supplies instead of the path."""
        self.services = services
        self._router = router
        self._prefix = prefix
        self._leading = leading
        self._complaint = Complaint()

    def drain(self) -> None:
        """Say that no more requests should come, and end the streams after a whole event."""
        self.services.readiness.is_draining = True
        self.services.home.hub.drain()
        self.services.databases.drain()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; every error becomes an envelope, or closes the connection."""
        began = time.perf_counter()
        request_id = _request_id(request)
        tracer = self.services.tracer
        span = begin_request(tracer, request)
        route: Route | None = None
        try:
            exchange = await self._admit(request, request_id, span)
            route = exchange.route
            response = await self._answer(exchange)
        except Exception as error:  # noqa: BLE001 - the one place where errors become HTTP
            self._complain(request_id, error)
            response = _refuse(request, error)
        template = NO_ROUTE if route is None else route.template
        is_stream = response.prepared
        if not is_stream:
            response.headers["X-Request-Id"] = request_id
            if self.services.readiness.is_draining or _is_surplus(request):
                response.force_close()
        if route is not None and route.scope is not OPEN and not is_stream:
            end_request(tracer, span, template, response.status)
        self.services.metrics.count_request(
            request.method,
            template,
            response.status,
            None if is_stream else time.perf_counter() - began,
        )
        return response

    def _complain(self, request_id: str, error: Exception) -> None:
        """Log a failure of the server, which the caller is not told about."""
        if isinstance(error, ConnectionError):
            return  # the caller has disconnected
        if find_status(type(translate(error))) is None:
            LOG.error("request_failed", request_id=request_id, exc_info=error)
        elif isinstance(error, StoreUnavailable) and self._complaint.may_be_said():
            LOG.warning("database_failed", request_id=request_id, error=str(error))

    async def _admit(
        self, request: web.BaseRequest, request_id: str, span: Span | None
    ) -> Exchange:
        """Find the caller and the route; raises InvalidRequest, Unauthorized, RouteNotFound."""
        if request.version not in ((1, 1), (1, 0)):
            raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are supported.")
        path = _raw_path(request).removeprefix(self._prefix) or "/"
        matched = self._router.find(request.method, path)
        credential = await self._identify(request, matched)
        if matched is None:
            raise RouteNotFound
        route, parts = matched
        named, services = (*self._leading, *parts), self.services
        return Exchange(
            request, request_id, route, named, credential, services, services.home, span
        )

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        """Answer within the limits; metrics always: they are needed most under overload."""
        scope = exchange.route.scope
        if scope is OPEN:
            return await answer(exchange)
        if not exchange.credential.allows(scope):
            raise Forbidden
        if not _is_known_expectation(exchange.request):
            raise UnknownExpectation
        if scope is Scope.METRICS_READ:
            return await answer(exchange)
        if _is_surplus(exchange.request):
            raise Overloaded(details={"limit": "connections"})
        with self.services.load.request():
            return await answer(await self._at_run(exchange))

    async def _at_run(self, exchange: Exchange) -> Exchange:
        """Switch to the database of the run that the path names, if there is more than one."""
        if not (exchange.route.names_run and self.services.databases.are_used):
            return exchange
        run_id = exchange.parts[0].decoded
        if run_id is None or not is_run_id(run_id):
            return exchange
        return await exchange.at_run(RunId(run_id))

    async def _identify(
        self, request: web.BaseRequest, matched: tuple[Route, tuple[Part, ...]] | None
    ) -> Credential:
        """Find the caller; raises Unauthorized whatever the path, so that it reveals nothing about routes."""
        if matched is not None and matched[0].scope is OPEN:
            return ANYBODY
        try:
            return self.services.access.admit(request.headers)
        except Unauthorized:
            if matched is None or not matched[0].takes_stream_token:
                raise
            (part,) = (*self._leading, *matched[1])
            token, run_id = request.query.get("token", ""), part.decoded or ""
            if not await self.services.stream_tokens.fits(token, run_id):
                raise
            return Credential(user=None, scopes=(Scope.RUNS_READ,), run_id=run_id)


async def answer(exchange: Exchange) -> web.StreamResponse:
    """Validate the parameters of the route's handler, call it, and write its result."""
    with Room(exchange.services.load) as room:
        value = await exchange.route.handler(exchange, **await _take(exchange, room))
    if isinstance(value, web.StreamResponse):
        return value
    if isinstance(value, Page):
        return reply(value.value, link=value.link)
    return reply(value)


async def _take(exchange: Exchange, room: Room) -> dict[str, Fields]:
    request = exchange.request
    given: dict[str, Fields] = {}
    for name, kind in exchange.route.takes.items():
        if name == "body":
            limit = exchange.services.settings.max_body_bytes
            value = await read_object(request, max_bytes=limit, grow=room.grow)
            given[name] = read_fields(kind, value)
        else:
            texts = request.query if name == "query" else request.headers
            given[name] = read_each_once(kind, texts)
    return given


def _refuse(request: web.BaseRequest, error: Exception) -> web.StreamResponse:
    if isinstance(error, ConnectionError):
        raise error  # the caller is gone
    if request.writer.output_size > 0:
        raise ConnectionResetError("failed after the head was sent") from error
    response = problem(error)
    is_broken = isinstance(error, web.RequestPayloadError)
    if is_broken or response.status in {408, 417} or request.headers.get("Expect"):
        response.force_close()  # whether a body follows, and where it ends, is not known
    return response


def _request_id(request: web.BaseRequest) -> str:
    given = request.headers.get("X-Request-Id")
    return given if given and _REQUEST_ID.fullmatch(given) else new_request_id()


def _raw_path(request: web.BaseRequest) -> str:
    """Read the path as it was sent; a target in absolute form (`GET http://host/path`) has it inside."""
    target = request.raw_path
    if not target.startswith("/"):
        target = request.rel_url.raw_path
    return target.partition("?")[0]


def _is_surplus(request: web.BaseRequest) -> bool:
    """Say whether the request's connection exceeds the limit."""
    protocol = request.protocol
    return isinstance(protocol, GatewayProtocol) and protocol.is_surplus


def _is_known_expectation(request: web.BaseRequest) -> bool:
    expected = request.headers.get("Expect")
    return expected is None or expected.lower() == "100-continue"
