"""What a server is built on: its database, its workers, and the shared memory of its metrics.

It is set up before the gateway's modules are loaded, which takes longer: the pool's process loads while
Postgres starts or recovers, and runs resume before requests are served.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from gateway.settings import GatewaySettings
from smithers.capacity import check_connections, embedded_settings
from smithers.errors import StoreStarting
from smithers.kept_process import KeptProcess, Program
from smithers.pools import OwnPool, Pools
from smithers.processes import importing_this
from smithers.settings import InvalidSettings, ServerOptions
from smithers.store.connections import open_connection
from smithers.store.dsn import describe_dsn, has_password
from smithers.store.embedded import (
    EmbeddedPostgres,
    TemporaryPostgres,
    default_data_dir,
    open_embedded_postgres,
    open_temporary_postgres,
)
from smithers.store.migrating import settle_schema
from smithers.store.poolers import Route, Way, find_route, leads_to
from smithers.telemetry.names import PROCESSES_DIED, Role
from smithers.telemetry.otel_variables import OTEL_PREFIX
from smithers.telemetry.sheet import MetricsPage, Sheet
from smithers.telemetry.tracing import check_tracing
from worker.settings import PoolSettings

LOG: Final = structlog.get_logger(__name__)
STARTING_S: Final = 60.0  # for a database that has just started, and may have to recover
LOOK_AGAIN_S: Final = 0.5
SECRET_NAMES: Final = ("DATABASE_URL", "DATABASE_DIRECT_URL")
OUR_PREFIX: Final = "SMITHERS_"

Share = EmbeddedPostgres | TemporaryPostgres


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database whose schema is right."""

    dsn: str = field(repr=False)
    direct_dsn: str = field(repr=False)
    data_dir: Path | None = None  # of an embedded one
    way: Way = Way.DIRECT
    has_sessions: bool = True  # of the direct URL
    warning: str | None = None  # what its connection cannot do, for people

    def describe(self) -> str:
        """Say for people where the data are, without a user or a password."""
        return describe_dsn(self.dsn) if self.data_dir is None else str(self.data_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """What exists before requests are served."""

    database: Database
    pools: Pools
    page: MetricsPage  # this process's page of the shared metrics sheet


@asynccontextmanager
async def lay_foundation(
    options: ServerOptions, environ: Mapping[str, str]
) -> AsyncIterator[Foundation]:
    """Open the database and start the pools, until the block is left; pools that have not drained by then are killed.

    Raises InsecureSettings, InvalidTelemetry before anything is started; StoreError, EmbeddedPostgresError, SchemaMismatch
    for the database, InvalidSettings for more processes than it takes or for two databases instead of one. `environ`: what
    workers inherit, without its secrets.
    """
    gateway_settings(options, "", "").check()
    otel = otel_variables(options, environ)
    if otel is not None:
        check_tracing(otel)
    with closing(Sheet.create()) as sheet:
        page = sheet.open_page(Role.GATEWAY if options.http_workers == 1 else Role.SERVER)
        async with (
            _loading_pool(options, environ, page) as loading,
            open_database(options, environ) as database,
        ):
            is_embedded = database.data_dir is not None
            await check_connections(options, database.direct_dsn, is_embedded=is_embedded)
            async with _start_pools(options, database, environ, page, loading) as pools:
                yield Foundation(database=database, pools=pools, page=page)


@asynccontextmanager
async def open_database(
    options: ServerOptions, environ: Mapping[str, str]
) -> AsyncIterator[Database]:
    """Join or start the embedded Postgres, or use the given one; return when its schema is right.

    An embedded database is migrated automatically: it has no other users.
    """
    async with find_database(options, environ) as database:
        if database.way is Way.TRANSACTION:
            LOG.info("statements_not_prepared", pooler=database.way)
        if database.warning is not None:
            LOG.warning("direct_url_missing", reason=database.warning)
        is_embedded = database.data_dir is not None
        await settle_schema(database.direct_dsn, migrate=options.migrate or is_embedded)
        yield database


@asynccontextmanager
async def find_database(
    options: ServerOptions, environ: Mapping[str, str]
) -> AsyncIterator[Database]:
    """Join or start the embedded Postgres, or use the given one, whatever its schema.

    Raises InvalidSettings if the two URLs lead to two databases, StoreError, EmbeddedPostgresError.
    """
    if options.database_url is not None:
        dsn = options.database_url
        direct_dsn = options.database_direct_url or dsn
        route = await _until_found(dsn, direct_dsn)
        if direct_dsn != dsn:
            await _refuse_two(route)
        yield Database(
            dsn=route.dsn,
            direct_dsn=route.direct_dsn,
            way=route.way,
            has_sessions=route.has_sessions,
            warning=route.warning,
        )
        return
    settings = embedded_settings(options)
    if options.no_database:
        share = await _open_share(partial(open_temporary_postgres, settings))
    else:
        data_dir = options.data_dir or default_data_dir(options.root_dir, environ=environ)
        open_it = partial(open_embedded_postgres, data_dir, settings=settings, watches=True)
        share = await _open_share(open_it)
    try:
        yield Database(dsn=share.dsn, direct_dsn=share.dsn, data_dir=share.data_dir)
    finally:
        # Not in a thread: the loop may be closing, and a share must not be left half closed.
        share.close()


async def _open_share(open_it: Callable[[], Share]) -> Share:
    """Start or join an embedded Postgres, in a thread; a cancelled caller releases it first."""
    opening = asyncio.create_task(asyncio.to_thread(open_it))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])  # its own time limit ends it
        if opening.exception() is None:
            opening.result().close()
        raise


