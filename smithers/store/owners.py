"""The rows of workers: how a pool says that its children live, and how a death is noticed by others."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from smithers.events import EventType
from smithers.ids import RunId, WorkerId
from smithers.store.connections import driver_errors

HEARTBEAT_LIMIT_S: Final = 30

# -- name: register_worker
REGISTER_WORKER: Final = """
INSERT INTO smithers.workers (
    worker_id, pool_id, boot_id, pid_namespace, pid, process_start, queues, started_at, heartbeat_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, smithers.clock(), smithers.clock())
"""

# -- name: beat
# One statement a second for all children of a pool. Who is not returned was given up for dead by others, and must stop.
# One that has retired claims from no queue: whoever asks why a run waits must not count on it.
BEAT: Final = """
UPDATE smithers.workers SET heartbeat_at = smithers.clock(),
    queues = CASE WHEN worker_id = ANY ($2) THEN '{}' ELSE queues END
WHERE worker_id = ANY ($1) AND dead_at IS NULL RETURNING worker_id
"""

# -- name: bury_worker
BURY_WORKER: Final = "SELECT queue, run_count FROM smithers.bury_worker_v1($1, $2)"

# -- name: list_crash_events
# What the burial of a worker whose parent saw it end has written of the runs that it failed. A burial's epoch is nobody
# else's, so that these are all of them; and where others buried the worker, they have failed no run.
LIST_CRASH_EVENTS: Final = """
SELECT e.run_id, e.payload::json ->> 'type' AS type
FROM smithers.workers w JOIN smithers.runs r ON r.finished_at = w.dead_at AND r.status = 'failed'
    JOIN smithers.events e ON e.run_id = r.run_id AND e.epoch = r.epoch
WHERE w.worker_id = $1 AND w.death LIKE 'exit-%' ORDER BY e.run_id, e.seq
"""

# -- name: list_living
# All workers that count as alive: a pool looks among them for those of its own boot whose process is gone, and for those
# that have not beaten for too long. Silence counts from the later of the last heartbeat and the server's own start: after
# an outage of the database everybody was silent. Of the pools, which hold their liveness lock: seen in pg_locks, never taken.
LIST_LIVING: Final = """
SELECT w.worker_id, w.pool_id, w.boot_id, w.pid_namespace, w.pid, w.process_start,
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
    """What tells a process from every other, on any host and after any restart."""

    boot_id: str
    pid_namespace: str
    pid: int
    process_start: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingWorker:
    """A worker that nobody has given up for dead yet."""

    worker_id: WorkerId
    pool_id: UUID
    process: ProcessIdentity
    silent_s: float
    server_up_s: float
    is_connected: bool  # its pool's liveness session exists


async def register_worker(
    pool: asyncpg.Pool,
    worker_id: WorkerId,
    *,
    pool_id: UUID,
    process: ProcessIdentity,
    queues: tuple[str, ...],
) -> None:
    """Write down that a worker lives; before this it can claim nothing."""
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
    pool: asyncpg.Pool, worker_ids: list[WorkerId], retired: list[WorkerId]
) -> set[WorkerId]:
    """Write these workers' heartbeats, and which of them claim no more; return those that still count as alive."""
    with driver_errors():
        rows = await pool.fetch(BEAT, worker_ids, retired)
    return {row["worker_id"] for row in rows}


async def bury_worker(pool: asyncpg.Pool, worker_id: WorkerId, death: str) -> dict[str, int]:
    """Give a worker up for dead and hand back its runs; return how many by queue, nothing if others did it before."""
    with driver_errors():
        rows = await pool.fetch(BURY_WORKER, worker_id, death)
    return {row["queue"]: row["run_count"] for row in rows}


async def list_crash_events(
    pool: asyncpg.Pool, worker_id: WorkerId
) -> list[tuple[RunId, EventType]]:
    """List the events of the runs that a worker's burial has failed, after it."""
    with driver_errors():
        rows = await pool.fetch(LIST_CRASH_EVENTS, worker_id)
    return [(row["run_id"], EventType(row["type"])) for row in rows]


async def list_living(pool: asyncpg.Pool) -> list[LivingWorker]:
    """List the workers that count as alive, with how long each has been silent."""
    with driver_errors():
        rows = await pool.fetch(LIST_LIVING)
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
            silent_s=row["silent_s"],
            server_up_s=row["server_up_s"],
            is_connected=row["is_connected"],
        )
        for row in rows
    ]


async def hold_liveness(connection: asyncpg.Connection, pool_id: UUID) -> None:
    """Hold, for as long as this session lives, the lock whose absence tells others that the pool is gone."""
    with driver_errors():
        await connection.execute(HOLD_LIVENESS, pool_id)
