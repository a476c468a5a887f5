"""Read runs for people: lists and single ones, with their states.

Nothing here takes a lock. Times are milliseconds since 1970 by the database's clock, `now_ms` included, so that what is
computed from them (how stale a heartbeat is, how long somebody waits) never mixes two clocks.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import asyncpg

from smithers.defaults import HEARTBEAT_LIMIT_S
from smithers.ids import NodeId, RunId
from smithers.states import RunStatus
from smithers.store.connections import driver_errors
from smithers.store.patterns import fill


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWait:
    """The first node that a waiting run waits for."""

    node_id: NodeId
    requested_ms: int | None  # an approval's
    due_ms: int | None  # a timer's, or the wait's time-out
    wait: str | None  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLife:
    """The data for a run's state."""

    run_id: RunId
    status: RunStatus
    owner_id: str | None
    heartbeat_ms: int | None  # the owner's
    is_stale: bool  # the owner has been silent for too long
    lost_heartbeat_ms: int | None  # of an owner that died, until another resumes the run
    wait: OpenWait | None
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run in a list."""

    life: RunLife
    parent_run_id: RunId | None
    workflow_name: str
    workflow_path: str
    workflow_hash: str
    created_at: datetime  # with the run id, the place in the list
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    cancel_requested_ms: int | None
    error: str | None
    config: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    """A run by itself; `input`, `output`, `error` and `summary` are JSON."""

    life: RunLife
    workflow_name: str
    workflow_hash: str
    started_ms: int | None
    finished_ms: int | None
    input: str
    output: str | None
    error: str | None
    summary: str | None  # node state → count
    last_seq: int  # of its events; -1: none is there yet


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """Where a page of the list begins: after this run."""

    created_at: datetime
    run_id: RunId


# The first node that a waiting run `r` waits for, as `n`; only if the status says that there is one. An open question is
# found among the run's questions, which are few (OFFSET: without statistics the index of all open questions would be read
# for each run instead); for the others all of the run's nodes are read. A task that is tried again later counts as a timer.
_OPEN_WAIT: Final = """LEFT JOIN LATERAL (
        SELECT w.node_id, w.wait, smithers.to_ms(w.due_at) AS due_ms, smithers.to_ms(w.requested_at) AS requested_ms
        FROM (
            SELECT o.created_at, o.node_id, o.iteration, o.wait, o.due_at, a.requested_at
            FROM (SELECT * FROM smithers.approvals p WHERE p.run_id = r.run_id OFFSET 0) a CROSS JOIN LATERAL (
                SELECT * FROM smithers.nodes t
                WHERE t.run_id = a.run_id AND t.node_id = a.node_id AND t.iteration = a.iteration LIMIT 1) o
            WHERE r.status = 'waiting-approval' AND a.status = 'requested' AND o.state = r.status
            UNION ALL
            SELECT o.created_at, o.node_id, o.iteration, o.wait, o.due_at, NULL
            FROM smithers.nodes o
            WHERE r.status IN ('waiting-event', 'waiting-timer') AND o.run_id = r.run_id AND (o.state = r.status
                OR r.status = 'waiting-timer' AND o.state = 'pending' AND o.due_at IS NOT NULL)) w
        ORDER BY w.created_at, w.node_id, w.iteration LIMIT 1
    ) n ON r.status IN ('waiting-approval', 'waiting-event', 'waiting-timer')"""

# -- name: list_runs
# One query for each filter, because each walks its own index backwards from the place: those of run_requests by
# created_at, alone or below workflow_name, and that of runs by status. Each further lookup is by a primary key. With both
# filters either walk may be the long one: see look_along. If both are long, the two are merged entry by entry: both
# tables have the same created_at for a run.
_LIST_RUNS: Final = """
    SELECT q.run_id, q.parent_run_id, q.workflow_name, q.workflow_path, q.source_hash, q.config, r.priority, q.created_at,
           smithers.to_ms(q.created_at) AS created_ms, smithers.to_ms(r.started_at) AS started_ms,
           smithers.to_ms(r.finished_at) AS finished_ms, smithers.to_ms(r.cancel_requested_at) AS cancel_requested_ms,
           r.error, r.status, r.owner_id::text, smithers.to_ms(w.heartbeat_at) AS heartbeat_ms,
           smithers.to_ms(r.lost_heartbeat_at) AS lost_heartbeat_ms,
           n.node_id, n.requested_ms, n.due_ms, n.wait, smithers.to_ms(smithers.clock()) AS now_ms
    FROM smithers.run_requests q
    JOIN smithers.runs r ON r.run_id = q.run_id
    LEFT JOIN smithers.workers w ON w.worker_id = r.owner_id
    {open_wait}
    WHERE {chosen}({walked}.created_at, {walked}.run_id) < ($1, $2::text)
    ORDER BY {walked}.created_at DESC, {walked}.run_id DESC
    LIMIT $3"""
_by_request = partial(fill, _LIST_RUNS, open_wait=_OPEN_WAIT, walked="q")
_by_status = partial(fill, _LIST_RUNS, open_wait=_OPEN_WAIT, walked="r")
LIST_RUNS: Final = _by_request(chosen="")
LIST_RUNS_OF_WORKFLOW: Final = _by_request(chosen="q.workflow_name = $4 AND ")
LIST_RUNS_IN_STATUS: Final = _by_status(chosen="r.status = $4 AND ")
_OF_BOTH: Final = "r.status = $4 AND q.workflow_name = $5 AND "
LIST_RUNS_OF_BOTH_BY_STATUS: Final = _by_status(chosen=_OF_BOTH)
LIST_RUNS_OF_BOTH_BY_WORKFLOW: Final = _by_request(chosen=_OF_BOTH)
LIST_RUNS_OF_BOTH: Final = _by_request(
    chosen="""q.run_id = ANY (ARRAY(
        SELECT s.run_id FROM smithers.runs s
        JOIN smithers.run_requests f ON f.created_at = s.created_at AND f.run_id = s.run_id
        WHERE s.status = $4 AND f.workflow_name = $5
            AND (s.created_at, s.run_id) < ($1, $2::text) AND (f.created_at, f.run_id) < ($1, $2::text)
        ORDER BY s.created_at DESC, s.run_id DESC LIMIT $3)) AND """
)

# -- name: look_along
# Whether a walk by one of two filters ends soon: only few further runs pass it, or enough of the next ones pass the
# other too. Statistics do not help: the runs of a workflow may all be old, and so may those in a status. If neither
# ends soon, the entries of both are read: 0.1 to 0.5 s for 200,000 of which none is among the workflow's 200,000, where
# looking each of them up took 3 s.
# LIMIT 1: a step of the key for each; a join would be planned as a scan.
_LOOK_ALONG: Final = """
    WITH walked AS MATERIALIZED (
        SELECT w.run_id FROM smithers.{walked} AS w WHERE w.{chosen} AND (w.created_at, w.run_id) < ($1, $2::text)
        ORDER BY w.created_at DESC, w.run_id DESC LIMIT $6)
    SELECT (SELECT count(*) FROM walked) < $6 OR $3 = (SELECT count(*) FROM (
        SELECT FROM walked CROSS JOIN LATERAL (
            SELECT FROM smithers.{other} AS b WHERE b.run_id = walked.run_id AND b.{rest} LIMIT 1) AS m LIMIT $3) AS found)"""
_IN_STATUS: Final = "status = $4"
_OF_WORKFLOW: Final = "workflow_name = $5"
LOOK_ALONG_STATUS: Final = fill(
    _LOOK_ALONG, walked="runs", chosen=_IN_STATUS, other="run_requests", rest=_OF_WORKFLOW
)
LOOK_ALONG_WORKFLOW: Final = fill(
    _LOOK_ALONG, walked="run_requests", chosen=_OF_WORKFLOW, other="runs", rest=_IN_STATUS
)
LOOKS: Final = (500, 8_000)  # runs: a few milliseconds; some tens

_NEWEST: Final = RunPlace(created_at=datetime.max.replace(tzinfo=UTC), run_id=RunId(""))

# -- name: find_run
# The output is that of the node that the run's end named. Planning costs ten times as much as executing: not for a
# hot connection, which plans each time.
FIND_RUN: Final = fill(
    """
    SELECT r.run_id, r.status, r.owner_id::text, q.workflow_name, q.source_hash, q.input, r.error, r.last_seq,
           smithers.to_ms(r.started_at) AS started_ms, smithers.to_ms(r.finished_at) AS finished_ms,
           smithers.to_ms(w.heartbeat_at) AS heartbeat_ms,
           smithers.to_ms(r.lost_heartbeat_at) AS lost_heartbeat_ms,
           n.node_id, n.requested_ms, n.due_ms, n.wait, o.output,
           (SELECT json_object_agg(c.state, c.count)::text FROM (
               SELECT s.state, count(*) AS count FROM smithers.nodes s WHERE s.run_id = r.run_id GROUP BY s.state) c
           ) AS summary,
           smithers.to_ms(smithers.clock()) AS now_ms
    FROM smithers.runs r
    JOIN smithers.run_requests q ON q.run_id = r.run_id
    LEFT JOIN smithers.workers w ON w.worker_id = r.owner_id
    LEFT JOIN smithers.nodes o
        ON o.run_id = r.run_id AND o.node_id = r.output_node_id AND o.iteration = r.output_iteration
    {open_wait}
    WHERE r.run_id = $1""",
    open_wait=_OPEN_WAIT,
)

# -- name: run_exists
RUN_EXISTS: Final = "SELECT EXISTS (SELECT 1 FROM smithers.runs WHERE run_id = $1)"

# -- name: find_newest
# A run that continues as another names it in its last event: nothing is written to it after that.
FIND_NEWEST: Final = """
    WITH RECURSIVE chain (run_id, place) AS (
        SELECT $1::text, 0
        UNION ALL
        SELECT e.payload::json ->> 'newRunId', c.place + 1
        FROM chain c
        JOIN smithers.runs r ON r.run_id = c.run_id AND r.status = 'continued'
        JOIN smithers.events e ON e.run_id = r.run_id AND e.seq = r.last_seq)
    SELECT run_id FROM chain ORDER BY place DESC LIMIT 1"""

# -- name: find_queue
FIND_QUEUE: Final = "SELECT queue FROM smithers.runs WHERE run_id = $1"


async def list_runs(
    pool: asyncpg.Pool,
    *,
    status: RunStatus | None,
    workflow_name: str | None,
    after: RunPlace | None,
    limit: int,
) -> list[RunRow]:
    """List runs, newest first, from a place on."""
    place = after or _NEWEST
    chosen = (value for value in (status, workflow_name) if value is not None)
    values = (place.created_at, place.run_id, limit, *chosen)
    match status, workflow_name:
        case None, None:
            query = LIST_RUNS
        case None, _:
            query = LIST_RUNS_OF_WORKFLOW
        case _, None:
            query = LIST_RUNS_IN_STATUS
        case _:
            query = await _choose_walk(pool, *values)
    with driver_errors():
        rows = await pool.fetch(query, *values)
    return [_run_row(row) for row in rows]


async def _choose_walk(pool: asyncpg.Pool, *values: object) -> str:
    """Return the query with the shorter walk for both filters, judging by a few probes."""
    with driver_errors():
        for run_count in LOOKS:
            if await pool.fetchval(LOOK_ALONG_STATUS, *values, run_count):
                return LIST_RUNS_OF_BOTH_BY_STATUS
            if await pool.fetchval(LOOK_ALONG_WORKFLOW, *values, run_count):
                return LIST_RUNS_OF_BOTH_BY_WORKFLOW
    return LIST_RUNS_OF_BOTH


async def find_run(pool: asyncpg.Pool, run_id: RunId) -> RunDetail | None:
    """Read one run by itself."""
    with driver_errors():
        row = await pool.fetchrow(FIND_RUN, run_id)
    if row is None:
        return None
    return RunDetail(
        life=_life(row),
        workflow_name=row["workflow_name"],
        workflow_hash=row["source_hash"],
        started_ms=row["started_ms"],
        finished_ms=row["finished_ms"],
        input=row["input"],
        output=row["output"],
        error=row["error"],
        summary=row["summary"],
        last_seq=row["last_seq"],
    )


async def run_exists(pool: asyncpg.Pool, run_id: RunId) -> bool:
    """Say whether there is such a run."""
    with driver_errors():
        return bool(await pool.fetchval(RUN_EXISTS, run_id))


async def find_newest(connection: asyncpg.Connection | asyncpg.Pool, run_id: RunId) -> RunId:
    """Return a run's newest continuation; the run itself if there is none, or no such run."""
    with driver_errors():
        return RunId(await connection.fetchval(FIND_NEWEST, run_id))


