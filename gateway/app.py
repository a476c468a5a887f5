"""Assemble the gateway of one process: services, handler, socket.

`async with open_gateway(settings) as gateway:` serves until the block is left, then drains.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from gateway.access import read_access
from gateway.front import Front
from gateway.protocol import BACKLOG, GatewayRunner
from gateway.routes import ROUTES
from gateway.routing import Router
from gateway.services import open_services
from gateway.settings import GatewaySettings, InsecureSettings
from smithers.telemetry.sheet import MetricsPage

__all__ = ["Gateway", "GatewaySettings", "InsecureSettings", "open_gateway"]

GRACE_S: Final = 1.0  # at most, between refusing new connections and closing those that are idle
LOOK_EVERY_S: Final = 0.02


class Gateway:
    """A running gateway."""

    def __init__(self, runner: GatewayRunner, front: Front, listener: socket.socket) -> None:
        self._runner = runner
        self._front = front
        self._listener = listener
        self._is_drained = False
        self.port: int = listener.getsockname()[1]

    async def drain(self) -> None:
        """Stop taking connections, end the streams after a whole event, finish open requests; once."""
        if self._is_drained:
            return
        self._is_drained = True
        self._front.drain()
        # From here until the listener is closed nothing is awaited, and after the last accept nothing takes time: a
        # connection that the kernel completes in between is reset, with its request.
        for site in self._runner.sites:
            await site.stop()
        waiting = accept_waiting(self._listener)
        self._listener.close()
        await self._serve(waiting)
        # Until a balancer notices, it may send requests over connections that it keeps: they are still answered, with
        # Connection: close. A busy balancer has soon used up all of these connections.
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GRACE_S
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
    """Serve on `listener`, which a drain closes, or on a socket of its own, until the block is left.

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
        gateway = Gateway(runner, front, bound)
        stack.push_async_callback(gateway.drain)
        yield gateway


def accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Accept the connections that wait in the kernel: closing the listener would reset them, with their requests."""
    waiting = []
    with suppress(OSError):  # none is left, or there are no descriptors
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            waiting.append(connection)
    return waiting


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address; 0 is any free port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=False)
