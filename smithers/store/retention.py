"""Remove runs that ended long ago: whole ones, a few at a time, leaving only their ids.

A batch is one transaction that locks the runs' rows and nothing else; locked runs are skipped, and between
batches there is a pause. One process does it at a time, by a transaction-level lock, which works through any pooler. A child
is removed after its parent, so that nobody can resume a parent whose children are missing. A removed id stays taken
(see refuse_tombstones_v1.sql); an idempotency key lives as long as its run.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from smithers.errors import StoreError
from smithers.ids import RunId
from smithers.store.connections import driver_errors, open_connection, transaction

BATCH_RUNS: Final = 100
BATCH_EVENTS: Final = 10_000  # a larger run is a batch by itself
BATCH_ROWS: Final = 1_000  # of rows that belong to no run
REST: Final = 4  # the pause after a batch, in durations of the batch: a fifth of one connection
REST_S: Final = 0.05
UNUSED: Final = timedelta(days=1)  # far longer than a gateway trusts that a source is stored
BATCH_TIMEOUT_S: Final = 600.0  # a single run may have millions of events
RETENTION_LOCK: Final = 7331_0003  # any number, the same for all

# -- name: take_turn
TAKE_TURN: Final = "SELECT pg_try_advisory_xact_lock($1)"

# -- name: allow_time
ALLOW_TIME: Final = "SELECT set_config('statement_timeout', $1, true)"

# -- name: lock_prunable
# An ended run has an end time, which a resume removes. SKIP LOCKED: whoever holds a lock is about to change the run.
# An existing parent may be resumed, and would look for its children. The walk begins after a place: the children before it,
# whose parents exist, may be many, and were checked.
LOCK_PRUNABLE: Final = """
SELECT r.run_id, r.finished_at, r.last_seq + 1 AS event_count FROM smithers.runs AS r
WHERE r.finished_at < smithers.clock() - $1::interval AND (r.finished_at, r.run_id) > ($3, $4::text)
    AND NOT EXISTS (SELECT FROM smithers.runs AS p WHERE p.run_id = r.parent_run_id)
ORDER BY r.finished_at, r.run_id LIMIT $2 FOR UPDATE OF r SKIP LOCKED
"""

# -- name: prune_runs
# One statement for all rows with a run's id; the rows in `runs` are locked, so that nobody adds any meanwhile. A test
# walks the tables and fails for one that is missing here.
PRUNE_RUNS: Final = """
WITH gone AS (DELETE FROM smithers.runs WHERE run_id = ANY ($1) RETURNING run_id),
requests AS (DELETE FROM smithers.run_requests WHERE run_id = ANY ($1)),
nodes AS (DELETE FROM smithers.nodes WHERE run_id = ANY ($1)),
attempts AS (DELETE FROM smithers.attempts WHERE run_id = ANY ($1)),
events AS (DELETE FROM smithers.events WHERE run_id = ANY ($1)),
frames AS (DELETE FROM smithers.frames WHERE run_id = ANY ($1)),
loops AS (DELETE FROM smithers.loops WHERE run_id = ANY ($1)),
approvals AS (DELETE FROM smithers.approvals WHERE run_id = ANY ($1)),
signals AS (DELETE FROM smithers.signals WHERE run_id = ANY ($1)),
children AS (DELETE FROM smithers.children WHERE run_id = ANY ($1)),
tool_calls AS (DELETE FROM smithers.tool_calls WHERE run_id = ANY ($1)),
tries AS (DELETE FROM smithers.tries WHERE run_id = ANY ($1)),
keys AS (DELETE FROM smithers.idempotency_keys WHERE run_id = ANY ($1))
INSERT INTO smithers.tombstones (run_id, pruned_at) SELECT run_id, smithers.clock() FROM gone
ON CONFLICT DO NOTHING  -- a mirror that had come back
"""

# -- name: count_prunable
# Including children whose parents would be removed before them.
COUNT_PRUNABLE: Final = """
SELECT count(*) AS run_count, coalesce(sum(r.last_seq + 1), 0)::bigint AS event_count FROM smithers.runs AS r
WHERE r.finished_at < smithers.clock() - $1::interval
    AND NOT EXISTS (SELECT FROM smithers.runs AS p WHERE p.run_id = r.parent_run_id
        AND (p.finished_at IS NULL OR p.finished_at >= smithers.clock() - $1::interval))
"""

# -- name: prune_expired
# The run that produced it does not matter: others read it. These five delete a few rows at a time by ctid, which is stable
# while a row is locked: SKIP LOCKED skips rows that are being refreshed, and rechecks those that just were; ARRAY evaluates
# once, where an IN may evaluate again.
PRUNE_EXPIRED: Final = """
DELETE FROM smithers.cached_outputs WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM smithers.cached_outputs WHERE expires_at < smithers.clock() - $1::interval
    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))
"""

# -- name: prune_outputs
# An output older than the retention of runs is made again.
PRUNE_OUTPUTS: Final = """
DELETE FROM smithers.cached_outputs WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM smithers.cached_outputs WHERE created_at < smithers.clock() - $1::interval
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))
"""

# -- name: prune_sources
# A gateway that starts runs with a source refreshes it every few minutes (see keep_source).
PRUNE_SOURCES: Final = """
DELETE FROM smithers.workflow_sources WHERE ctid = ANY (ARRAY(
    SELECT s.ctid FROM smithers.workflow_sources AS s WHERE s.created_at < smithers.clock() - $1::interval
        AND NOT EXISTS (SELECT FROM smithers.run_requests AS q WHERE q.source_hash = s.source_hash)
    LIMIT $2 FOR UPDATE OF s SKIP LOCKED))
