"""Keep the loops going that a process serves with, whatever happens in them that nobody foresaw."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

LOG: Final = structlog.get_logger(__name__)
PAUSE_S: Final = 1.0


async def keep_going(serve: Callable[[], Awaitable[None]], *, name: str) -> None:
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
