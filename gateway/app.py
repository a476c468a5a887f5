"""Put the gateway of one process together: services, application, socket.

`async with open_gateway(settings) as gateway:` serves until the block is left, and drains then.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from gateway.access import Access
from gateway.exchange import Readiness, Services
from gateway.front import Front, leave_expectation
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.protocol import GatewayRunner
from gateway.routes import ROUTES
from gateway.routing import Router
from gateway.settings import GatewaySettings, InsecureSettings
from gateway.sources import Sources
from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceReader
from smithers.store.connections import open_pool
from smithers.store.hints import Channel, Hints
from smithers.store.outside import open_outside_lane
from smithers.store.revisions import read_revisions
from smithers.store.starts import open_start_lane
from smithers.store.tails import open_tail_lane

__all__ = ["Gateway", "GatewaySettings", "InsecureSettings", "build_app", "open_gateway"]

POOL_SIZE: Final = 3  # with four lanes and the hints: the budget of eight connections
BACKLOG: Final = 1024
GRACE_S: Final = 0.2  # between "no more requests, please" and closing idle connections


class Gateway:
    """A gateway that serves."""

    def __init__(self, runner: GatewayRunner, services: Services, port: int) -> None:
        self._runner = runner
        self._services = services
        self._is_drained = False
        self.port = port

    async def drain(self) -> None:
        """Stop taking requests, end the streams after a whole event, finish what is under way; once."""
        if self._is_drained:
            return
        self._is_drained = True
        self._services.readiness.is_draining = True
        for site in self._runner.sites:
            await site.stop()
        self._services.hub.drain()
        # A balancer may just have sent something down a connection that it keeps: that is still answered, with
        # Connection: close.
        await asyncio.sleep(GRACE_S)
        await self._runner.cleanup()

    def hurry(self) -> None:
        """Wait no more for what is under way; whoever drains is to be cancelled after this."""
        self._runner.hurry()


@asynccontextmanager
async def open_gateway(
    settings: GatewaySettings, *, listener: socket.socket | None = None
) -> AsyncIterator[Gateway]:
    """Serve on `listener`, or on a socket of its own, until the block is left.

    Raises InsecureSettings, InvalidTokensFile, StoreError, OSError (the address, the root, the tokens file).
    """
    settings.check()
    access = Access(
        auth_token=settings.auth_token,
        tokens_file=settings.tokens_file,
        only_loopback_names=settings.is_loopback,
    )
    async with AsyncExitStack() as stack:
        bound = listener or stack.enter_context(_bind(settings))
        services = await _open_services(settings, stack)
        runner = GatewayRunner(
            build_app(services, access),
            headers_s=settings.headers_timeout_s,
            request_s=settings.request_timeout_s,
            shutdown_s=settings.drain_timeout_s / 2,  # aiohttp waits this long up to twice
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, bound, backlog=BACKLOG).start()
        gateway = Gateway(runner, services, bound.getsockname()[1])
        stack.push_async_callback(gateway.drain)
        yield gateway


def build_app(services: Services, access: Access) -> web.Application:
    """Build the aiohttp application: one handler for every method and path."""
    app = web.Application(client_max_size=services.settings.max_body_bytes)
    front = Front(services, access, Router(ROUTES))
    app.router.add_route("*", "/{path:.*}", front.__call__, expect_handler=leave_expectation)
    return app


async def _open_services(settings: GatewaySettings, stack: AsyncExitStack) -> Services:
    root = RootDirectory(settings.root_dir)
    stack.callback(root.close)
    pool = await stack.enter_async_context(
        open_pool(settings.dsn, role="gateway", max_size=POOL_SIZE)
    )
    metrics = Metrics()
    hears: list[Hints] = []
    sources = Sources(SourceReader(root), lambda: hears[0])
    hub = Hub(
        live=await stack.enter_async_context(open_tail_lane(settings.dsn, role="live")),
        replay=await stack.enter_async_context(open_tail_lane(settings.dsn, role="replay")),
        pool=pool,
        metrics=metrics,
        hears=lambda: hears[0].is_connected,
    )
    hints = Hints(
        settings.direct_dsn,
        role="gateway",
        listeners={Channel.EVENTS: hub.hear, Channel.SOURCES: sources.hear},
    )
    hears.append(await stack.enter_async_context(hints))
    return Services(
        settings=settings,
        pool=pool,
        starts=await stack.enter_async_context(open_start_lane(settings.dsn)),
        outside=await stack.enter_async_context(open_outside_lane(settings.dsn)),
        hints=hints,
        hub=await stack.enter_async_context(hub),
        sources=sources,
        metrics=metrics,
        readiness=Readiness(),
        revisions=read_revisions(),
    )


def _bind(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server(
        (settings.host, settings.port), family=family, backlog=BACKLOG, reuse_port=False
    )
