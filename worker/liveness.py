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


async def keep_liveness(direct_dsn: str, pool_id: UUID) -> None:
    """Hold the liveness lock; acquire it again when its session is lost."""
    complaint = Complaint()
    while True:
        try:
            async with open_liveness(direct_dsn, pool_id) as session:
                await session.until_gone()
        except StoreError as error:
            if complaint.may_be_said():
                LOG.warning("liveness_failed", error=str(error))
            await asyncio.sleep(RETRY_S)
