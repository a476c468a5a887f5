"""Assemble a whole server: a database, a gateway in this process or several in others, a pool of workers.

`async with start_server(ServerOptions(...)) as server:` serves until the block is left. Then the gateway drains first (no
new connections, streams end after a whole event), the pool after it (runs reach a pause or are released), and the share
of the embedded Postgres is released last. Whatever dies meanwhile, by kill -9 or not, is recovered at the next start.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import structlog

from gateway.access import read_access
from gateway.app import Gateway, open_gateway
from gateway.settings import GatewaySettings, HttpProcessSettings
from smithers.foundation import (
    Database,
    Foundation,
    gateway_settings,
    lay_foundation,
    otel_variables,
    worker_environment,
)
from smithers.http_processes import HttpProcesses
from smithers.kept_process import Program
from smithers.listener import bind
from smithers.retention import pruning
from smithers.settings import ServerOptions
from smithers.telemetry.names import PROCESSES_DIED
from smithers.telemetry.sheet import MetricsPage, Sheet
from worker.sandbox.commands import SandboxPolicy
from worker.sandbox.probe import probe_sandbox

__all__ = ["Server", "ServerOptions", "serve_on", "start_server"]

LOG: Final = structlog.get_logger(__name__)
PROCESS_ENVIRONMENT: Final = MappingProxyType(os.environ)
POOL_MARGIN_S: Final = 15.0  # how long a pool may take after its children's drain timeout


class Server:
    """A running server."""

    def __init__(
        self,
        options: ServerOptions,
        database: Database,
        gateway: Gateway | HttpProcesses,
        sheet: Sheet,
    ) -> None:
        self.port = gateway.port
        self.url = url_of(options.host, gateway.port)
        self.dsn = database.dsn
        self.database = database
        self.root_dir = options.root_dir
        self.sheet = sheet  # the metrics sheet of its processes
        self._hurrying = asyncio.Event()

    def hurry(self) -> None:
        """Cut the drain short, now or when it comes: running work is dropped and resumes elsewhere."""
        self._hurrying.set()

    async def patiently(
        self, work: Awaitable[None], *, limit_s: float, give_up: Callable[[], None]
    ) -> bool:
        """Wait until work is done, `limit_s` is over, or hurry() is called; say whether it is done.

        `give_up` is called before unfinished work is cancelled.
        """
        working = asyncio.ensure_future(work)
        hurrying = asyncio.ensure_future(self._hurrying.wait())
        await asyncio.wait(
            {working, hurrying}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurrying.cancel()
        is_done = working.done()
        if not is_done:
            give_up()
        working.cancel()
        await asyncio.wait({working, hurrying})
        if is_done:
            working.result()
        return is_done


def url_of(host: str, port: int) -> str:
    """Return the URL of a listening address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def start_server(
    options: ServerOptions, *, environ: Mapping[str, str] = PROCESS_ENVIRONMENT
) -> AsyncIterator[Server]:
    """Serve until the block is left, then drain.

    Raises InsecureSettings, InvalidTelemetry before anything is started; StoreError, EmbeddedPostgresError, SchemaMismatch
    for the database; OSError for the address; StartFailed for HTTP processes.
    `environ`: what workers inherit, without its secrets.
    """
    async with (
        lay_foundation(options, environ) as foundation,
        serve_on(foundation, options, environ) as server,
    ):
        yield server


@asynccontextmanager
async def serve_on(
    foundation: Foundation, options: ServerOptions, environ: Mapping[str, str]
) -> AsyncIterator[Server]:
    """Serve requests until the block is left, then drain, the pools too.

    Raises OSError for the address; StartFailed for HTTP processes.
    """
    database, pools, page = foundation.database, foundation.pools, foundation.page
    settings = replace(
        gateway_settings(options, database.dsn, database.direct_dsn),
        sandbox=await find_sandbox(options),
        database_warning=database.warning,
    )
    async with (
        _open_http(options, settings, environ, page) as gateway,
        pruning(database.dsn, options.retention),
    ):
        server = Server(options, database, gateway, page.sheet)
        try:
            yield server
        finally:
            pools.expect_end()
            if not await server.patiently(
                gateway.drain(), limit_s=options.drain_timeout_s, give_up=gateway.hurry
            ):
                LOG.warning("gateway_drain_cut_short")
            pools.drain()
            if not await server.patiently(
                pools.until_ended(),
                limit_s=options.drain_timeout_s + POOL_MARGIN_S,
                give_up=pools.kill,
            ):
                LOG.warning("pool_drain_cut_short")


@asynccontextmanager
async def _open_http(
    options: ServerOptions, settings: GatewaySettings, environ: Mapping[str, str], page: MetricsPage
) -> AsyncIterator[Gateway | HttpProcesses]:
    """Serve requests in this process, or in several others on one port."""
    otel = otel_variables(options, environ)
    if options.http_workers == 1:
        async with open_gateway(settings, page=page, otel=otel) as gateway:
            yield gateway
        return
    read_access(settings)  # report an error of it here, and once
    with bind(settings.host, settings.port) as listener:
        told = HttpProcessSettings(
            gateway=settings,
            listener_fd=listener.fileno(),
            sheet_fd=page.sheet.fd,
            otel=otel,
            log_format=options.log_format,
            log_level=options.log_level,
        )
        program = Program(
            module="gateway",
            environment=worker_environment(environ, ()),
            cwd=options.root_dir,
            deaths=page.counter(PROCESSES_DIED, "gateway"),
            handed_fds=(told.listener_fd, told.sheet_fd),
            says_ready=True,
        )
        async with HttpProcesses(
            listener, program, told.to_json(), options.http_workers
        ) as processes:
            yield processes


async def find_sandbox(options: ServerOptions) -> str | None:
    """Probe how tools run commands here, and log it if they cannot; None without workers."""
    if not options.workers:
        return None
    found = await probe_sandbox(
        SandboxPolicy(
            root=options.root_dir,
            is_jailed=not options.unsafe_tools,
            allow_network=options.allow_network,
        )
    )
    if not found.is_available:
        LOG.warning("sandbox_unavailable", reason=found.standing)
    return str(found)


def metrics_settings(
    options: ServerOptions, sandbox: str | None, database: Database
) -> GatewaySettings:
    """Return the settings of the small HTTP server of a host without a gateway."""
    return replace(
        gateway_settings(options, "", ""),
        port=options.metrics_port,
        sandbox=sandbox,
        database_warning=database.warning,
    )