async def _until_found(dsn: str, direct_dsn: str) -> Route:
    """Connect to a database; one that is starting or recovering gets a minute."""
    try:
        async with asyncio.timeout(STARTING_S):
            is_told = False
            while True:
                try:
                    return await find_route(dsn, direct_dsn)
                except StoreStarting as error:
                    if not is_told:
                        LOG.info("database_starting", error=str(error))
                    is_told = True
                    await asyncio.sleep(LOOK_AGAIN_S)
    except TimeoutError as error:
        raise StoreStarting(f"the database is still starting after {STARTING_S:g} s") from error


async def _refuse_two(route: Route) -> None:
    """Raise InvalidSettings if the direct URL leads to another database than DATABASE_URL."""
    async with open_connection(route.dsn, role="way") as connection:
        if await leads_to(connection, route.direct_dsn):
            return
    told = f"{describe_dsn(route.direct_dsn)} is not the same database as {describe_dsn(route.dsn)}"
    raise InvalidSettings([f"DATABASE_DIRECT_URL: {told} of DATABASE_URL"])


@asynccontextmanager
async def _loading_pool(
    options: ServerOptions, environ: Mapping[str, str], page: MetricsPage
) -> AsyncIterator[KeptProcess]:
    """Let the pool's process load its modules before the database is ready; it gets its settings when it is."""
    process = KeptProcess(_pool_program(options, environ, page))
    try:
        if options.workers:
            await process.load()
        yield process
    finally:
        await process.end()


@asynccontextmanager
async def _start_pools(
    options: ServerOptions,
    database: Database,
    environ: Mapping[str, str],
    page: MetricsPage,
    loading: KeptProcess,
) -> AsyncIterator[Pools]:
    """Run pools until the block is left; none if the options want no workers. Kills those that have not drained."""
    settings = _pool_settings(options, database, environ, page.sheet)
    mirrored = {
        name: replace(
            settings,
            dsn=url,
            direct_dsn=url,
            has_sessions=True,
            mirror_name=name,
            mirror_dsn=database.direct_dsn,
        )
        for name, url in options.workflow_databases.items()
    }
    pools = Pools(
        loading,
        settings.to_json(),
        {
            name: OwnPool(
                program=_pool_program(options, environ, page), told=own.to_json(), dsn=own.dsn
            )
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
        has_sessions=database.has_sessions,
        root_dir=str(options.root_dir),
        worker_count=options.workers,
        runs_per_worker=options.runs_per_worker,
        worker_memory_mib=options.worker_memory_mib,
        queues=options.queues if options.own_queue is None else (options.own_queue,),
        keeps_queue=options.own_queue is not None,
        drain_timeout_s=options.drain_timeout_s,
        embedded_data_dir=None if data_dir is None else str(data_dir),
        allow_network=options.allow_network,
        unsafe_tools=options.unsafe_tools,
        log_format=options.log_format,
        log_level=options.log_level,
        sheet_fd=sheet.fd,
        otel=otel_variables(options, environ),
    )


def _pool_program(options: ServerOptions, environ: Mapping[str, str], page: MetricsPage) -> Program:
    return Program(
        module="worker",
        environment=worker_environment(environ, options.pass_env),
        cwd=options.root_dir,
        deaths=page.counter(PROCESSES_DIED, "worker"),
        handed_fds=(page.sheet.fd,),
    )


def worker_environment(environ: Mapping[str, str], pass_env: tuple[str, ...]) -> dict[str, str]:
    """Return the environment for workers: without the server's secrets, except those passed on purpose."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in pass_env or not _is_secret(name, value)
    }
    return importing_this(kept)


def otel_variables(options: ServerOptions, environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return OpenTelemetry's variables; None if traces are off."""
    if not options.otel:
        return None
    return {name: value for name, value in environ.items() if name.startswith(OTEL_PREFIX)}


def _is_secret(name: str, value: str) -> bool:
    if name.startswith(OUR_PREFIX) or name in SECRET_NAMES:
        return True
    if name.startswith(OTEL_PREFIX) and name.endswith("_HEADERS"):
        return True
    try:
        is_secret_url = name.endswith(("_URL", "_DSN")) and bool(urlsplit(value).password)
        return is_secret_url or has_password(value)  # a workflow's own database has any name
    except ValueError:
        return True  # not a valid URL: withhold it


def database_variables(options: ServerOptions) -> tuple[str, ...]:
    """Return the names of the variables that have the URLs of a given database; none for an embedded one."""
    if options.database_url is None:
        return ()
    return SECRET_NAMES if options.database_direct_url is not None else SECRET_NAMES[:1]


def gateway_settings(options: ServerOptions, dsn: str, direct_dsn: str) -> GatewaySettings:
    """Return a gateway's settings; with an empty `dsn` only those of its HTTP side count."""
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
        data_dir=options.data_dir,
        database_variables=database_variables(options),
    )
