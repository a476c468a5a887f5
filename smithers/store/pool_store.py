"""The database for a pool's parent: its connections and calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from smithers.events import EventType
from smithers.ids import RunId, WorkerId
from smithers.store import claims, descriptions, owners
from smithers.store.connections import PromptCalls, connect_listening, open_pool, prove
from smithers.store.hints import Channel, Hints
from smithers.store.schema import require_schema

# Others believe after two seconds that a lock is gone; a silently lost one must be back soon.
PROVE_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Burial:
    """What happened to a dead worker's runs."""

    is_all: bool = True  # otherwise others are writing to the rest: bury it again
    handed_back: int = 0
    held: tuple[RunId, ...] = ()  # some of the runs that the worker had, for logs
    failed: tuple[RunId, ...] = ()  # runs that failed with this third death
    events: tuple[EventType, ...] = ()  # events of the failed ones

    def after(self, earlier: "Burial") -> "Burial":
        """Return the sum of both."""
        return Burial(
            is_all=self.is_all,
            handed_back=earlier.handed_back + self.handed_back,
            held=earlier.held or self.held,
            failed=earlier.failed + self.failed,
            events=earlier.events + self.events,
        )


@dataclass(frozen=True, slots=True)
class PoolStore:
    """A pool parent's database calls."""

    hints: Hints
    _pool: asyncpg.Pool
    _beating: PromptCalls
    _looking: PromptCalls
    _counting: PromptCalls
    _describing: PromptCalls

    async def require_schema(self) -> None:
        """Raise SchemaMismatch unless the schema is at head or newer: with an older one children could commit nothing."""
        await require_schema(self._pool)

    async def register(
        self,
        worker_id: WorkerId,
        *,
        pool_id: UUID,
        process: owners.ProcessIdentity,
        queues: tuple[str, ...],
    ) -> None:
        """Register a child."""
        await owners.register_worker(
            self._pool, worker_id, pool_id=pool_id, process=process, queues=queues
        )

    async def beat(self, worker_ids: list[WorkerId], retired: list[WorkerId]) -> set[WorkerId]:
        """Write the children's heartbeats, and which of them no longer claim; return those that still count as alive."""
        async with self._beating.connection() as connection:
            return await owners.beat(connection, worker_ids, retired)

    async def condemn(self, worker_id: WorkerId, death: str) -> None:
        """Write the cause of a death before bringing it about; until the burial the worker counts as alive."""
        await owners.condemn_worker(self._pool, worker_id, death)

    async def bury(self, worker_id: WorkerId, death: str) -> Burial:
        """Declare a worker dead, hand its runs back or fail them, and notify others."""
        freed = await owners.bury_worker(self._pool, worker_id, death)
        if freed.queues:
            self.hints.send(Channel.DUE, freed.queues)
        events: tuple[EventType, ...] = ()
        if freed.failed:
            self.hints.send(Channel.EVENTS, freed.failed)
            written = await owners.list_crash_events(self._pool, freed.failed)
            events = tuple(event for _, event in written)
        return Burial(
            is_all=freed.is_all,
            handed_back=sum(freed.queues.values()),
            held=tuple(freed.held),
            failed=tuple(freed.failed),
            events=events,
        )

    async def count_runs_apart(self, queues: tuple[str, ...]) -> dict[claims.ClaimKind, int]:
        """Return how many isolated runs and suspects are due."""
        async with self._counting.connection() as connection:
            return await claims.count_runs_apart(connection, queues)

    async def list_living(self) -> list[owners.LivingWorker]:
        """List the workers that count as alive."""
        async with self._looking.connection() as connection:
            return await owners.list_living(connection)

    async def list_wanted_descriptions(self) -> list[descriptions.WantedDescription]:
        """List the versions to describe."""
        async with self._describing.connection() as connection:
            return await descriptions.list_wanted_descriptions(connection)

    async def put_description(
        self, wanted: descriptions.WantedDescription, description: str
    ) -> None:
        """Store a version's description, and notify others."""
        await descriptions.put_description(self._pool, wanted, description)
        self.hints.send(Channel.SOURCES, [wanted.source_hash])


@asynccontextmanager
async def open_pool_store(dsn: str, direct_dsn: str) -> AsyncIterator[PoolStore]:
    """Open a parent's connections, except its hints: they are entered when their callbacks are known."""
    async with open_pool(dsn, role="pool", max_size=2) as pool:
        # The four that are made all the time: none of them may keep a lost connection, of which the pool has two.
        prompt = (PromptCalls(pool) for _ in range(4))
        yield PoolStore(Hints(direct_dsn, role="pool"), pool, *prompt)


@dataclass(frozen=True, slots=True)
class Liveness:
    """A session that holds a pool's liveness lock."""

    _connection: asyncpg.Connection
    _gone: asyncio.Event

    async def until_gone(self) -> None:
        """Wait for the session's end; raises StoreUnavailable if the server no longer answers over it."""
        while not self._gone.is_set():
            try:
                async with asyncio.timeout(PROVE_EVERY_S):
                    await self._gone.wait()
            except TimeoutError:
                await prove(self._connection)


@asynccontextmanager
async def open_liveness(direct_dsn: str, pool_id: UUID) -> AsyncIterator[Liveness]:
    """Hold a session whose end means to others that this pool is gone."""
    gone = asyncio.Event()
    connection = await connect_listening(direct_dsn, role="liveness")
    connection.add_termination_listener(lambda _connection: gone.set())
    try:
        await owners.hold_liveness(connection, pool_id)
        yield Liveness(connection, gone)
    finally:
        connection.terminate()
