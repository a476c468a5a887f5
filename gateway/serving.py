"""Run a gateway as a process does: until it is told to stop."""

import asyncio
import signal
from collections.abc import Callable
from typing import Final

import structlog

from gateway.app import open_gateway
from gateway.settings import GatewaySettings

LOG: Final = structlog.get_logger(__name__)


async def serve_gateway(settings: GatewaySettings, *, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; `ready` is told the port.

    A second signal, or the end of the drain timeout, ends the waiting for what is under way.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    hurrying = asyncio.Event()

    def stop() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        async with open_gateway(settings) as gateway:
            ready(gateway.port)
            LOG.info("gateway_listening", host=settings.host, port=gateway.port)
            await stopping.wait()
            LOG.info("gateway_draining", timeout_s=settings.drain_timeout_s)
            draining = asyncio.create_task(gateway.drain(), name="drain")
            hurry = asyncio.create_task(hurrying.wait(), name="hurry")
            await asyncio.wait(
                {draining, hurry},
                timeout=settings.drain_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hurry.cancel()
            if not draining.done():
                LOG.warning("gateway_drain_cut_short")
                gateway.hurry()
                draining.cancel()
            await asyncio.wait({draining, hurry})
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    LOG.info("gateway_stopped")
