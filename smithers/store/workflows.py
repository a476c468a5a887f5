"""Read the workflows of a database: those with runs, each as its newest run has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.ids import RunId, SourceHash
from smithers.states import RunStatus
from smithers.store.connections import driver_errors
from smithers.store.descriptions import DescriptionRow, read_description

PARKED: Final = tuple(status for status in RunStatus if status.is_parked)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowRow:
    """A workflow; if no throwaway process has described it yet, all of its description is None."""

    workflow_name: str
    workflow_path: str
    workflow_export: str | None
    source_hash: SourceHash
    last_started_ms: int
    description: DescriptionRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedRun:
    """A waiting run, and its start parameters."""

    run_id: RunId
    status: RunStatus
    workflow_name: str
    workflow_path: str
    workflow_export: str | None
    source_hash: SourceHash
    input: str
    auth: str | None
    config: str
    carried: str | None  # JSON: the state carried over from the run that it continues


# -- name: list_workflows
# The names are few and the runs are many: from name to name by the index, and for each its newest run.
LIST_WORKFLOWS: Final = """
WITH RECURSIVE names (workflow_name) AS (
    (SELECT q.workflow_name FROM smithers.run_requests q WHERE q.workflow_name > $1 ORDER BY q.workflow_name LIMIT 1)
    UNION ALL
    SELECT (SELECT q.workflow_name FROM smithers.run_requests q
            WHERE q.workflow_name > n.workflow_name ORDER BY q.workflow_name LIMIT 1)
    FROM names n WHERE n.workflow_name IS NOT NULL)
SELECT newest.*, d.description
FROM names n CROSS JOIN LATERAL (
    SELECT q.workflow_name, q.workflow_path, q.workflow_export, q.source_hash,
           smithers.to_ms(q.created_at) AS last_started_ms
    FROM smithers.run_requests q WHERE q.workflow_name = n.workflow_name
    ORDER BY q.created_at DESC, q.run_id DESC LIMIT 1) AS newest
LEFT JOIN smithers.workflow_descriptions d
    ON d.source_hash = newest.source_hash AND d.workflow_export = coalesce(newest.workflow_export, '')
ORDER BY newest.workflow_name LIMIT $2
"""

# -- name: list_parked_runs
# In the order of the ids, page by page: what is parked or goes on meanwhile shifts nobody else. The planner does not
# conclude the last condition from the join, and would walk all requests before the page.
LIST_PARKED_RUNS: Final = """
SELECT r.run_id, r.status, q.workflow_name, q.workflow_path, q.workflow_export, q.source_hash, q.input, q.auth,
       q.config, q.carried
FROM smithers.runs r JOIN smithers.run_requests q USING (run_id)
WHERE r.status = ANY ($1) AND r.run_id > $2 AND q.run_id > $2
ORDER BY r.run_id LIMIT $3
"""


async def list_workflows(pool: asyncpg.Pool, *, after: str, limit: int) -> list[WorkflowRow]:
    """List workflows by name, from the one after `after` on ('': from the first)."""
    with driver_errors():
        rows = await pool.fetch(LIST_WORKFLOWS, after, limit)
    return [_workflow(row) for row in rows]


async def list_parked_runs(
    connection: asyncpg.Connection, *, after: RunId | None, limit: int
) -> Sequence[ParkedRun]:
    """List waiting runs, from the one after `after` on."""
    with driver_errors():
        rows = await connection.fetch(LIST_PARKED_RUNS, list(PARKED), after or "", limit)
    return [ParkedRun(**{**dict(row), "status": RunStatus(row["status"])}) for row in rows]


def _workflow(row: asyncpg.Record) -> WorkflowRow:
    return WorkflowRow(**{**dict(row), "description": read_description(row["description"] or "{}")})
