"""`smithers serve`, `gateway` and `worker`: run until told to stop, then drain."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from smithers.cli import options as o
from smithers.cli.console import heeded_signals, log_to_stderr, note
from smithers.collector import settle_collector
from smithers.settings import InvalidSettings, ServerOptions
from smithers.texts import counted

if TYPE_CHECKING:
    from smithers.foundation import Foundation
    from smithers.server import Server

Opened = TypeVar("Opened")
Hurries = list[Callable[[], None]]  # the last one is what there is to cut short

UNITS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(
    *,
    root_dir: o.RootDir = None,
    host: o.Host = None,
    port: o.Port = None,
    database_url: o.DatabaseUrl = None,
    database_direct_url: o.DatabaseDirectUrl = None,
    no_database: o.NoDatabase = False,
    workflow_databases: o.WorkflowDatabases = None,
    data_dir: o.DataDir = None,
    migrate: o.Migrate = False,
    auth_token: o.AuthToken = None,
    tokens_file: o.TokensFile = None,
    insecure: o.Insecure = False,
    max_body_bytes: o.MaxBodyBytes = None,
    headers_timeout_s: o.HeadersTimeout = None,
    request_timeout_s: o.RequestTimeout = None,
    drain_timeout_s: o.DrainTimeout = None,
    http_workers: o.HttpWorkers = None,
    limits: o.Limits = None,
    workers: o.Workers = None,
    runs_per_worker: o.RunsPerWorker = None,
    worker_memory_mib: o.WorkerMemory = None,
    queues: o.Queues = None,
    allow_network: o.AllowNetwork = False,
    unsafe_tools: o.UnsafeTools = False,
    pass_env: o.PassEnv = None,
    retention: o.Retention = None,
    otel: o.Otel = False,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Serve the workflows below the root: gateway and workers, on an embedded Postgres or a given one.

    Ctrl-C or SIGTERM drains and exits; a second one exits at once.
    """
    _run(_serve, o.server_options(locals()))


