"""Read a run's details: its nodes with their attempts, its frames, the open approvals."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

import asyncpg

from smithers.ids import NodeId, RunId
from smithers.store.connections import driver_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One try at a node that has ended."""

    attempt: int
    state: str
    started_ms: int | None
    finished_ms: int
    error: str | None  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node; `output`, `error` and `wait` are JSON."""

    node_id: NodeId
    iteration: int
    kind: str
    label: str | None
    state: str
    attempt: int
    created_at: datetime  # with the node's key, the place in the list
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    due_ms: int | None
    wait: str | None
    output: str | None  # None also where it is larger than was asked for
    output_bytes: int | None
    error: str | None
    attempts: tuple[AttemptRow, ...]  # the newest hundred, oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlace:
    """Where a page of the nodes begins: after this one."""

    created_at: datetime
    node_id: NodeId
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRow:
    """A committed render as it is stored: a keyframe holds the whole tree, a delta what changed."""

    frame_no: int
    created_ms: int
    xml_hash: str
    encoding: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalPlace:
    """Where a page of the open approvals begins: after this one."""

    requested_at: datetime
    run_id: RunId
    node_id: NodeId
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRow:
    """An open question."""

    run_id: RunId
    node_id: NodeId
    iteration: int
    workflow_name: str
    run_status: str
    label: str | None
    request: str  # JSON
    requested_at: datetime
    requested_ms: int
    waiting_ms: int


# -- name: list_nodes
# One run's nodes in the order of their creation; a page begins after a place. It ends before its texts would
# exceed a page's size, but never before its first node; a text's length is known without fetching it.
LIST_NODES: Final = """
    SELECT n.node_id, n.iteration, n.kind, n.label, n.state, n.attempt, n.created_at,
           smithers.to_ms(n.created_at) AS created_ms, smithers.to_ms(n.started_at) AS started_ms,
           smithers.to_ms(n.finished_at) AS finished_ms, smithers.to_ms(n.due_at) AS due_ms, n.wait, n.error,
           octet_length(n.output) AS output_bytes, CASE WHEN octet_length(n.output) <= $2 THEN n.output END AS output,
           n.found_count
    FROM (
        SELECT f.*, count(*) OVER () AS found_count, row_number() OVER so_far AS number, sum(
            coalesce(octet_length(f.wait), 0) + coalesce(octet_length(f.error), 0)
            + CASE WHEN octet_length(f.output) <= $2 THEN octet_length(f.output) ELSE 0 END
            + (SELECT coalesce(sum(octet_length(a.error)), 0) FROM (
                SELECT a.error FROM smithers.attempts a
                WHERE a.run_id = f.run_id AND a.node_id = f.node_id AND a.iteration = f.iteration
                ORDER BY a.attempt DESC LIMIT 100) a)
        ) OVER so_far AS byte_count
        FROM (
            SELECT * FROM smithers.nodes n
            WHERE n.run_id = $1 AND ($3::timestamptz IS NULL
                OR (n.created_at, n.node_id, n.iteration) > ($3, $4::text, $5::integer))
            ORDER BY n.created_at, n.node_id, n.iteration
            LIMIT $6) f
        WINDOW so_far AS (ORDER BY f.created_at, f.node_id, f.iteration)
    ) n
    WHERE n.byte_count <= $7 OR n.number = 1
    ORDER BY n.created_at, n.node_id, n.iteration"""

# -- name: find_nodes
# Two spellings of one id in a path: raw and decoded; the raw one first.
FIND_NODES: Final = """
    SELECT n.node_id, n.iteration, n.kind, n.label, n.state, n.attempt, n.created_at,
           smithers.to_ms(n.created_at) AS created_ms, smithers.to_ms(n.started_at) AS started_ms,
           smithers.to_ms(n.finished_at) AS finished_ms, smithers.to_ms(n.due_at) AS due_ms, n.wait, n.error,
           octet_length(n.output) AS output_bytes, CASE WHEN octet_length(n.output) <= $2 THEN n.output END AS output
    FROM smithers.nodes n
    WHERE n.run_id = $1 AND n.node_id = ANY ($3::text[]) AND ($4::integer IS NULL OR n.iteration = $4)
    ORDER BY array_position($3::text[], n.node_id), n.iteration DESC
    LIMIT 1"""

# -- name: list_attempts
# The newest hundred of each node, since a node may be retried without limit. list_nodes counts the same ones.
LIST_ATTEMPTS: Final = """
    SELECT a.node_id, a.iteration, a.attempt, a.state, smithers.to_ms(a.started_at) AS started_ms,
           smithers.to_ms(a.finished_at) AS finished_ms, a.error
    FROM unnest($2::text[], $3::text[]::integer[]) AS n(node_id, iteration)
    CROSS JOIN LATERAL (
        SELECT * FROM smithers.attempts a
        WHERE a.run_id = $1 AND a.node_id = n.node_id AND a.iteration = n.iteration
        ORDER BY a.attempt DESC LIMIT 100) a
    ORDER BY a.node_id, a.iteration, a.attempt"""

# -- name: list_frames
# The page, and what must be read before it: everything from the last keyframe at or below its lowest frame. It ends where
# its rows would be more than a page holds, but never before its first frame.
LIST_FRAMES: Final = """
    WITH page AS MATERIALIZED (
        SELECT min(p.frame_no) AS low, max(p.frame_no) AS high, max(p.found_count) AS found_count FROM (
            SELECT f.frame_no, count(*) OVER () AS found_count, row_number() OVER so_far AS number,
                sum(f.byte_count) OVER so_far AS byte_count
            FROM (
                (SELECT f.frame_no, octet_length(f.body) AS byte_count FROM smithers.frames f
                 WHERE $4 AND f.run_id = $1 AND f.frame_no > $2 AND f.frame_no < $3 ORDER BY f.frame_no LIMIT $5)
                UNION ALL
                (SELECT f.frame_no, octet_length(f.body) FROM smithers.frames f
                 WHERE NOT $4 AND f.run_id = $1 AND f.frame_no > $2 AND f.frame_no < $3 ORDER BY f.frame_no DESC LIMIT $5)
            ) f
            WINDOW so_far AS (ORDER BY CASE WHEN $4 THEN f.frame_no ELSE -f.frame_no END)
        ) p
        WHERE p.byte_count <= $6 OR p.number = 1)
    SELECT f.frame_no, smithers.to_ms(f.created_at) AS created_ms, f.xml_hash, f.encoding, f.body,
           f.frame_no >= page.low AS is_in_page, page.found_count
    FROM page JOIN smithers.frames f ON f.run_id = $1 AND f.frame_no <= page.high AND f.frame_no >= (
        SELECT max(k.frame_no) FROM smithers.frames k
        WHERE k.run_id = $1 AND k.encoding = 'keyframe' AND k.frame_no <= page.low)
    ORDER BY f.frame_no"""

# -- name: list_approvals
# Walks approvals_open_idx; everything else is by a primary key, after the page is cut: a condition on the run within the walk
# reads all open questions where the planner knows no statistics yet. A page ends before its requests would exceed its size,
# but never before its first approval. What a run asked before its cancel was accepted is about to be withdrawn, and cannot be
# decided any more (decide_approval_v5); nor can what a run that has ended left open.
LIST_APPROVALS: Final = """
    SELECT a.run_id, a.node_id, a.iteration, q.workflow_name, r.status AS run_status, n.label, a.request,
           a.requested_at, smithers.to_ms(a.requested_at) AS requested_ms,
           smithers.to_ms(smithers.clock()) - smithers.to_ms(a.requested_at) AS waiting_ms, a.found_count,
           r.cancel_requested_at >= a.requested_at
               OR r.status IN ('finished', 'failed', 'cancelled', 'continued') AS is_withdrawn
    FROM (
        SELECT f.*, count(*) OVER () AS found_count, row_number() OVER so_far AS number,
            sum(octet_length(f.request)) OVER so_far AS byte_count
        FROM (
            SELECT * FROM smithers.approvals a
            WHERE a.status = 'requested'
                AND (a.requested_at, a.run_id, a.node_id, a.iteration) > ($1, $2::text, $3::text, $4::integer)
            ORDER BY a.requested_at, a.run_id, a.node_id, a.iteration
            LIMIT $5) f
        WINDOW so_far AS (ORDER BY f.requested_at, f.run_id, f.node_id, f.iteration)
    ) a
    JOIN smithers.runs r ON r.run_id = a.run_id
    JOIN smithers.run_requests q ON q.run_id = a.run_id
    LEFT JOIN smithers.nodes n ON n.run_id = a.run_id AND n.node_id = a.node_id AND n.iteration = a.iteration
    WHERE a.byte_count <= $6 OR a.number = 1
    ORDER BY a.requested_at, a.run_id, a.node_id, a.iteration"""

_OLDEST: Final = ApprovalPlace(
    requested_at=datetime.min.replace(tzinfo=UTC),
    run_id=RunId(""),
    node_id=NodeId(""),
    iteration=0,
)


async def list_nodes(
    pool: asyncpg.Pool,
    run_id: RunId,
    *,
    after: NodePlace | None,
    limit: int,
    max_bytes: int,
    page_bytes: int,
) -> tuple[list[NodeRow], bool]:
    """List a run's nodes with their attempts, and say whether there may be more.

    Outputs larger than `max_bytes` are left out. There are at most `limit` nodes, and one or more whose outputs, errors
    and waits are `page_bytes` together.
    """
    with driver_errors():
        async with pool.acquire() as connection:
            rows = await connection.fetch(
                LIST_NODES,
                run_id,
                max_bytes,
                after.created_at if after else None,
                after.node_id if after else None,
                after.iteration if after else None,
                limit,
                page_bytes,
            )
            nodes = await _with_attempts(connection, run_id, rows)
    found_count = rows[0]["found_count"] if rows else 0
    return nodes, found_count == limit or len(nodes) < found_count


async def find_node(
    pool: asyncpg.Pool,
    run_id: RunId,
    node_ids: Sequence[NodeId],
    *,
    iteration: int | None,
    max_bytes: int,
) -> NodeRow | None:
    """Read the node of the first of these ids that exists; by default in its newest iteration."""
    with driver_errors():
        async with pool.acquire() as connection:
            rows = await connection.fetch(FIND_NODES, run_id, max_bytes, node_ids, iteration)
            nodes = await _with_attempts(connection, run_id, rows)
    return nodes[0] if nodes else None


async def list_frames(
    pool: asyncpg.Pool,
    run_id: RunId,
    *,
    above: int,
    below: int,
    is_ascending: bool,
    limit: int,
    page_bytes: int,
) -> tuple[list[FrameRow], int, bool]:
    """List frames, oldest first; how many of the first ones are only the base of the page; whether there may be more.

    The page is at most `limit` frames between `above` and `below`, the oldest of them or the newest, and one or more whose
    rows are `page_bytes` together.
    """
    with driver_errors():
        rows = await pool.fetch(LIST_FRAMES, run_id, above, below, is_ascending, limit, page_bytes)
    frames = [
        FrameRow(
            frame_no=row["frame_no"],
            created_ms=row["created_ms"],
            xml_hash=row["xml_hash"],
            encoding=row["encoding"],
            body=row["body"],
        )
        for row in rows
    ]
    lead_count = sum(not row["is_in_page"] for row in rows)
    found_count = rows[0]["found_count"] if rows else 0
    return frames, lead_count, found_count == limit or len(rows) - lead_count < found_count


async def list_approvals(
    pool: asyncpg.Pool, *, after: ApprovalPlace | None, limit: int, page_bytes: int
) -> tuple[list[ApprovalRow], ApprovalPlace | None]:
    """List the open approvals of all runs, oldest request first, from a place on; say where the next page begins, if any.

    There are at most `limit`, and as many as have `page_bytes` of requests together; less those of runs that are being
    cancelled or have ended.
    """
    place = after or _OLDEST
    with driver_errors():
        rows = await pool.fetch(
            LIST_APPROVALS,
            place.requested_at,
            place.run_id,
            place.node_id,
            place.iteration,
            limit,
            page_bytes,
        )
    found_count = rows[0]["found_count"] if rows else 0
    found = [ApprovalRow(**{name: row[name] for name in ApprovalRow.__slots__}) for row in rows]
    has_more = found_count == limit or len(found) < found_count
    open_ones = [one for one, row in zip(found, rows, strict=True) if not row["is_withdrawn"]]
    return open_ones, _place_of(found[-1]) if has_more else None


def _place_of(row: ApprovalRow) -> ApprovalPlace:
    return ApprovalPlace(
        requested_at=row.requested_at,
        run_id=row.run_id,
        node_id=row.node_id,
        iteration=row.iteration,
    )


async def _with_attempts(
    connection: asyncpg.pool.PoolConnectionProxy | asyncpg.Connection,
    run_id: RunId,
    rows: Sequence[asyncpg.Record],
) -> list[NodeRow]:
    attempts: dict[tuple[str, int], tuple[AttemptRow, ...]] = {}
    if rows:
        found = await connection.fetch(
            LIST_ATTEMPTS,
            run_id,
            [row["node_id"] for row in rows],
            [str(row["iteration"]) for row in rows],
        )
        for key, group in groupby(found, key=lambda row: (row["node_id"], row["iteration"])):
            attempts[key] = tuple(
                AttemptRow(
                    attempt=row["attempt"],
                    state=row["state"],
                    started_ms=row["started_ms"],
                    finished_ms=row["finished_ms"],
                    error=row["error"],
                )
                for row in group
            )
    return [
        NodeRow(
            **{name: row[name] for name in NodeRow.__slots__ if name != "attempts"},
            attempts=attempts.get((row["node_id"], row["iteration"]), ()),
        )
        for row in rows
    ]
