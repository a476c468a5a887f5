"""Keep a server's database from growing for ever: once an hour, remove runs that ended long ago.

Every server of a database does this; it does not matter which one gets the lock, and the others try again later.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from smithers.errors import StoreError
from smithers.service_loops import ServiceLoops
from smithers.store.retention import prune

LOG: Final = structlog.get_logger(__name__)
EVERY_S: Final = 3600.0
FIRST_S: Final = 10.0  # a starting server has other work


@asynccontextmanager
async def pruning(
    dsn: str, retention: timedelta | None, *, first_s: float = FIRST_S, every_s: float = EVERY_S
) -> AsyncIterator[None]:
    """Prune periodically until the block is left; never if `retention` is None."""
    async with ServiceLoops() as loops:
        if retention is not None:
            prune_here = partial(
                prune_now_and_then, dsn, retention, first_s=first_s, every_s=every_s
            )
            loops.start(prune_here, name="prune")
        yield


async def prune_now_and_then(
    dsn: str, retention: timedelta, *, first_s: float = FIRST_S, every_s: float = EVERY_S
) -> None:
    """Prune until cancelled; `first_s` is the pause before the first time, `every_s` that between two."""
    pause_s = first_s
    while True:
        # With jitter, so that servers that were started together do not prune together.
        await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))  # noqa: S311 - keeps no secret
        pause_s = every_s
        try:
            pruned = await prune(dsn, retention)
        except StoreError as error:
            LOG.warning("prune_failed", error=str(error))
            continue
        if pruned.run_count or pruned.source_count:
            LOG.info(
                "runs_pruned",
                runs=pruned.run_count,
                events=pruned.event_count,
                sources=pruned.source_count,
            )