def gateway(
    *,
    root_dir: o.RootDir = None,
    host: o.Host = None,
    port: o.Port = None,
    database_url: o.DatabaseUrl = None,
    database_direct_url: o.DatabaseDirectUrl = None,
    workflow_databases: o.WorkflowDatabases = None,
    migrate: o.Migrate = False,
    auth_token: o.AuthToken = None,
    tokens_file: o.TokensFile = None,
    insecure: o.Insecure = False,
    max_body_bytes: o.MaxBodyBytes = None,
    headers_timeout_s: o.HeadersTimeout = None,
    request_timeout_s: o.RequestTimeout = None,
    drain_timeout_s: o.DrainTimeout = None,
    http_workers: o.HttpWorkers = None,
    limits: o.Limits = None,
    retention: o.Retention = None,
    otel: o.Otel = False,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Serve requests only; workers on other hosts execute the runs.

    It starts no Postgres of its own: DATABASE_URL must be set.
    """
    given = o.server_options({**locals(), "workers": "0"})
    _require_database(given)
    _run(_serve, given)


def worker(
    *,
    root_dir: o.RootDir = None,
    host: o.Host = None,
    metrics_port: o.MetricsPort = None,
    auth_token: o.AuthToken = None,
    tokens_file: o.TokensFile = None,
    insecure: o.Insecure = False,
    database_url: o.DatabaseUrl = None,
    database_direct_url: o.DatabaseDirectUrl = None,
    workflow_databases: o.WorkflowDatabases = None,
    migrate: o.Migrate = False,
    drain_timeout_s: o.DrainTimeout = None,
    workers: o.Workers = None,
    runs_per_worker: o.RunsPerWorker = None,
    worker_memory_mib: o.WorkerMemory = None,
    queues: o.Queues = None,
    allow_network: o.AllowNetwork = False,
    unsafe_tools: o.UnsafeTools = False,
    pass_env: o.PassEnv = None,
    retention: o.Retention = None,
    otel: o.Otel = False,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Execute runs only; gateways on other hosts serve the requests.

    It starts no Postgres of its own: DATABASE_URL must be set.
    """
    given = o.server_options(locals())
    _require_database(given)
    _run(_work, given)


@contextmanager
def stop_signals(hurry: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Yield an event that the first stop signal sets; each later one calls `hurry`.

    SIGHUP stays ignored if `nohup` has it ignored.
    """
    loop = asyncio.get_running_loop()
    heeded = heeded_signals(*STOP_SIGNALS)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            hurry()
        stopping.set()

    for number in heeded:
        loop.add_signal_handler(number, stop)
    try:
        yield stopping
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


def _require_database(options: ServerOptions) -> None:
    if options.database_url is None:
        raise InvalidSettings(["DATABASE_URL: must be set; `smithers serve` works without it"])


def _run(
    command: Callable[[ServerOptions], Coroutine[Any, Any, None]], options: ServerOptions
) -> None:
    import uvloop

    log_to_stderr(options)
    from gateway.load import raise_file_limit

    raise_file_limit()
    uvloop.run(command(options))


async def _serve(options: ServerOptions) -> None:
    async def work(foundation: "Foundation", stopping: asyncio.Event, hurries: Hurries) -> None:
        from smithers.server import serve_on  # runs go on while the gateway's modules load

        async with AsyncExitStack() as stack:
            opening = serve_on(foundation, options, os.environ)
            server = await _enter(stack, opening, stopping)
            if server is None:
                _say_stopping(options)
                await _drain(foundation)
                return
            hurries.append(server.hurry)
            settle_collector()
            _announce(server, options)
            await stopping.wait()
            _say_stopping(options)

    await _work_on(options, work)


async def _work(options: ServerOptions) -> None:
    async def work(foundation: "Foundation", stopping: asyncio.Event, _hurries: Hurries) -> None:
        await _show_metrics(foundation, options, stopping)

    await _work_on(replace(options, http_workers=0), work)


async def _work_on(
    options: ServerOptions,
    work: Callable[["Foundation", asyncio.Event, Hurries], Coroutine[Any, Any, None]],
) -> None:
    """Lay the foundation, and do `work` on it; a stop signal before that ends the command."""
    from gateway.settings import InsecureSettings
    from smithers.foundation import lay_foundation

    hurries: Hurries = []

    def hurry() -> None:
        for cut_short in hurries[-1:]:
            cut_short()

    try:
        async with AsyncExitStack() as stack:
            stopping = stack.enter_context(stop_signals(hurry))
            foundation = await _enter(stack, lay_foundation(options, os.environ), stopping)
            if foundation is not None:
                hurries.append(foundation.pools.kill)
                await work(foundation, stopping, hurries)
    except InsecureSettings as error:
        raise InvalidSettings([str(error)]) from error


async def _enter(
    stack: AsyncExitStack, opening: AbstractAsyncContextManager[Opened], stopping: asyncio.Event
) -> Opened | None:
    """Enter a context manager on the stack; None: a stop signal came first."""
    own = asyncio.current_task()
    assert own is not None
    giving_up = asyncio.create_task(_cancel_at(stopping, own))
    try:
        return await stack.enter_async_context(opening)
    except asyncio.CancelledError:
        if stopping.is_set() and not own.uncancel():
            return None
        raise
    finally:
        giving_up.cancel()


async def _cancel_at(stopping: asyncio.Event, task: "asyncio.Task[None]") -> None:
    await stopping.wait()
    task.cancel()


async def _show_metrics(
    foundation: "Foundation", options: ServerOptions, stopping: asyncio.Event
) -> None:
    """Serve the metrics until told to stop; then drain."""
    from gateway.metrics_site import open_metrics_site
    from smithers.server import find_sandbox, metrics_settings, url_of

    settings = metrics_settings(options, await find_sandbox(options), foundation.database)
    async with open_metrics_site(settings, foundation.page.sheet) as (site, port):
        _say_metrics(url_of(options.host, port), options)
        await stopping.wait()
        _say_stopping(options)
        site.is_draining = True
        await _drain(foundation)


async def _drain(foundation: "Foundation") -> None:
    """Let running runs reach a pause, and the pools exit."""
    foundation.pools.drain()
    await foundation.pools.until_ended()


def _announce(server: "Server", options: ServerOptions) -> None:
    """Announce where everything is: as a log line, or as text for people."""
    from importlib.metadata import version

    import structlog

    data = server.database.describe()
    if options.log_format == "json":
        log = structlog.get_logger(__name__)
        log.info(
            "server_started",
            url=server.url,
            root=str(server.root_dir),
            data=data,
            retention_s=options.retention and options.retention.total_seconds(),
        )
        return
    kind = "" if server.database.data_dir is None else " (embedded Postgres)"
    note(f"smithers {version('smithers-gateway')} on {server.url}")
    note(f"  root   {server.root_dir}")
    note(f"  data   {data}{kind}")
    note(f"  keeps  {_kept(options)}")
    note(f'  start  curl {server.url}/v1/runs -d \'{{"workflowPath": "FILE.py"}}\'')
    note("  stop   Ctrl-C; twice to hurry")


def _kept(options: ServerOptions) -> str:
    """Say how long runs are kept."""
    if options.retention is None:
        return "every run, for ever"
    rest = int(options.retention.total_seconds())
    size, unit = next((size, unit) for size, unit in UNITS if rest % size == 0)
    return (
        f"runs for {counted(rest // size, unit)} after their end, then only their ids (--retention)"
    )


def _say_metrics(url: str, options: ServerOptions) -> None:
    import structlog

    if options.log_format == "json":
        structlog.get_logger(__name__).info("metrics_served", url=url)
    else:
        note(f"workers run; metrics on {url}/metrics")


def _say_stopping(options: ServerOptions) -> None:
    import structlog

    if options.log_format == "json":
        structlog.get_logger(__name__).info("server_stops", timeout_s=options.drain_timeout_s)
    else:
        note("stopping: running work may finish; Ctrl-C again to stop at once")
