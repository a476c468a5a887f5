"""Read the data of a run's own span, for a process that ends a run without having owned it."""

from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.ids import RunId
from smithers.store.connections import driver_errors

# -- name: find_run_trace
FIND_RUN_TRACE: Final = """
SELECT q.workflow_name, q.trace_context, r.era, smithers.to_ms(coalesce(r.started_at, r.created_at)) AS began_ms,
    smithers.to_ms(r.finished_at) AS ended_ms
FROM smithers.run_requests AS q JOIN smithers.runs AS r ON r.run_id = q.run_id
WHERE q.run_id = $1 AND r.finished_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """An ended run, for its trace."""

    workflow_name: str
    trace_context: str | None
    era: int
    began_ms: int
    ended_ms: int


async def find_run_trace(pool: asyncpg.Pool, run_id: RunId) -> EndedRun | None:
    """Read it; None if the run has not ended, or is gone."""
    with driver_errors():
        row = await pool.fetchrow(FIND_RUN_TRACE, run_id)
    return None if row is None else EndedRun(**row)
