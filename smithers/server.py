"""Put a whole server together: a database, a gateway in this process or several in others, a pool of workers.

`async with start_server(ServerOptions(...)) as server:` serves until the block is left. Then the gateway drains first (no
new requests, streams end after a whole event), the pool after it (runs come to a pause or are given back), and the share
of the embedded Postgres goes last. Whatever dies in between, by kill -9 or not, is found again at the next start.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import structlog

import smithers
from gateway.app import Gateway, bind, open_gateway, read_access
from gateway.settings import GatewaySettings, HttpProcessSettings
from smithers.http_processes import HttpProcesses
from smithers.kept_process import KeptProcess, Program
from smithers.pools import OwnPool, Pools
from smithers.retention import pruning
from smithers.settings import ServerOptions
from smithers.store.dsn import describe_dsn, has_password
from smithers.store.embedded import (
    EmbeddedPostgres,
    TemporaryPostgres,
    default_data_dir,
    open_embedded_postgres,
    open_temporary_postgres,
)
from smithers.store.schema import settle_schema
from smithers.telemetry.names import Role
from smithers.telemetry.otel_variables import read_settings
from smithers.telemetry.sheet import Sheet
from worker.sandbox.commands import SandboxPolicy
from worker.sandbox.probe import UNAVAILABLE, probe_sandbox
from worker.settings import PoolSettings

__all__ = ["Server", "ServerOptions", "start_pool", "start_server"]

LOG: Final = structlog.get_logger(__name__)
POOL_MARGIN_S: Final = 15.0  # what a pool may need after its children's drain timeout
SECRET_NAMES: Final = ("DATABASE_URL", "DATABASE_DIRECT_URL")
OUR_PREFIX: Final = "SMITHERS_"
OTEL_PREFIX: Final = "OTEL_"
PROCESS_ENVIRONMENT: Final = MappingProxyType(os.environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database whose schema is right."""

    dsn: str
    direct_dsn: str
    data_dir: Path | None  # of an embedded one

    def describe(self) -> str:
        """Say for people where the data lie, without a user or a password."""
        return describe_dsn(self.dsn) if self.data_dir is None else str(self.data_dir)


class Server:
    """A server that runs."""

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
        self.sheet = sheet  # where its processes count
        self._hurrying = asyncio.Event()

    def hurry(self) -> None:
        """Cut the drain short, now or when it comes: what is under way is dropped and goes on elsewhere."""
        self._hurrying.set()

    async def patiently(
        self, work: Awaitable[None], *, limit_s: float, give_up: Callable[[], None]
    ) -> bool:
        """Wait for work until it is done, `limit_s` are over, or somebody hurries; say whether it is done.

        `give_up` is called before work that is not done is cancelled.
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
    """Write where somebody listens."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def start_server(
    options: ServerOptions, *, environ: Mapping[str, str] = PROCESS_ENVIRONMENT
) -> AsyncIterator[Server]:
    """Serve until the block is left, and drain then.

    Raises InsecureSettings, InvalidTelemetry before anything is started; StoreError, EmbeddedPostgresError, SchemaMismatch
    for the database; OSError for the address; StartFailed for HTTP processes.
    `environ`: what workers inherit, without its secrets.
    """
    async with AsyncExitStack() as stack:
        _gateway_settings(options, "", "").check()
        otel_variables(options, environ)  # and what they say
        database = await stack.enter_async_context(open_database(options, environ))
        sheet = stack.enter_context(closing(Sheet.create()))  # where all processes count
        pool = await stack.enter_async_context(start_pool(options, database, environ, sheet))
        settings = replace(
            _gateway_settings(options, database.dsn, database.direct_dsn),
            sandbox=await find_sandbox(options),
        )
        gateway = await stack.enter_async_context(_open_http(options, settings, environ, sheet))
        await stack.enter_async_context(pruning(database.dsn, options.retention))
        server = Server(options, database, gateway, sheet)
        try:
            yield server
        finally:
            if not await server.patiently(
                gateway.drain(), limit_s=options.drain_timeout_s, give_up=gateway.hurry
            ):
                LOG.warning("gateway_drain_cut_short")
            pool.drain()
            if not await server.patiently(
                pool.until_ended(),
                limit_s=options.drain_timeout_s + POOL_MARGIN_S,
                give_up=pool.kill,
            ):
                LOG.warning("pool_drain_cut_short")


