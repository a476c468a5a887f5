"""Serve health, readiness and metrics on a host without a gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from gateway.access import Access, Scope, read_access
from gateway.envelope import BASE_HEADERS, problem, reply
from gateway.errors import Forbidden, GatewayError, NotReady, RouteNotFound
from gateway.load import Load
from gateway.protocol import GatewayRunner
from gateway.settings import GatewaySettings
from smithers.telemetry.exposition import expose, merge
from smithers.telemetry.names import BEAT_AGE, PROCESSES, Role
from smithers.telemetry.sheet import Sheet

# A pool that has not written its children's heartbeats for so long is not ready.
SILENT_S: Final = 5.0
DRAIN_S: Final = 2.0


class MetricsSite:
    """The handler of `/health`, `/ready` and `/metrics`; only the last needs a credential."""

    def __init__(self, sheet: Sheet, access: Access, settings: GatewaySettings) -> None:
        self._sheet = sheet
        self._settings = settings
        self._access = access
        self.is_draining = False

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        try:
            return self._answer(request)
        except GatewayError as error:
            return problem(error)

    def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if request.method not in {"GET", "HEAD"}:
            path = ""
        match path:
            case "/health":
                return reply({"ok": True})
            case "/ready":
                self._check()
                told = self._settings
                return reply(
                    {"ok": True, "sandbox": told.sandbox, "database": told.database_warning}
                )
            case "/metrics":
                if not self._access.admit(request.headers).allows(Scope.METRICS_READ):
                    raise Forbidden
                body, content_type = expose(self._sheet, request.headers.get("Accept", ""))
                return web.Response(
                    body=body, headers={**BASE_HEADERS, "Content-Type": content_type}
                )
            case _:
                raise RouteNotFound

    def _check(self) -> None:
        """Raise NotReady if no runs are executed here."""
        if self.is_draining:
            raise NotReady(details={"check": "draining"})
        totals = merge(self._sheet.read())
        if (PROCESSES.name, Role.CHILD.value) not in totals:  # then no heartbeat is written either
            raise NotReady(details={"check": "workers"})
        silent_s = totals.get((BEAT_AGE.name,), [float("inf")])[0]
        if not 0 < silent_s < SILENT_S:
            raise NotReady(details={"check": "database"})


@asynccontextmanager
async def open_metrics_site(
    settings: GatewaySettings, sheet: Sheet
) -> AsyncIterator[tuple[MetricsSite, int]]:
    """Serve on the settings' host and port until the block is left; also yield the port.

    Raises InsecureSettings, InvalidTokensFile, OSError.
    """
    site = MetricsSite(sheet, read_access(settings), settings)
    runner = GatewayRunner(site, settings, Load(settings.limits), drain_s=DRAIN_S)
    await runner.setup()
    try:
        listening = web.TCPSite(runner, settings.host, settings.port)
        await listening.start()
        yield site, runner.addresses[0][1]
    finally:
        await runner.cleanup()
