"""Claim due runs, and release them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import asyncpg

from smithers.ids import Epoch, RunId, SourceHash, WorkerId
from smithers.states import RunStatus
from smithers.store.connections import driver_errors, transaction
from smithers.store.patterns import fill


class ClaimKind(StrEnum):
    """Which runs a claim is for."""

    MANY = "many"  # those that share a child
    ISOLATED = "isolated"  # one that wants a child of its own
    SUSPECT = "suspect"  # a suspect, beside others that have been acquitted
    FIRST_TIME = "first-time"  # suspects after one death: tried together


_SHARING: Final = "NOT is_solo AND crash_count = 0"  # each the predicate of an index
_APART: Final = "(is_solo OR crash_count > 0)"
_ISOLATED: Final = f"{_APART} AND is_solo"  # for the same index
_SUSPECT: Final = "NOT is_solo AND crash_count > 0"

# The priorities of such runs in these queues, most urgent first: one step of the index for each. With it a claim reads the
# due runs of each priority; a walk over the whole queue would pass every future timer.
_LEVELS: Final = """
levels (queue, priority) AS (
    SELECT q.queue, n.priority FROM unnest($1::text[]) AS q (queue) CROSS JOIN LATERAL (
        SELECT r.priority FROM smithers.runs AS r
        WHERE r.queue = q.queue AND r.owner_id IS NULL AND r.due_at IS NOT NULL AND {which}
        ORDER BY r.priority DESC LIMIT 1) AS n
    UNION ALL
    SELECT l.queue, n.priority FROM levels AS l CROSS JOIN LATERAL (
        SELECT r.priority FROM smithers.runs AS r
        WHERE r.queue = l.queue AND r.priority < l.priority
            AND r.owner_id IS NULL AND r.due_at IS NOT NULL AND {which}
        ORDER BY r.priority DESC LIMIT 1) AS n)"""

# -- name: claim_runs
# SKIP LOCKED: rivals skip each other's rows instead of queueing. MATERIALIZED: an IN (... LIMIT) may run twice and exceed its
# limit. A test EXPLAINs it: it reads only the rows that it claims, by runs_claimable_idx. The worker's row is locked FOR KEY
# SHARE, a burial locks it FOR UPDATE, so a buried worker never owns a run. No event here: the first commit after the
# claim records it. A resumed run stays `queued` until that commit, which begins its era: if its owner dies before that, the
# next one sees the same. Suspects, and runs that need a child of their own, are not claimed here.
# A claim does not wait for its flush (docs/adr/0014): whatever its owner commits is flushed after it. If Postgres crashes
# before, the run is due again, and the epoch is not given a second time: it is the time in milliseconds and 20 random bits,
# or, where the clock was put back, the last one plus one and a random number.
_CLAIM: Final = """
WITH RECURSIVE alive AS MATERIALIZED (
    SELECT worker_id, set_config('synchronous_commit', 'off', true)
    FROM smithers.workers WHERE worker_id = $3 AND dead_at IS NULL FOR KEY SHARE),
{levels},
due AS MATERIALIZED (
    SELECT d.run_id, d.status_before, d.due_at FROM levels AS l CROSS JOIN LATERAL (
        SELECT r.run_id, r.status AS status_before, r.due_at FROM smithers.runs AS r
        WHERE r.queue = l.queue AND r.priority = l.priority AND r.due_at <= smithers.clock()
            AND r.owner_id IS NULL AND r.due_at IS NOT NULL AND {which}
            AND EXISTS (SELECT 1 FROM alive)
        ORDER BY r.due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED) AS d
    LIMIT $2),
claimed AS (
    UPDATE smithers.runs AS r SET
        owner_id = $3, commit_no = 0, due_at = NULL,
        epoch = greatest(epoch + 1, smithers.to_ms(smithers.clock()) << 20) + floor(random() * (1 << 20))::bigint,
        status = CASE WHEN status = 'queued' AND era = 0 THEN 'running' ELSE status END,
        started_at = coalesce(started_at, smithers.clock())
    FROM due WHERE r.run_id = due.run_id
    RETURNING r.run_id, r.epoch, due.status_before, smithers.to_ms(due.due_at) AS due_ms,
        smithers.to_ms(r.started_at) AS started_ms, r.era, r.last_seq, r.last_frame_no, r.crash_count, r.is_solo,
        r.queue, r.parent_run_id, r.cancel_requested_at IS NOT NULL AS is_cancelling,
        smithers.to_ms(r.lost_heartbeat_at) AS lost_heartbeat_ms)
