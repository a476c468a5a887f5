"""Keep the loops going that a process serves with, whatever happens in them that nobody foresaw."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

LOG: Final = structlog.get_logger(__name__)
PAUSE_S: Final = 1.0


async def keep_going(serve: Callable[[], Awaitable[None]], *, name: str) -> None:
    """Serve until cancelled; what a loop raises is logged, and a second later it begins anew.

    For loops that can: what they had in hand is found again by what they poll. Nobody waits for such a loop, so one that
    ended would be missed by those whom it serves, and by nobody else.
    """
    while True:
        try:
            await serve()
        except Exception:
            LOG.exception("service_loop_failed", loop=name)
        await asyncio.sleep(PAUSE_S)
