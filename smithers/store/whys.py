"""Read why a run does not progress: its row, its open nodes, and whether any worker could claim it."""

from dataclasses import dataclass
from typing import Final

import asyncpg
import orjson

from smithers.ids import RunId
from smithers.states import NodeState, RunStatus
from smithers.store.connections import driver_errors

MAX_OPEN_NODES: Final = 100

# -- name: read_why
# One snapshot of a run, of its nodes that are open (bounded: a wide tree would say the same thing often), and of the
# workers that live and claim from its queue. A node is open while it runs, waits, or backs off; one whose question is
# decided waits for nobody, though its run has not taken that in yet.
READ_WHY: Final = """
SELECT r.status, concat_ws(':', q.workflow_path, q.workflow_export) AS workflow_reference,
    r.queue, r.crash_count, r.owner_id IS NOT NULL AS is_owned,
    smithers.to_ms(r.due_at) AS due_ms, smithers.to_ms(r.cancel_requested_at) AS cancel_requested_ms,
    smithers.to_ms(w.heartbeat_at) AS heartbeat_ms, r.error, r.database, smithers.to_ms(smithers.clock()) AS now_ms,
    (SELECT count(*) FROM smithers.workers AS o WHERE o.dead_at IS NULL AND r.queue = ANY (o.queues)) AS worker_count,
    (SELECT coalesce(json_agg(json_build_array(n.node_id, n.iteration, n.state, n.attempt,
            smithers.to_ms(n.started_at), smithers.to_ms(n.due_at), n.wait) ORDER BY n.node_id, n.iteration), '[]')
        FROM (SELECT * FROM smithers.nodes AS a WHERE a.run_id = r.run_id AND (
                a.state IN ('in-progress', 'waiting-event', 'waiting-timer')
                OR (a.state = 'pending' AND a.due_at IS NOT NULL)
                OR (a.state = 'waiting-approval' AND NOT EXISTS (SELECT FROM smithers.approvals AS p
                    WHERE p.run_id = a.run_id AND p.node_id = a.node_id AND p.iteration = a.iteration
                        AND p.status IN ('approved', 'denied')))) LIMIT $2) AS n)::text AS nodes
FROM smithers.runs AS r JOIN smithers.run_requests AS q USING (run_id)
    LEFT JOIN smithers.workers AS w ON w.worker_id = r.owner_id
WHERE r.run_id = $1
"""


@dataclass(frozen=True, slots=True)
class OpenNode:
    """A node that runs, waits or backs off."""

    node_id: str
    iteration: int
    state: NodeState
    attempt: int
    since_ms: int | None
    due_ms: int | None
    wait: str | None  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyRow:
    """The data that explains why a run does not progress."""

    status: RunStatus
    workflow_reference: str  # as a start names it: path.py, or path.py:name
    queue: str
    crash_count: int
    is_owned: bool
    due_ms: int | None
    cancel_requested_ms: int | None
    heartbeat_ms: int | None  # its owner's
    now_ms: int
    worker_count: int  # that live and claim from its queue
    error: str | None  # JSON
    database: str | None  # where the run lives, if this row is only its mirror
    nodes: tuple[OpenNode, ...]


async def find_why(pool: asyncpg.Pool, run_id: RunId) -> WhyRow | None:
    """Read why a run does not progress; None if there is no such run."""
    with driver_errors():
        row = await pool.fetchrow(READ_WHY, run_id, MAX_OPEN_NODES)
    if row is None:
        return None
    nodes = tuple(
        OpenNode(node_id, iteration, NodeState(state), *rest)
        for node_id, iteration, state, *rest in orjson.loads(row["nodes"])
    )
    return WhyRow(**{**dict(row), "status": RunStatus(row["status"]), "nodes": nodes})