SELECT c.*, q.workflow_name, q.workflow_path, q.workflow_export, q.source_hash, q.input, q.config, q.auth,
    q.trace_context, q.carried, smithers.to_ms(smithers.clock()) AS now_ms
FROM claimed AS c JOIN smithers.run_requests AS q ON q.run_id = c.run_id
"""


def _claim(which: str) -> str:
    return fill(_CLAIM, levels=fill(_LEVELS, which=which), which=which)


CLAIM_RUNS: Final = _claim(_SHARING)

# -- name: claim_isolated_run
# The same for one run that gets this child to itself; it may be a suspect, too.
CLAIM_ISOLATED_RUN: Final = _claim(_ISOLATED)

# -- name: claim_suspect_run
# The same for a child that tries suspects and has none, or has acquitted those that it tried.
CLAIM_SUSPECT_RUN: Final = _claim(_SUSPECT)

# -- name: claim_first_time_suspects
# The same for a child that tries several suspects together: each was in flight in one dead child, none in two.
CLAIM_FIRST_TIME_SUSPECTS: Final = _claim("NOT is_solo AND crash_count = 1")

_CLAIMS: Final = {
    ClaimKind.MANY: CLAIM_RUNS,
    ClaimKind.ISOLATED: CLAIM_ISOLATED_RUN,
    ClaimKind.SUSPECT: CLAIM_SUSPECT_RUN,
    ClaimKind.FIRST_TIME: CLAIM_FIRST_TIME_SUSPECTS,
}

# -- name: release_unknown
# After a claim whose answer was lost: the runs that it took are this worker's, but nobody executes them. Known ones, which
# were answered and have not committed yet, are excluded. The lock waits for a claim that the server is still executing.
HOLD_WORKER: Final = "SELECT FROM smithers.workers WHERE worker_id = $1 FOR UPDATE"
RELEASE_UNKNOWN: Final = """
UPDATE smithers.runs SET owner_id = NULL, due_at = smithers.clock()
WHERE owner_id = $1 AND commit_no = 0 AND NOT EXISTS (
    SELECT 1 FROM unnest($2::text[], $3::bigint[]) AS k (run_id, epoch)
    WHERE k.run_id = runs.run_id AND k.epoch = runs.epoch)
"""

# -- name: count_runs_apart
# How many runs are due for children apart from those that share, up to a limit of each kind: neither hides the other.
COUNT_RUNS_APART: Final = fill(
    """
WITH RECURSIVE {levels}
SELECT (
    SELECT count(*) FROM (
        SELECT FROM levels AS l CROSS JOIN LATERAL (
            SELECT FROM smithers.runs AS r
            WHERE r.queue = l.queue AND r.priority = l.priority AND r.due_at <= smithers.clock()
                AND r.owner_id IS NULL AND r.due_at IS NOT NULL AND {isolated}
            ORDER BY r.due_at LIMIT 16) AS d
        LIMIT 16) AS wanted) AS isolated, (
    SELECT count(*) FROM (
        SELECT FROM levels AS l CROSS JOIN LATERAL (
            SELECT FROM smithers.runs AS r
            WHERE r.queue = l.queue AND r.priority = l.priority AND r.due_at <= smithers.clock()
                AND r.owner_id IS NULL AND r.due_at IS NOT NULL AND {suspect}
            ORDER BY r.due_at LIMIT 16) AS d
        LIMIT 16) AS wanted) AS suspects
""",
    levels=fill(_LEVELS, which=_APART),
    isolated=_ISOLATED,
    suspect=_SUSPECT,
)

# -- name: find_next_due
# How long a claimer may sleep: until the earliest due time of its queue, in milliseconds from now.
FIND_NEXT_DUE: Final = fill(
    """
WITH RECURSIVE {levels}
SELECT smithers.to_ms(min(d.due_at)) - smithers.to_ms(smithers.clock()) FROM levels AS l CROSS JOIN LATERAL (
    SELECT r.due_at FROM smithers.runs AS r
    WHERE r.queue = l.queue AND r.priority = l.priority
        AND r.owner_id IS NULL AND r.due_at IS NOT NULL AND {which}
    ORDER BY r.due_at LIMIT 1) AS d
