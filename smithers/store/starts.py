"""Start runs: the row, the request, event 0 and the wake-up, in one transaction; then notify claimers.

A constraint guarantees uniqueness, not a SELECT: of any number of starts with one run id exactly one wins. Starts that
arrive while others are being committed share the next transaction (see lanes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import asyncpg

from smithers.ids import RunId, SourceHash
from smithers.store.connections import driver_errors, transaction
from smithers.store.hints import Channel, pack_hints
from smithers.store.lanes import Lane, each_on_its_own
from smithers.store.refusals import KeyReused, RunExists


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """A run to start; the order of the fields is that of the SQL type run_start_v1."""

    run_id: RunId
    workflow_name: str
    workflow_path: str
    workflow_export: str | None
    source_hash: SourceHash
    input: str
    config: str
    auth: str | None
    trace_context: str | None
    parent_run_id: RunId | None
    queue: str
    priority: int
    head: str
    tail: str
    is_solo: bool = False  # each run of the workflow has a child of its own


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key, and the hash of its request."""

    key: str
    request_hash: str


@dataclass(frozen=True, slots=True)
class KeptStart:
    """The run that a key stands for."""

    run_id: RunId
    reserved_in: str | None  # the other database that the run is to live in, and may not yet


_as_tuple: Final = attrgetter(*RunStart.__slots__)  # dataclasses.astuple copies deeply
StartLane = Lane[RunStart, bool]

# -- name: start_runs
# One call for all queued starts; those that are not returned lost to another start.
START_RUNS: Final = "SELECT run_id FROM smithers.start_runs_v1($1::smithers.run_start_v1[])"

# -- name: start_and_tell
# The same, and then the notifications, in one round trip; see migrations/functions/start_and_tell_v5.sql.
START_AND_TELL: Final = "CALL smithers.start_and_tell_v5($1::smithers.run_start_v1[], $2, $3, NULL)"

# -- name: reserve_key
# A rival with the same key waits here until the first has committed (and then gets no row) or was rolled back.
RESERVE_KEY: Final = """
    INSERT INTO smithers.idempotency_keys (idempotency_key, request_hash, run_id) VALUES ($1, $2, $3)
    ON CONFLICT DO NOTHING RETURNING run_id"""

# -- name: find_key
# `reserved_in` is set while nothing has been mirrored back yet: the start may have been interrupted. The lock makes a
# repetition wait like the first start: a transaction with a lock commits, and that waits for a synchronous standby.
FIND_KEY: Final = """
    SELECT k.request_hash, k.run_id, CASE WHEN r.mirrored_seq = -1 THEN r.database END AS reserved_in
    FROM smithers.idempotency_keys AS k LEFT JOIN smithers.runs AS r ON r.run_id = k.run_id
    WHERE k.idempotency_key = $1 FOR KEY SHARE OF k"""

# -- name: count_queued
# Stops counting at the limit. ORDER BY keeps the planner on the index; without it, it scans the table after many recent
# starts. Mirrors are left out: they wait for the workers of another database.
COUNT_QUEUED: Final = """
    SELECT count(*) FROM (
        SELECT FROM smithers.runs WHERE status = 'queued' AND database IS NULL ORDER BY created_at LIMIT $1) AS queued"""


def open_start_lane(dsn: str) -> StartLane:
    """Open the lane on which runs are started; submitting returns whether the run is new."""
    return Lane(dsn, role="starts", flush=start_runs)


async def start_runs(
    connection: asyncpg.Connection, starts: Sequence[RunStart]
) -> Sequence[bool | Exception]:
    """Return for each start whether it won; of equal ids in one batch the first does. Claimers have been notified."""
    unique: dict[RunId, RunStart] = {}
    for start in starts:
        unique.setdefault(start.run_id, start)
    outcomes = await each_on_its_own(connection, list(unique.values()), _start_and_tell)
    by_id = dict(zip(unique, outcomes, strict=True))
    return [
        by_id[start.run_id] if unique[start.run_id] is start else _second(by_id[start.run_id])
        for start in starts
    ]


async def start_with_key(
    pool: asyncpg.Pool, start: RunStart, key: IdempotencyKey
) -> tuple[RunId, bool]:
    """Start a run once for a key; return the run that it stands for, and whether it is new. Claimers are not notified.

    Key and run are one transaction: no crash leaves one without the other. Raises KeyReused where the key came with
    another request, RunExists where the run id was taken without this key.
    """
    with driver_errors():
        async with pool.acquire() as connection, transaction(connection):
            first = await take_key(connection, start.run_id, key)
            if first is not None:
                return first, False
            if not (await start_unique(connection, [start]))[0]:
                raise RunExists
            return start.run_id, True


async def take_key(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy,
    run_id: RunId,
    key: IdempotencyKey,
) -> RunId | None:
    """Bind a key to a run, in the caller's transaction; return the run that it already stands for, if any.

    Raises KeyReused where the key came with another request.
    """
    if await connection.fetchval(RESERVE_KEY, key.key, key.request_hash, run_id):
        return None
    first = await find_key(connection, key)
    if first is None:
        raise KeyReused
    return first.run_id


async def find_key(
    connection: asyncpg.Pool | asyncpg.Connection | asyncpg.pool.PoolConnectionProxy,
    key: IdempotencyKey,
) -> KeptStart | None:
    """Return the run that a key stands for; None: none yet. Raises KeyReused if it was used with another request."""
    with driver_errors():
        row = await connection.fetchrow(FIND_KEY, key.key)
    if row is None:
        return None
    if row["request_hash"] != key.request_hash:
        raise KeyReused
    return KeptStart(RunId(row["run_id"]), row["reserved_in"])


async def count_queued(pool: asyncpg.Pool, *, limit: int) -> int:
    """Return how many runs no worker has claimed yet; `limit`: or more."""
    with driver_errors():
        count: int = await pool.fetchval(COUNT_QUEUED, limit)
    return count


async def start_unique(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy, starts: Sequence[RunStart]
) -> Sequence[bool]:
    """Start runs whose ids differ; False for one that is there already. For callers: start_runs, or a lane's `submit`."""
    rows = await connection.fetch(START_RUNS, [_as_tuple(start) for start in starts])
    new = {row["run_id"] for row in rows}
    return [start.run_id in new for start in starts]


async def _start_and_tell(
    connection: asyncpg.Connection, starts: Sequence[RunStart]
) -> Sequence[bool]:
    hints = pack_hints({Channel.DUE: {start.queue for start in starts}})
    new = await connection.fetchval(START_AND_TELL, [_as_tuple(start) for start in starts], *hints)
    return [start.run_id in (new or ()) for start in starts]


def _second(outcome: bool | Exception) -> bool | Exception:
    return outcome if isinstance(outcome, Exception) else False
