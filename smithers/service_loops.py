"""Keep the loops going that a process serves with, whatever happens in them that nobody foresaw."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

import structlog

LOG: Final = structlog.get_logger(__name__)
PAUSE_S: Final = 1.0

Serve = Callable[[], Awaitable[None]]


class ServiceLoops:
    """Loops that go on until they are stopped together; `async with` stops them at its end."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    def start(self, serve: Serve, *, name: str) -> None:
        """Keep a loop going from now on."""
        self._tasks.append(asyncio.create_task(keep_going(serve, name=name), name=name))

    def cancel(self) -> None:
        """Tell all of them to end."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """End all of them, and wait until they have ended."""
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def keep_going(serve: Serve, *, name: str) -> None:
    """Serve until cancelled; what a loop raises is logged, and a second later it begins anew.

    For loops that can: what they had in hand is found again by what they poll. Nobody awaits such a loop: if it ended,
    only those it serves would notice.
    """
    while True:
        try:
            await serve()
        except Exception:
            LOG.exception("service_loop_failed", loop=name)
        await asyncio.sleep(PAUSE_S)