""",
    levels=fill(_LEVELS, which=_SHARING),
    which=_SHARING,
)

# -- name: release_runs
# Release runs that should resume elsewhere, e.g. on a drain: due at once, without an event.
RELEASE_RUNS: Final = """
UPDATE smithers.runs SET owner_id = NULL, due_at = smithers.clock()
WHERE owner_id = $1 AND run_id = ANY ($2)
RETURNING queue
"""

# -- name: acquit_run
# A run that was tried and did not kill its owner again is treated like any other.
ACQUIT_RUN: Final = """
UPDATE smithers.runs SET crash_count = 0 WHERE run_id = $1 AND epoch = $2 AND owner_id = $3
"""

# -- name: find_news
# The fallback for lost hints, one query for all of a child's runs: which have been written to by others, or been lost.
# With the newest seq, if that is all that tells: it may be a commit of the child's own whose answer is on its way.
FIND_NEWS: Final = """
SELECT k.run_id, CASE WHEN r.owner_id = $1 AND r.cancel_requested_at IS NULL THEN r.last_seq END AS last_seq
FROM unnest($2::text[], $3::text[]::bigint[]) AS k (run_id, last_seq)
LEFT JOIN smithers.runs AS r ON r.run_id = k.run_id
WHERE r.owner_id IS DISTINCT FROM $1 OR r.last_seq > k.last_seq OR r.cancel_requested_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRun:
    """A run that this worker now owns."""

    run_id: RunId
    epoch: Epoch  # fences everything that this worker writes
    status_before: RunStatus
    era: int
    last_seq: int
    last_frame_no: int
    crash_count: int  # consecutive owners that died with this run in flight
    is_solo: bool  # has a child of its own because of its workflow, not as a suspect
    is_cancelling: bool
    lost_heartbeat_ms: int | None  # set: its last owner died
    workflow_name: str
    workflow_path: str
    workflow_export: str | None
    source_hash: SourceHash
    input: str
    config: str
    auth: str | None
    trace_context: str | None
    due_ms: int  # since when it could have been claimed
    started_ms: int  # its first claim
    now_ms: int
    queue: str
    parent_run_id: RunId | None  # the run that waits for its end
    carried: str | None  # JSON: the state carried over by ContinueAsNew

    @property
    def is_new(self) -> bool:
        """Whether it has no history except its start."""
        return self.last_seq == 0


async def claim_runs(
    connection: asyncpg.Connection,
    *,
    worker_id: WorkerId,
    queue: str,
    limit: int,
    kind: ClaimKind,
) -> list[ClaimedRun]:
    """Claim up to `limit` due runs, most urgent first."""
    with driver_errors():
        rows = await connection.fetch(_CLAIMS[kind], [queue], limit, worker_id)
    return [
        ClaimedRun(**{**dict(row), "status_before": RunStatus(row["status_before"])})
        for row in rows
    ]


async def release_unknown(
    connection: asyncpg.Connection, worker_id: WorkerId, known: Mapping[RunId, Epoch]
) -> None:
    """Release the runs of a claim whose answer was lost."""
    with driver_errors():
        async with transaction(connection):
            await connection.execute(HOLD_WORKER, worker_id)
            await connection.execute(RELEASE_UNKNOWN, worker_id, list(known), list(known.values()))


async def count_runs_apart(
    connection: asyncpg.Connection, queues: tuple[str, ...]
) -> dict[ClaimKind, int]:
    """Return how many isolated runs and suspects of these queues are due; 16: or more."""
    with driver_errors():
        row = await connection.fetchrow(COUNT_RUNS_APART, list(queues))
    assert row is not None
    return {ClaimKind.ISOLATED: row["isolated"], ClaimKind.SUSPECT: row["suspects"]}


async def find_next_due_ms(connection: asyncpg.Connection, queue: str) -> int | None:
    """Return in how many milliseconds the queue's next run is due; negative: already."""
    with driver_errors():
        due: int | None = await connection.fetchval(FIND_NEXT_DUE, [queue])
    return due


async def release_runs(pool: asyncpg.Pool, worker_id: WorkerId, run_ids: list[RunId]) -> list[str]:
    """Release runs for others to resume; return their queues."""
    with driver_errors():
        rows = await pool.fetch(RELEASE_RUNS, worker_id, run_ids)
    return [row["queue"] for row in rows]


async def acquit_run(pool: asyncpg.Pool, worker_id: WorkerId, run_id: RunId, epoch: Epoch) -> None:
    """Acquit a run of killing its owners."""
    with driver_errors():
        await pool.execute(ACQUIT_RUN, run_id, epoch, worker_id)


async def find_news(
    pool: asyncpg.Pool, worker_id: WorkerId, cursors: dict[RunId, int]
) -> dict[RunId, int | None]:
    """Return which of a child's runs others have written to, by the last seq that it knows of each.

    With the newest seq, unless there are news in any case: a child that knows of it by now has none.
    """
    with driver_errors():
        rows = await pool.fetch(FIND_NEWS, worker_id, [*cursors], [*map(str, cursors.values())])
    return {row["run_id"]: row["last_seq"] for row in rows}
