"""Assemble the gateway of one process: services, handler, socket.

`async with open_gateway(settings) as gateway:` serves until the block is left, then drains.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from gateway.access import read_access
from gateway.front import Front
from gateway.protocol import GatewayRunner
from gateway.routes import ROUTES
from gateway.routing import Router
from gateway.services import open_services
from gateway.settings import GatewaySettings, InsecureSettings
from smithers.listener import accept_waiting, bind, end_handshakes
from smithers.telemetry.sheet import MetricsPage

__all__ = ["Gateway", "GatewaySettings", "InsecureSettings", "open_gateway"]

GRACE_S: Final = 1.0  # at most, between refusing new connections and closing those that are idle
LOOK_EVERY_S: Final = 0.02


class Gateway:
    """A running gateway."""

    def __init__(
        self, runner: GatewayRunner, front: Front, listener: socket.socket, *, is_shared: bool
    ) -> None:
        """`is_shared`: other processes accept on the socket, too; who shares it lets no more handshakes begin."""
        self._runner = runner
        self._front = front
        self._listener = listener
        self._is_shared = is_shared
        self._is_drained = False
        self.port: int = listener.getsockname()[1]

    async def drain(self) -> None:
        """Stop taking connections, end the streams after a whole event, finish open requests; once."""
        if self._is_drained:
            return
        self._is_drained = True
        self._front.drain()
        if not self._is_shared:
            await end_handshakes(self._listener)
        # From here until the listener is closed nothing is awaited, and after the last accept nothing takes time: where
        # handshakes go on, a connection that the kernel completes in between is reset, with its request.
        for site in self._runner.sites:
            await site.stop()
        waiting = accept_waiting(self._listener)
        self._listener.close()
        await self._serve(waiting)
        # Until a balancer notices, it may send requests over connections that it keeps: they are still answered, with
        # Connection: close. A busy balancer has soon used up all of these connections.
        # A connection that was accepted in this turn of the loop is not counted before the next one.
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GRACE_S
        await asyncio.sleep(LOOK_EVERY_S)
        while self._front.services.load.connections and loop.time() < give_up_at:  # noqa: ASYNC110 - a second at most
            await asyncio.sleep(LOOK_EVERY_S)
        await self._runner.cleanup()

    async def _serve(self, connections: list[socket.socket]) -> None:
        server = self._runner.server
        if server is None:
            return
        loop = asyncio.get_running_loop()
        for connection in connections:
            await loop.connect_accepted_socket(server, connection)

    def hurry(self) -> None:
        """Stop waiting for open requests; cancel the draining task after this."""
        self._runner.hurry()


@asynccontextmanager
async def open_gateway(
    settings: GatewaySettings,
    *,
    listener: socket.socket | None = None,
    page: MetricsPage | None = None,
    otel: Mapping[str, str] | None = None,
) -> AsyncIterator[Gateway]:
    """Serve until the block is left, on `listener`, which others share and a drain closes, or on a socket of its own.

    `page`: this process's page of the shared metrics sheet; by default it has a sheet to itself.
    `otel`: the `OTEL_*` variables if this process is traced; raises InvalidTelemetry for invalid ones.
    Raises InsecureSettings, InvalidTokensFile, StoreError, OSError (the address, the root, the tokens file).
    """
    access = read_access(settings)
    async with AsyncExitStack() as stack:
        bound = listener or stack.enter_context(bind(settings.host, settings.port))
        services = await open_services(settings, access, stack, page, otel)
        front = Front(services, Router(ROUTES))
        runner = GatewayRunner(front, settings, services.load, drain_s=settings.drain_timeout_s)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await runner.listen(bound)
        gateway = Gateway(runner, front, bound, is_shared=listener is not None)
        stack.push_async_callback(gateway.drain)
        yield gateway
