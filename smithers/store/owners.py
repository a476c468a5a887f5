"""The rows of workers: how a pool reports that its children are alive, and how others notice a death."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from smithers.events import EventType
from smithers.ids import RunId, WorkerId
from smithers.store.connections import driver_errors

# -- name: register_worker
REGISTER_WORKER: Final = """
INSERT INTO smithers.workers (
    worker_id, pool_id, boot_id, pid_namespace, pid, process_start, queues, started_at, heartbeat_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, smithers.clock(), smithers.clock())
"""

# -- name: beat
# One statement a second for all children of a pool. A child that is not returned was declared dead by others, and must stop;
# perhaps not all of its runs could be handed back yet.
# A retired child claims from no queue, so that it does not count as able to claim a waiting run.
BEAT: Final = """
UPDATE smithers.workers SET heartbeat_at = smithers.clock(),
    queues = CASE WHEN worker_id = ANY ($2::text[]::uuid[]) THEN '{}' ELSE queues END
WHERE worker_id = ANY ($1::text[]::uuid[]) AND dead_at IS NULL AND death IS NULL RETURNING worker_id
"""

# -- name: condemn_worker
# The cause of a death that is about to be brought about. A burial keeps it: the worker's own parent, which sees the process
# end, would call it a crash, and suspect its runs.
CONDEMN_WORKER: Final = """
UPDATE smithers.workers SET death = $2 WHERE worker_id = $1 AND dead_at IS NULL AND death IS NULL
"""

MAX_NAMED: Final = 5  # of a dead worker's runs, for logs

# -- name: bury_worker
# `held` is from the statement's snapshot, taken before the function changes anything: the runs that the worker had until now.
BURY_WORKER: Final = """
SELECT is_buried, queues, failed_ids,
    ARRAY(SELECT run_id FROM smithers.runs WHERE owner_id = $1 ORDER BY run_id LIMIT $3) AS held
FROM smithers.bury_worker_v2($1, $2)
"""

# -- name: list_crash_events
# The events that a burial has written for the runs that it failed: its epoch is unique, so these are all of them.
LIST_CRASH_EVENTS: Final = """
SELECT e.run_id, e.payload::json ->> 'type' AS type
FROM smithers.runs r JOIN smithers.events e ON e.run_id = r.run_id AND e.epoch = r.epoch
WHERE r.run_id = ANY ($1) AND r.status = 'failed' ORDER BY e.run_id, e.seq
"""

# -- name: list_living
# All workers that count as alive: among them a pool finds those of its own boot whose process is gone, and those
# whose heartbeats are too old. Silence counts from the later of the last heartbeat and the server's own start: during
# an outage of the database all workers were silent. pg_locks shows which pools hold their liveness lock, without taking it.
LIST_LIVING: Final = """
SELECT w.worker_id, w.pool_id, w.boot_id, w.pid_namespace, w.pid, w.process_start, w.death, w.heartbeat_at,
    extract(epoch FROM smithers.clock() - greatest(w.heartbeat_at, pg_postmaster_start_time()))::float8 AS silent_s,
    extract(epoch FROM smithers.clock() - pg_postmaster_start_time())::float8 AS server_up_s,
    EXISTS (SELECT 1 FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended(w.pool_id::text, 0)
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS is_connected
FROM smithers.workers AS w WHERE w.dead_at IS NULL
"""

# -- name: hold_liveness
HOLD_LIVENESS: Final = "SELECT pg_advisory_lock(hashtextextended($1::uuid::text, 0))"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process's identity, unique over all hosts and restarts."""

    boot_id: str
    pid_namespace: str
    pid: int
    process_start: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingWorker:
    """A worker that has not been declared dead."""

    worker_id: WorkerId
    pool_id: UUID
    process: ProcessIdentity
    heartbeat_at: datetime  # the last one, by the database's clock, which may have been set since
    silent_s: float
    server_up_s: float
    is_connected: bool  # its pool's liveness session exists
    death: str | None = None  # how it died; not all of its runs could be handed back yet


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedBack:
    """What happened to a dead worker's runs."""

    is_all: bool  # otherwise other writers hold rows of the rest: bury it again
    queues: Mapping[str, int]  # queues, each with its number of handed-back runs
    failed: list[RunId]  # runs that failed with this third death
    held: list[RunId]  # the runs that it had, at most MAX_NAMED


async def register_worker(
    pool: asyncpg.Pool,
    worker_id: WorkerId,
    *,
    pool_id: UUID,
    process: ProcessIdentity,
    queues: tuple[str, ...],
) -> None:
    """Register a worker; before this it can claim nothing."""
    with driver_errors():
        await pool.execute(
            REGISTER_WORKER,
            worker_id,
            pool_id,
            process.boot_id,
            process.pid_namespace,
            process.pid,
            process.process_start,
            list(queues),
        )


async def beat(
    connection: asyncpg.Connection | asyncpg.Pool,
    worker_ids: list[WorkerId],
    retired: list[WorkerId],
) -> set[WorkerId]:
    """Write these workers' heartbeats, and which of them no longer claim; return those that still count as alive."""
    with driver_errors():
        rows = await connection.fetch(BEAT, [*map(str, worker_ids)], [*map(str, retired)])
    return {row["worker_id"] for row in rows}


async def condemn_worker(pool: asyncpg.Pool, worker_id: WorkerId, death: str) -> None:
    """Write why a worker is about to be killed, unless it has a cause of death: it may write no heartbeat from then on."""
    with driver_errors():
        await pool.execute(CONDEMN_WORKER, worker_id, death)


async def bury_worker(pool: asyncpg.Pool, worker_id: WorkerId, death: str) -> HandedBack:
    """Declare a worker dead and hand back its runs, except those that others are writing to.

    Nothing is handed back if others did it before.
    """
    with driver_errors():
        row = await pool.fetchrow(BURY_WORKER, worker_id, death, MAX_NAMED)
    assert row is not None
    return HandedBack(
        is_all=row["is_buried"],
        queues=Counter(row["queues"]),
        failed=row["failed_ids"],
        held=row["held"],
    )


async def list_crash_events(
    pool: asyncpg.Pool, failed: list[RunId]
) -> list[tuple[RunId, EventType]]:
    """List the events of the runs that a burial has failed, after it."""
    with driver_errors():
        rows = await pool.fetch(LIST_CRASH_EVENTS, failed)
    return [(row["run_id"], EventType(row["type"])) for row in rows]


async def list_living(connection: asyncpg.Connection | asyncpg.Pool) -> list[LivingWorker]:
    """List the workers that count as alive, with how long each has been silent."""
    with driver_errors():
        rows = await connection.fetch(LIST_LIVING)
    return [
        LivingWorker(
            worker_id=row["worker_id"],
            pool_id=row["pool_id"],
            process=ProcessIdentity(
                boot_id=row["boot_id"],
                pid_namespace=row["pid_namespace"],
                pid=row["pid"],
                process_start=row["process_start"],
            ),
            heartbeat_at=row["heartbeat_at"],
            silent_s=row["silent_s"],
            server_up_s=row["server_up_s"],
            is_connected=row["is_connected"],
            death=row["death"],
        )
        for row in rows
    ]


async def hold_liveness(connection: asyncpg.Connection, pool_id: UUID) -> None:
    """Hold, for as long as this session lives, the lock whose absence means that the pool is gone."""
    with driver_errors():
        await connection.execute(HOLD_LIVENESS, pool_id)