"""

# -- name: prune_descriptions
PRUNE_DESCRIPTIONS: Final = """
DELETE FROM smithers.workflow_descriptions WHERE ctid = ANY (ARRAY(
    SELECT d.ctid FROM smithers.workflow_descriptions AS d WHERE d.created_at < smithers.clock() - $1::interval
        AND NOT EXISTS (SELECT FROM smithers.workflow_sources AS s WHERE s.source_hash = d.source_hash)
    LIMIT $2 FOR UPDATE OF d SKIP LOCKED))
"""

# -- name: prune_workers
# An attempt keeps its worker's id, but nobody looks it up.
PRUNE_WORKERS: Final = """
DELETE FROM smithers.workers WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM smithers.workers WHERE dead_at < smithers.clock() - $1::interval
    LIMIT $2 FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How much was removed; for a dry run, how much would be."""

    run_count: int
    event_count: int
    source_count: int = 0
    is_elsewhere: bool = False  # another process has its turn: nothing was done here


@dataclass(frozen=True, slots=True)
class EndPlace:
    """The position of a walk over ended runs."""

    finished_at: datetime
    run_id: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one batch removed."""

    run_count: int
    event_count: int
    last: EndPlace | None  # of the runs that were removed; None: there were none


FIRST: Final = EndPlace(datetime.min.replace(tzinfo=UTC), RunId(""))


async def prune(dsn: str, older_than: timedelta) -> Pruned:
    """Remove runs that ended longer ago than that, and rows no longer needed; in batches, until nothing is left.

    Raises StoreError; what was removed until then stays removed, and a kind that fails does not stop the others.
    """
    async with open_connection(dsn, role="retention") as connection:
        try:
            pruned = await _prune_runs(connection, older_than)
        except StoreError:
            # One run, perhaps, that is too large, and would be the first again next time.
            await prune_rest(connection, older_than)
            raise
        if pruned.is_elsewhere:
            return pruned
        return replace(pruned, source_count=await prune_rest(connection, older_than))


async def _prune_runs(connection: asyncpg.Connection, older_than: timedelta) -> Pruned:
    # One walk after another, until one removes nothing: a child goes after its parent, which most often ended later.
    run_count = event_count = 0
    after, has_removed = FIRST, False
    while True:
        began_s = asyncio.get_running_loop().time()
        batch = await prune_batch(connection, older_than, after)
        if batch is None or (batch.last is None and not has_removed):
            return Pruned(run_count=run_count, event_count=event_count, is_elsewhere=batch is None)
        run_count += batch.run_count
        event_count += batch.event_count
        after, has_removed = batch.last or FIRST, batch.last is not None
        await _rest(began_s)


async def prune_batch(
    connection: asyncpg.Connection, older_than: timedelta, after: EndPlace = FIRST
) -> Batch | None:
    """Remove the first few runs that ended after a place; None: another process is pruning."""
    with driver_errors():
        async with transaction(connection):
            if not await connection.fetchval(TAKE_TURN, RETENTION_LOCK):
                return None
            await connection.execute(ALLOW_TIME, f"{BATCH_TIMEOUT_S:.0f}s")
            rows = await connection.fetch(
                LOCK_PRUNABLE, older_than, BATCH_RUNS, after.finished_at, after.run_id
            )
            chosen = _few(rows)
            run_ids = [row["run_id"] for row in chosen]
            await connection.execute(PRUNE_RUNS, run_ids, timeout=BATCH_TIMEOUT_S)
    return Batch(
        run_count=len(chosen),
        event_count=sum(row["event_count"] for row in chosen),
        last=EndPlace(chosen[-1]["finished_at"], RunId(chosen[-1]["run_id"])) if chosen else None,
    )


async def prune_rest(connection: asyncpg.Connection, older_than: timedelta) -> int:
    """Remove sources that no run has, and rows of dead workers and expired outputs; return how many sources.

    Each kind by itself, in batches; the first StoreError is raised when all have had their turn.
    """
    counts: dict[str, int] = {}
    failures: list[StoreError] = []
    for statement, age in (
        (PRUNE_EXPIRED, timedelta(0)),
        (PRUNE_OUTPUTS, older_than),
        (PRUNE_SOURCES, UNUSED),
        (PRUNE_DESCRIPTIONS, UNUSED),
        (PRUNE_WORKERS, UNUSED),
    ):
        try:
            counts[statement] = await _prune_rows(connection, statement, age)
        except StoreError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return counts[PRUNE_SOURCES]


async def _prune_rows(connection: asyncpg.Connection, statement: str, age: timedelta) -> int:
    total = 0
    while True:
        began_s = asyncio.get_running_loop().time()
        with driver_errors():
            answer = await connection.execute(statement, age, BATCH_ROWS)
        count = int(answer.removeprefix("DELETE "))
        total += count
        if count < BATCH_ROWS:
            return total
        await _rest(began_s)


async def _rest(began_s: float) -> None:
    took_s = asyncio.get_running_loop().time() - began_s
    await asyncio.sleep(REST_S + REST * took_s)


async def count_prunable(dsn: str, older_than: timedelta) -> Pruned:
    """Say how much `prune` would remove."""
    async with open_connection(dsn, role="retention") as connection:
        with driver_errors():
            row = await connection.fetchrow(COUNT_PRUNABLE, older_than)
    assert row is not None
    return Pruned(run_count=row["run_count"], event_count=row["event_count"])


def _few(rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
    """Take runs from the front until a batch has enough events; at least one."""
    total = 0
    for count, row in enumerate(rows):
        total += row["event_count"]
        if count and total > BATCH_EVENTS:
            return rows[:count]
    return rows