@asynccontextmanager
async def open_database(
    options: ServerOptions, environ: Mapping[str, str]
) -> AsyncIterator[Database]:
    """Join or start the embedded Postgres, or take the given one; return when its schema is right.

    An embedded database is migrated without being asked: it has no other users to be surprised.
    """
    async with find_database(options, environ) as database:
        await settle_schema(database.dsn, migrate=options.migrate or database.data_dir is not None)
        yield database


@asynccontextmanager
async def find_database(
    options: ServerOptions, environ: Mapping[str, str]
) -> AsyncIterator[Database]:
    """Join or start the embedded Postgres, or take the given one, whatever its schema."""
    if options.database_url is not None:
        dsn = options.database_url
        yield Database(dsn=dsn, direct_dsn=options.database_direct_url or dsn, data_dir=None)
        return
    share: EmbeddedPostgres | TemporaryPostgres
    if options.no_database:
        share = await asyncio.to_thread(open_temporary_postgres)
    else:
        data_dir = options.data_dir or default_data_dir(options.root_dir, environ=environ)
        share = await asyncio.to_thread(open_embedded_postgres, data_dir)
    try:
        yield Database(dsn=share.dsn, direct_dsn=share.dsn, data_dir=share.data_dir)
    finally:
        # Not in a thread: the loop may be on its way out, and a share must not be left half closed.
        share.close()


@asynccontextmanager
async def _open_http(
    options: ServerOptions, settings: GatewaySettings, environ: Mapping[str, str], sheet: Sheet
) -> AsyncIterator[Gateway | HttpProcesses]:
    """Take requests in this process, or in several others on one port."""
    otel = otel_variables(options, environ)
    if options.http_workers == 1:
        page = sheet.open_page(Role.GATEWAY)
        async with open_gateway(settings, page=page, otel=otel) as gateway:
            yield gateway
        return
    read_access(settings)  # what is wrong with it is to be said here, and once
    with bind(settings.host, settings.port) as listener:
        told = HttpProcessSettings(
            gateway=settings,
            listener_fd=listener.fileno(),
            sheet_fd=sheet.fd,
            otel=otel,
            log_format=options.log_format,
            log_level=options.log_level,
        )
        program = Program(
            module="gateway",
            told=told.to_json(),
            environment=worker_environment(environ, ()),
            cwd=options.root_dir,
            handed_fds=(told.listener_fd, told.sheet_fd),
            says_ready=True,
        )
        async with HttpProcesses(listener, program, options.http_workers) as processes:
            yield processes


@asynccontextmanager
async def start_pool(
    options: ServerOptions, database: Database, environ: Mapping[str, str], sheet: Sheet
) -> AsyncIterator[Pools]:
    """Run pools until the block is left; none where the options want no workers. Kills what was not drained."""
    settings = _pool_settings(options, database, environ, sheet)
    environment = worker_environment(environ, options.pass_env)
    mirrored = {
        name: replace(
            settings, dsn=url, direct_dsn=url, mirror_name=name, mirror_dsn=database.direct_dsn
        )
        for name, url in options.workflow_databases.items()
    }
    pools = Pools(
        KeptProcess(_pool_program(settings, environment)),
        {
            name: OwnPool(program=_pool_program(own, environment), dsn=own.dsn)
            for name, own in mirrored.items()
        },
        direct_dsn=database.direct_dsn,
        retention=options.retention,
    )
    try:
        if options.workers:
            await pools.start()
        yield pools
    finally:
        await pools.end()


