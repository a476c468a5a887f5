"""The database as a pool's parent uses it: its connections, and what is done over them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from smithers.events import EventType
from smithers.ids import WorkerId
from smithers.store import claims, owners, sources
from smithers.store.connections import connect_listening, open_pool
from smithers.store.hints import Channel, Hints, Listener


@dataclass(frozen=True, slots=True)
class Burial:
    """What became of a dead worker's runs."""

    handed_back: int
    events: tuple[EventType, ...]  # of the runs that it was the third to die of: they have failed


@dataclass(frozen=True, slots=True)
class PoolStore:
    """What a pool's parent does with the database."""

    hints: Hints
    _pool: asyncpg.Pool

    async def register(
        self,
        worker_id: WorkerId,
        *,
        pool_id: UUID,
        process: owners.ProcessIdentity,
        queues: tuple[str, ...],
    ) -> None:
        """Write down that a child lives."""
        await owners.register_worker(
            self._pool, worker_id, pool_id=pool_id, process=process, queues=queues
        )

    async def beat(self, worker_ids: list[WorkerId], retired: list[WorkerId]) -> set[WorkerId]:
        """Write the children's heartbeats, and which of them claim no more; return those that still count as alive."""
        return await owners.beat(self._pool, worker_ids, retired)

    async def bury(self, worker_id: WorkerId, death: str) -> Burial:
        """Give a worker up for dead, hand its runs back or fail them, and say so."""
        freed = await owners.bury_worker(self._pool, worker_id, death)
        written = await owners.list_crash_events(self._pool, worker_id)
        if freed:
            self.hints.send(Channel.DUE, freed)
        if written:
            self.hints.send(Channel.EVENTS, {run_id for run_id, _ in written})
        return Burial(sum(freed.values()), tuple(event for _, event in written))

    async def count_solo_runs(self, queues: tuple[str, ...]) -> int:
        """Say how many runs are due that want a child of their own."""
        return await claims.count_solo_runs(self._pool, queues)

    async def list_living(self) -> list[owners.LivingWorker]:
        """List the workers that count as alive."""
        return await owners.list_living(self._pool)

    async def list_wanted_descriptions(self) -> list[sources.WantedDescription]:
        """List the versions to describe."""
        return await sources.list_wanted_descriptions(self._pool)

    async def put_description(self, wanted: sources.WantedDescription, description: str) -> None:
        """Write down what a version is, and say so."""
        await sources.put_description(self._pool, wanted, description)
        self.hints.send(Channel.SOURCES, [wanted.source_hash])


@asynccontextmanager
async def open_pool_store(
    dsn: str, direct_dsn: str, listeners: Mapping[Channel, Listener]
) -> AsyncIterator[PoolStore]:
    """Open a parent's connections."""
    async with (
        open_pool(dsn, role="pool", max_size=2) as pool,
        Hints(direct_dsn, role="pool", listeners=listeners) as hints,
    ):
        yield PoolStore(hints, pool)


@asynccontextmanager
async def open_liveness(direct_dsn: str, pool_id: UUID) -> AsyncIterator[asyncio.Event]:
    """Hold a session whose end tells others that this pool is gone; the event is set when it has ended."""
    gone = asyncio.Event()
    connection = await connect_listening(direct_dsn, role="liveness")
    connection.add_termination_listener(lambda _connection: gone.set())
    try:
        await owners.hold_liveness(connection, pool_id)
        yield gone
    finally:
        connection.terminate()
