"""Read the counts of runs by state, for the metrics of the database."""

from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.states import RunStatus
from smithers.store.connections import driver_errors

MAX_QUEUES: Final = 64

# -- name: count_open_runs
# By the index of runs by status only: ended runs are not read, however many there are.
COUNT_OPEN_RUNS: Final = """
SELECT status, count(*) AS run_count FROM smithers.runs
WHERE status IN ('queued', 'running', 'waiting-approval', 'waiting-event', 'waiting-timer') GROUP BY status
"""

# -- name: measure_queues
# Runs that are due and unclaimed: each half has the predicate of an index. Longest queues first: only those are shown. Each
# `smithers up` has a queue of its own, named after its run, whose id would become a label: they are measured as one, `up`.
# Mirrors cannot be claimed here. One that is `queued` in its first era has waited since its start to be claimed where it
# lives. One that was resumed is not counted: since when it waits is not known here.
MEASURE_QUEUES: Final = """
SELECT CASE WHEN starts_with(queue, 'up-') THEN 'up' ELSE queue END AS queue, count(*) AS run_count,
    extract(epoch FROM smithers.clock() - min(since))::float8 AS oldest_s FROM (
    SELECT queue, due_at AS since FROM smithers.runs
    WHERE owner_id IS NULL AND due_at IS NOT NULL AND NOT is_solo AND crash_count = 0 AND due_at <= smithers.clock()
    UNION ALL
    SELECT queue, due_at FROM smithers.runs
    WHERE owner_id IS NULL AND due_at IS NOT NULL AND (is_solo OR crash_count > 0) AND due_at <= smithers.clock()
    UNION ALL
    SELECT queue, created_at FROM smithers.runs WHERE status = 'queued' AND era = 0 AND database IS NOT NULL
) AS due GROUP BY 1 ORDER BY run_count DESC, 1 LIMIT $1
"""

# -- name: measure_approvals
MEASURE_APPROVALS: Final = """
SELECT count(*) AS open_count, extract(epoch FROM smithers.clock() - min(requested_at))::float8 AS oldest_s
FROM smithers.approvals WHERE status = 'requested'
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many wait, and for how long the oldest."""

    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """Counts of the runs that have not ended."""

    runs: dict[RunStatus, int]
    queues: dict[str, Backlog]  # due and unclaimed; at most MAX_QUEUES of them
    approvals: Backlog


async def read_gauges(pool: asyncpg.Pool) -> Gauges:
    """Read them; raises StoreError."""
    with driver_errors():
        async with pool.acquire() as connection:
            runs = await connection.fetch(COUNT_OPEN_RUNS)
            queues = await connection.fetch(MEASURE_QUEUES, MAX_QUEUES)
            approvals = await connection.fetchrow(MEASURE_APPROVALS)
    open_count, oldest_s = approvals or (0, None)
    return Gauges(
        runs={RunStatus(row["status"]): row["run_count"] for row in runs},
        queues={row["queue"]: Backlog(row["run_count"], row["oldest_s"]) for row in queues},
        approvals=Backlog(open_count, oldest_s or 0.0),
    )
