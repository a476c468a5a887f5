"""Open the services that the handlers of one process share; they are closed in reverse order."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from gateway.access import Access
from gateway.backlog import BacklogEstimate
from gateway.databases import Database, Databases
from gateway.exchange import Readiness, Services
from gateway.hub import Hub
from gateway.load import Load
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from gateway.sources import Sources
from gateway.stream_tokens import StreamTokens
from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceReader
from smithers.store.connections import Pool, open_pool
from smithers.store.gauges import read_gauges
from smithers.store.hints import Channel, Hints
from smithers.store.outside import open_outside_lane
from smithers.store.revisions import read_revisions
from smithers.store.starts import open_start_lane
from smithers.store.tails import open_tail_lane
from smithers.telemetry.sheet import MetricsPage
from smithers.telemetry.tracing import Tracer, open_tracer

SEND_SPANS_S: Final = 2.0  # for spans that a slow collector has not accepted at the end
POOL_SIZE: Final = 3  # with four lanes and the hints: eight connections for each database
# For readiness and metrics: readers that wait for a slow database must not make the gateway look dead.
PROBES_SIZE: Final = 2


async def open_services(
    settings: GatewaySettings,
    access: Access,
    stack: AsyncExitStack,
    page: MetricsPage | None = None,
    otel: Mapping[str, str] | None = None,
) -> Services:
    """Open all; `stack` closes it. Raises StoreError, and OSError for the root.

    `page`: this process's page of the shared metrics sheet; by default it has a sheet to itself.
    `otel`: the `OTEL_*` variables if this process is traced.
    """
    reader = _open_reader(settings, stack)
    pool = await stack.enter_async_context(_open_pool(settings.dsn))
    probes = await stack.enter_async_context(_open_probes(settings.dsn))
    metrics = Metrics(page, partial(read_gauges, probes))
    tracer = _open_tracer(otel, metrics, stack)
    shared = _Shared(reader, access, metrics, stack)
    databases = Databases(
        pool, settings.own_databases, partial(_open_own, shared), migrate=settings.migrate
    )
    await stack.enter_async_context(databases)
    hints = Hints(settings.direct_dsn, role="gateway")
    hints.watch = metrics.hear_listening
    hints.listen({Channel.DATABASES: databases.hear})
    return Services(
        settings=settings,
        access=access,
        home=await _open_database(shared, None, pool, settings.dsn, hints),
        databases=databases,
        probes=probes,
        stream_tokens=StreamTokens(pool),
        metrics=metrics,
        tracer=tracer,
        load=Load(settings.limits),
        backlog=await stack.enter_async_context(BacklogEstimate(pool, settings.limits.queued_runs)),
        readiness=Readiness(),
        revisions=read_revisions(),
    )


def _open_reader(settings: GatewaySettings, stack: AsyncExitStack) -> SourceReader | None:
    if settings.root_dir is None:
        return None
    root = RootDirectory(settings.root_dir)
    stack.callback(root.close)
    return SourceReader(root)


def _open_tracer(
    otel: Mapping[str, str] | None, metrics: Metrics, stack: AsyncExitStack
) -> Tracer | None:
    tracer = open_tracer(otel, metrics.spans_dropped.inc, has_authors=False)
    if tracer is not None:
        stack.push_async_callback(asyncio.to_thread, tracer.close, SEND_SPANS_S)
    return tracer


def _open_pool(dsn: str) -> AbstractAsyncContextManager[Pool]:
    return open_pool(dsn, role="gateway", max_size=POOL_SIZE)


def _open_probes(dsn: str) -> AbstractAsyncContextManager[Pool]:
    return open_pool(dsn, role="gateway-probes", max_size=PROBES_SIZE)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What a process's databases share."""

    reader: SourceReader | None
    access: Access
    metrics: Metrics
    stack: AsyncExitStack


async def _open_own(shared: _Shared, name: str, dsn: str) -> Database:
    """Open the connections to a workflow's own database."""
    pool = await shared.stack.enter_async_context(_open_pool(dsn))
    return await _open_database(shared, name, pool, dsn, Hints(dsn, role="gateway"))


async def _open_database(
    shared: _Shared, name: str | None, pool: Pool, dsn: str, hints: Hints
) -> Database:
    """Open the connections to a database; none of them waits for it."""
    lanes = (
        open_start_lane(dsn),
        open_outside_lane(dsn, pool),
        open_tail_lane(dsn, role="live"),
        open_tail_lane(dsn, role="replay"),
    )
    starts, outside, live, replay = lanes
    pool.on_wait = shared.metrics.lanes.count_wait
    for lane in lanes:
        lane.meter = shared.metrics.lanes.count
        await shared.stack.enter_async_context(lane)
    hub = Hub(
        live=live,
        replay=replay,
        pool=pool,
        metrics=shared.metrics,
        hears=lambda: hints.is_connected,
        admits=shared.access.still_admits,
    )
    sources = Sources(shared.reader, pool, hints)
    hints.listen({Channel.EVENTS: hub.hear, Channel.SOURCES: sources.hear})
    await shared.stack.enter_async_context(hints)
    await shared.stack.enter_async_context(hub)
    return Database(
        name=name,
        pool=pool,
        starts=starts,
        outside=outside,
        hints=hints,
        hub=hub,
        sources=sources,
    )
