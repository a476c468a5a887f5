"""Every request passes here, once: its id, its credential, its route, its answer, its headers, its count.

The order of the checks is that of http-api.md: authentication, route, scope, then what the handler asks. One function
instead of a chain of middlewares, each of which would cost as much as a small answer does.
"""

import os
import re
import time
from typing import Final

import structlog
from aiohttp import web

from gateway.access import ANYBODY, Access
from gateway.envelope import find_status, problem, translate
from gateway.errors import Forbidden, InvalidRequest, RouteNotFound, UnknownExpectation
from gateway.exchange import Exchange, Services
from gateway.routing import OPEN, Route, Router
from smithers.telemetry.names import NO_ROUTE

LOG: Final = structlog.get_logger(__name__)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


class Front:
    """The application's one handler."""

    def __init__(self, services: Services, access: Access, router: Router) -> None:
        self._services = services
        self._access = access
        self._router = router

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer a request; whatever goes wrong becomes an envelope, or a connection that is cut."""
        began = time.perf_counter()
        request_id = _request_id(request)
        found: list[Route] = []
        try:
            response = await self._serve(request, request_id, found)
        except Exception as error:  # noqa: BLE001 - the one place where errors become HTTP
            response = _refuse(request, request_id, error)
        route = found[0].template if found else NO_ROUTE
        is_stream = response.prepared
        if not is_stream:
            response.headers["X-Request-Id"] = request_id
            if self._services.readiness.is_draining:
                response.force_close()
        self._services.metrics.count_request(
            request.method,
            route,
            response.status,
            None if is_stream else time.perf_counter() - began,
        )
        return response

    async def _serve(
        self, request: web.Request, request_id: str, found: list[Route]
    ) -> web.StreamResponse:
        if request.version not in ((1, 1), (1, 0)):
            raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        path = _raw_path(request)
        route = self._router.find_open(request.method, path)
        if route is not None:
            found.append(route)
            return await route.handler(
                Exchange(request, request_id, route, (), ANYBODY, self._services)
            )
        credential = self._access.admit(request.headers)
        matched = self._router.find(request.method, path)
        if matched is None:
            raise RouteNotFound
        route, parts = matched
        found.append(route)
        if route.scope is not OPEN and not credential.allows(route.scope):
            raise Forbidden
        if not _is_known_expectation(request):
            raise UnknownExpectation
        return await route.handler(
            Exchange(request, request_id, route, parts, credential, self._services)
        )


async def leave_expectation(_request: web.Request) -> None:
    """Do nothing about Expect yet: 100 Continue is said when all checks before the body have passed."""


def _refuse(request: web.Request, request_id: str, error: Exception) -> web.StreamResponse:
    if isinstance(error, ConnectionError):
        raise error  # nobody is there to be answered
    if find_status(translate(error)) is None:
        LOG.error("request_failed", request_id=request_id, exc_info=error)
    if request.writer.output_size > 0:
        raise ConnectionResetError("failed after the head was sent") from error
    response = problem(error)
    if response.status in {408, 417} or request.headers.get("Expect"):
        response.force_close()  # whether a body follows, and where it ends, is not known
    return response


def _request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-Id")
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()


def _raw_path(request: web.Request) -> str:
    """Read the path as it was sent; a target in absolute form (`GET http://host/path`) has it inside."""
    target = request.raw_path
    if not target.startswith("/"):
        target = request.rel_url.raw_path
    return target.partition("?")[0]


def _is_known_expectation(request: web.Request) -> bool:
    return request.headers.get("Expect", "100-continue").lower() == "100-continue"