def _pool_settings(
    options: ServerOptions, database: Database, environ: Mapping[str, str], sheet: Sheet
) -> PoolSettings:
    data_dir = database.data_dir
    return PoolSettings(
        dsn=database.dsn,
        direct_dsn=database.direct_dsn,
        root_dir=str(options.root_dir),
        worker_count=options.workers,
        runs_per_worker=options.runs_per_worker,
        queues=options.queues if options.own_queue is None else (options.own_queue,),
        drain_timeout_s=options.drain_timeout_s,
        embedded_data_dir=None if data_dir is None else str(data_dir),
        allow_network=options.allow_network,
        unsafe_tools=options.unsafe_tools,
        log_format=options.log_format,
        log_level=options.log_level,
        sheet_fd=sheet.fd,
        otel=otel_variables(options, environ),
    )


def _pool_program(settings: PoolSettings, environment: Mapping[str, str]) -> Program:
    return Program(
        module="worker",
        told=settings.to_json(),
        environment=environment,
        cwd=settings.root,
        handed_fds=settings.inherited_fds,
    )


def worker_environment(environ: Mapping[str, str], pass_env: tuple[str, ...]) -> dict[str, str]:
    """Return the environment for workers: the server's secrets are not in it, but for what is passed on purpose."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in pass_env or not _is_secret(name, value)
    }
    packages = Path(smithers.__file__).parent.parent
    if packages.name not in {"site-packages", "dist-packages"}:
        # A checkout: `-P` keeps the current directory out of the path, and with it the packages, were they not named.
        kept["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(packages), environ.get("PYTHONPATH")])
        )
    return kept


def otel_variables(options: ServerOptions, environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return what OpenTelemetry is told; None where traces are off. Raises InvalidTelemetry."""
    if not options.otel:
        return None
    told = {name: value for name, value in environ.items() if name.startswith(OTEL_PREFIX)}
    read_settings(told)
    return told


def _is_secret(name: str, value: str) -> bool:
    if name.startswith(OUR_PREFIX) or name in SECRET_NAMES:
        return True
    if name.startswith(OTEL_PREFIX) and name.endswith("_HEADERS"):
        return True
    try:
        is_secret_url = name.endswith(("_URL", "_DSN")) and bool(urlsplit(value).password)
        return is_secret_url or has_password(value)  # a workflow's own database has any name
    except ValueError:
        return True  # no URL that anybody can read: it is held back


async def find_sandbox(options: ServerOptions) -> str | None:
    """Try how tools run commands here, and say so in the log where they cannot; None without workers."""
    if not options.workers:
        return None
    found = await probe_sandbox(
        SandboxPolicy(
            root=options.root_dir,
            is_jailed=not options.unsafe_tools,
            allow_network=options.allow_network,
        )
    )
    if found.startswith(UNAVAILABLE):
        LOG.warning("sandbox_unavailable", reason=found.removeprefix(UNAVAILABLE))
    return found


def metrics_settings(options: ServerOptions, sandbox: str | None) -> GatewaySettings:
    """Return the settings of the small site that a host without a gateway has."""
    return replace(_gateway_settings(options, "", ""), port=options.metrics_port, sandbox=sandbox)


def _gateway_settings(options: ServerOptions, dsn: str, direct_dsn: str) -> GatewaySettings:
    return GatewaySettings(
        dsn=dsn,
        direct_dsn=direct_dsn,
        root_dir=options.root_dir,
        host=options.host,
        port=options.port,
        auth_token=options.auth_token,
        tokens_file=options.tokens_file,
        max_body_bytes=options.max_body_bytes,
        headers_timeout_s=options.headers_timeout_s,
        request_timeout_s=options.request_timeout_s,
        drain_timeout_s=options.drain_timeout_s,
        insecure=options.insecure,
        limits=options.limits,
        is_kept=not options.no_database,
        own_databases=options.workflow_databases,
        migrate=options.migrate,
        queue_override=options.own_queue,
    )