async def find_queue(connection: asyncpg.Connection, run_id: RunId) -> str | None:
    """Return the queue that a run is claimed from; None where there is no such run."""
    with driver_errors():
        queue: str | None = await connection.fetchval(FIND_QUEUE, run_id)
    return queue


def _run_row(row: asyncpg.Record) -> RunRow:
    return RunRow(
        life=_life(row),
        parent_run_id=row["parent_run_id"],
        workflow_name=row["workflow_name"],
        workflow_path=row["workflow_path"],
        workflow_hash=row["source_hash"],
        created_at=row["created_at"],
        created_ms=row["created_ms"],
        started_ms=row["started_ms"],
        finished_ms=row["finished_ms"],
        cancel_requested_ms=row["cancel_requested_ms"],
        error=row["error"],
        config=row["config"],
        priority=row["priority"],
    )


def _life(row: asyncpg.Record) -> RunLife:
    wait = None
    if row["node_id"] is not None:
        wait = OpenWait(
            node_id=row["node_id"],
            requested_ms=row["requested_ms"],
            due_ms=row["due_ms"],
            wait=row["wait"],
        )
    heartbeat_ms, now_ms = row["heartbeat_ms"], row["now_ms"]
    return RunLife(
        run_id=row["run_id"],
        status=RunStatus(row["status"]),
        owner_id=row["owner_id"],
        heartbeat_ms=heartbeat_ms,
        is_stale=heartbeat_ms is not None and now_ms - heartbeat_ms > HEARTBEAT_LIMIT_S * 1000,
        lost_heartbeat_ms=row["lost_heartbeat_ms"],
        wait=wait,
        now_ms=now_ms,
    )
