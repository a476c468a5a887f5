"""A pool's liveness: a session that holds a lock, whose end tells other hosts that the pool is gone."""

import asyncio
from typing import Final
from uuid import UUID

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.store.pool_store import open_liveness

RETRY_S: Final = 0.5

LOG: Final = structlog.get_logger(__name__)


async def keep_liveness(direct_dsn: str, pool_id: UUID, is_held: asyncio.Event) -> None:
    """Hold the liveness lock; acquire it again when its session is lost. `is_held` is set while it is held.

    Not through a pooler in transaction mode: it would keep the lock on a connection that belongs to nobody, after the pool's
    end, and lose it when it closes that connection.
    """
    complaint = Complaint()
    while True:
        try:
            async with open_liveness(direct_dsn, pool_id) as session:
                is_held.set()
                try:
                    await session.until_gone()
                finally:
                    is_held.clear()
        except StoreError as error:
            if complaint.may_be_said():
                LOG.warning("liveness_failed", error=str(error))
            await asyncio.sleep(RETRY_S)
