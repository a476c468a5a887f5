"""Run a process's service loops, and restart them after unforeseen exceptions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

import structlog

LOG: Final = structlog.get_logger(__name__)
PAUSE_S: Final = 1.0

Serve = Callable[[], Awaitable[None]]


class ServiceLoops:
    """Loops that run until they are stopped together; `async with` stops them at its end."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    def start(self, serve: Serve, *, name: str) -> None:
        """Run a loop from now on."""
        self._tasks.append(asyncio.create_task(keep_going(serve, name=name), name=name))

    def cancel(self) -> None:
        """Cancel all of them."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Cancel all of them, and wait until they have ended."""
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def keep_going(serve: Serve, *, name: str) -> None:
    """Run until cancelled; an exception of the loop is logged, and a second later it is restarted.

    Only for loops that can be restarted: they find their work again by polling. Nobody awaits such a loop: if it ended,
    only those it serves would notice.
    """
    while True:
        try:
            await serve()
        except Exception:
            LOG.exception("service_loop_failed", loop=name)
        await asyncio.sleep(PAUSE_S)
