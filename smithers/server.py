"""Put a whole server together: a database, a gateway in this process, a pool of workers in its own.

`async with start_server(ServerOptions(...)) as server:` serves until the block is left. Then the gateway drains first (no
new requests, streams end after a whole event), the pool after it (runs come to a pause or are given back), and the share
of the embedded Postgres goes last. Whatever dies in between, by kill -9 or not, is found again at the next start.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import structlog

import smithers
from gateway.app import Gateway, GatewaySettings, open_gateway
from smithers.settings import ServerOptions
from smithers.store.connections import connect
from smithers.store.dsn import describe_dsn
from smithers.store.embedded import default_data_dir, open_embedded_postgres
from smithers.store.schema import SchemaMismatch, require_schema, upgrade_schema
from worker.settings import PoolSettings

__all__ = ["PoolProcess", "Server", "ServerOptions", "start_pool", "start_server"]

LOG: Final = structlog.get_logger(__name__)
BACK_OFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0)  # before the next start of a pool that died
HEALTHY_S: Final = 30.0  # a pool that lived as long begins the back-off anew
POOL_MARGIN_S: Final = 15.0  # what a pool may need after its children's drain timeout
SECRET_NAMES: Final = ("DATABASE_URL", "DATABASE_DIRECT_URL")
OUR_PREFIX: Final = "SMITHERS_"
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

    def __init__(self, options: ServerOptions, database: Database, gateway: Gateway) -> None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.port = gateway.port
        self.url = f"http://{host}:{gateway.port}"
        self.dsn = database.dsn
        self.database = database
        self.root_dir = options.root_dir
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


@asynccontextmanager
async def start_server(
    options: ServerOptions, *, environ: Mapping[str, str] = PROCESS_ENVIRONMENT
) -> AsyncIterator[Server]:
    """Serve until the block is left, and drain then.

    Raises InsecureSettings before anything is started; StoreError, EmbeddedPostgresError, SchemaMismatch for the
    database; OSError for the address. `environ`: what workers inherit, without its secrets.
    """
    async with AsyncExitStack() as stack:
        _gateway_settings(options, "", "").check()
        database = await stack.enter_async_context(open_database(options, environ))
        pool = await stack.enter_async_context(start_pool(options, database, environ))
        settings = _gateway_settings(options, database.dsn, database.direct_dsn)
        gateway = await stack.enter_async_context(open_gateway(settings))
        server = Server(options, database, gateway)
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
        await _settle_schema(database.dsn, migrate=options.migrate or database.data_dir is not None)
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
    data_dir = options.data_dir or default_data_dir(options.root_dir, environ=environ)
    share = await asyncio.to_thread(open_embedded_postgres, data_dir)
    try:
        yield Database(dsn=share.dsn, direct_dsn=share.dsn, data_dir=data_dir)
    finally:
        # Not in a thread: the loop may be on its way out, and a share must not be left half closed.
        share.close()


async def _settle_schema(dsn: str, *, migrate: bool) -> None:
    """Return when the schema is at head or newer; raises SchemaMismatch where it is older and must stay so."""
    connection = await connect(dsn, role="start")
    try:
        await require_schema(connection)
    except SchemaMismatch:
        if not migrate:
            raise
        await asyncio.to_thread(upgrade_schema, dsn)
    finally:
        await connection.close()


class PoolProcess:
    """The pool: a process of its own, which is started again for as long as nobody has told it to drain.

    Its stdin is the tie: while this process holds the other end the pool serves, and when the end is closed, by drain()
    or by a kill -9 of this process, it drains.
    """

    def __init__(self, settings: PoolSettings, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._draining = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process, and keep it."""
        await self._spawn()
        self._keeping = asyncio.create_task(self._keep(), name="pool-process")

    def drain(self) -> None:
        """Tell the pool to let its runs come to a pause and to end."""
        self._draining.set()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def until_ended(self) -> None:
        """Wait until the pool, told to drain, has ended."""
        if self._keeping is not None:
            await asyncio.shield(self._keeping)

    async def end(self) -> None:
        """Kill what has not ended by itself; nothing is left when this returns."""
        self.kill()
        await self.until_ended()

    def kill(self) -> None:
        """End the pool at once; its runs go on elsewhere, or here at the next start."""
        self._draining.set()
        if self._process is not None and self._process.returncode is None:
            # Its children are of its group, and the kernel ties them to it besides.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _keep(self) -> None:
        deaths = 0
        while self._process is not None:
            started_at = time.monotonic()
            exit_code = await self._process.wait()
            if self._draining.is_set():
                return
            deaths = 0 if time.monotonic() - started_at > HEALTHY_S else deaths
            pause_s = BACK_OFF_S[min(deaths, len(BACK_OFF_S) - 1)]
            deaths += 1
            LOG.error("pool_died", exit_code=exit_code, restart_in_s=pause_s)
            if not await self._respawn(pause_s):
                return

    async def _respawn(self, pause_s: float) -> bool:
        """Start the pool again, after a pause, as often as that takes; false: a drain came first."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._draining.wait()
            if self._draining.is_set():
                return False
            try:
                await self._spawn()
            except OSError as error:  # no memory, no processes: there may be some later
                LOG.warning("pool_not_started", reason=str(error))
                pause_s = BACK_OFF_S[-1]
            else:
                return True

    async def _spawn(self) -> None:
        # A session of its own: Ctrl-C reaches this process only, which then says in which order to stop.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "worker",
            stdin=subprocess.PIPE,
            cwd=self._settings.root_dir,
            env=self._environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._settings.to_json() + b"\n")
        with contextlib.suppress(ConnectionError):  # it is dead already: _keep sees to that
            await self._process.stdin.drain()


@asynccontextmanager
async def start_pool(
    options: ServerOptions, database: Database, environ: Mapping[str, str]
) -> AsyncIterator[PoolProcess]:
    """Run a pool until the block is left; none where the options want no workers. Kills what was not drained."""
    data_dir = database.data_dir
    settings = PoolSettings(
        dsn=database.dsn,
        direct_dsn=database.direct_dsn,
        root_dir=str(options.root_dir),
        worker_count=options.workers,
        runs_per_worker=options.runs_per_worker,
        queues=options.queues if options.own_queue is None else (options.own_queue,),
        drain_timeout_s=options.drain_timeout_s,
        embedded_data_dir=None if data_dir is None else str(data_dir),
        allow_network=options.allow_network,
        log_format=options.log_format,
        log_level=options.log_level,
    )
    pool = PoolProcess(settings, worker_environment(environ, options.pass_env))
    try:
        if options.workers:
            await pool.start()
        yield pool
    finally:
        await pool.end()


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


def _is_secret(name: str, value: str) -> bool:
    if name.startswith(OUR_PREFIX) or name in SECRET_NAMES:
        return True
    try:
        return name.endswith(("_URL", "_DSN")) and bool(urlsplit(value).password)
    except ValueError:
        return True  # no URL that anybody can read: it is held back


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
        queue_override=options.own_queue,
    )
