"""Estimate how many runs no worker has claimed yet, and refuse starts if there are too many.

They are counted at most twice a second, and only while runs are started or refused; runs started here since, or about to
be, count as waiting. So a start costs no query, none is refused because of an old count, and the limit is exceeded by no
more than what other processes start in half a second.
"""

import asyncio
from contextlib import AbstractContextManager
from typing import Final, Self

import structlog

from gateway.errors import Overloaded
from gateway.load import Taken
from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.service_loops import ServiceLoops
from smithers.store.connections import Pool
from smithers.store.starts import count_queued

LOG: Final = structlog.get_logger(__name__)
PAUSE_S: Final = 0.5


class BacklogEstimate:
    """One process's estimate of the runs that wait for a worker."""

    def __init__(self, pool: Pool, max_count: int) -> None:
        self._pool = pool
        self._max_count = max_count
        self._counted = 0
        self._under_way = 0  # starts whose commit is pending
        self._started = 0  # starts committed since the last count began
        self._wanted = asyncio.Event()
        self._complaint = Complaint()
        self._loops = ServiceLoops()

    async def __aenter__(self) -> Self:
        self._loops.start(self._count, name="backlog")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._loops.stop()

    def starting(self) -> AbstractContextManager[None]:
        """Start one more run; raises Overloaded."""
        self._wanted.set()
        if self._is_full:
            raise Overloaded(details={"limit": "queued-runs"})
        self._under_way += 1
        return Taken(self._end_start)

    def _end_start(self) -> None:
        self._under_way -= 1
        self._started += 1

    @property
    def _is_full(self) -> bool:
        return self._counted + self._started + self._under_way >= self._max_count

    async def _count(self) -> None:
        while True:
            # If full, count again unasked: otherwise the next start, whenever it comes, would be refused by an old count.
            if not self._is_full:
                await self._wanted.wait()
            self._wanted.clear()
            done_before = self._started  # committed, so that the count includes them
            try:
                self._counted = await count_queued(self._pool, limit=self._max_count)
            except StoreError as error:
                if self._complaint.may_be_said():
                    LOG.warning("backlog_not_counted", error=str(error))
            else:
                self._started -= done_before
            await asyncio.sleep(PAUSE_S)
