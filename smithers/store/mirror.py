"""Copy what happens in a workflow's own database to the server's, so that lists show it: in order, each event once.

A run's position is the last event that its mirror has; it is written with the rows that it stands for, in one transaction,
so that a copy that was killed goes on where it stopped. One mirror at a time: the session that writes holds a lock for as
long as it lives, and what it writes dies with it; one that says nothing any more is ended by the server. The rows of a
copy come from one snapshot. Those that may change are replaced whole, by what their new events name; after a resume, which
names no nodes, and at its end all of the run's are.

Rows travel as JSON and are read by the names of their columns: the two databases may be a version apart.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import orjson

from smithers.events import EventType
from smithers.ids import RunId
from smithers.store.connections import connect_hot, driver_errors, transaction
from smithers.store.descriptions import keep_source
from smithers.store.own_databases import list_abandoned
from smithers.store.starts import start_runs

PAGE_EVENTS: Final = 200
MAX_STARTS: Final = 20
ABANDONED_S: Final = 60.0  # longer than any call that a living gateway may still wait for
LOCK_AGAIN_S: Final = 1.0
STEP_S: Final = 25.0  # for one copy, or one look
# For the session with the lock to say nothing, e.g. because its host is gone: longer than two steps, each of which uses it.
IDLE_S: Final = 60.0
NOWHERE: Final = (-1, 0)  # the position and the era of a run that has no mirror yet

# -- name: lock_mirror
LOCK_MIRROR: Final = "SELECT pg_try_advisory_lock(hashtextextended('smithers mirror of ' || $1, 0))"

# -- name: page_runs
# A walk over all runs by their key: what finds the copies that no hint asked for.
PAGE_RUNS: Final = """
    SELECT run_id, last_seq FROM smithers.runs WHERE run_id > $1 AND database IS NULL ORDER BY run_id LIMIT $2"""

# -- name: find_behind
FIND_BEHIND: Final = """
    SELECT k.run_id FROM unnest($2::text[], $3::bigint[]) AS k (run_id, last_seq)
    LEFT JOIN smithers.runs AS r ON r.run_id = k.run_id
    LEFT JOIN smithers.tombstones AS t ON t.run_id = k.run_id  -- retention took it: it is not copied anew
    WHERE (r.run_id IS NULL AND t.run_id IS NULL) OR (r.database = $1 AND r.mirrored_seq < k.last_seq)"""

# -- name: read_positions
READ_POSITIONS: Final = """
    SELECT run_id, mirrored_seq, era FROM smithers.runs WHERE run_id = ANY ($2::text[]) AND database = $1"""

# -- name: read_runs
READ_RUNS: Final = """
    SELECT r.run_id, r.last_seq, r.era, r.finished_at IS NOT NULL AS is_over, to_json(r)::text AS row,
           smithers.to_ms(smithers.clock()) AS now_ms
    FROM unnest($1::text[], $2::bigint[]) AS c (run_id, seq) JOIN smithers.runs AS r ON r.run_id = c.run_id
    WHERE r.last_seq > c.seq AND r.database IS NULL"""

# -- name: read_events
READ_EVENTS: Final = """
    SELECT e.run_id, e.seq, e.epoch, e.payload
    FROM unnest($1::text[], $2::bigint[]) AS c (run_id, seq) CROSS JOIN LATERAL (
        SELECT v.run_id, v.seq, v.epoch, v.payload FROM smithers.events AS v
        WHERE v.run_id = c.run_id AND v.seq > c.seq ORDER BY v.seq LIMIT $3) AS e
    ORDER BY e.run_id, e.seq"""

# -- name: read_requests
READ_REQUESTS: Final = "SELECT to_json(q)::text AS row FROM smithers.run_requests AS q WHERE q.run_id = ANY ($1::text[])"

# -- name: read_nodes
# Of some runs those that are named, of others all; the same for what they ask.
READ_NODES: Final = """
    SELECT to_json(n)::text AS row FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (run_id, node_id, iteration)
    JOIN smithers.nodes AS n ON n.run_id = k.run_id AND n.node_id = k.node_id AND n.iteration = k.iteration
    UNION ALL
    SELECT to_json(n)::text FROM smithers.nodes AS n WHERE n.run_id = ANY ($4::text[])"""

# -- name: read_approvals
READ_APPROVALS: Final = READ_NODES.replace("smithers.nodes", "smithers.approvals")

# -- name: read_frames
READ_FRAMES: Final = """
    SELECT to_json(f)::text AS row FROM unnest($1::text[], $2::integer[]) AS k (run_id, frame_no)
    JOIN smithers.frames AS f ON f.run_id = k.run_id AND f.frame_no = k.frame_no"""

# -- name: replace_runs
# An owner, its heartbeat and a due time are of the other database: here nobody claims the run. While there is more to
# copy it has not ended. An id that belongs to a run of this database, or of a third, is left alone, and not returned.
DELETE_RUNS: Final = "DELETE FROM smithers.runs WHERE run_id = ANY ($2::text[]) AND database = $1"
INSERT_RUNS: Final = """
    INSERT INTO smithers.runs SELECT r.*
    FROM unnest($2::text[], $3::bigint[], $4::boolean[]) AS c (row, end_seq, is_partial)
    CROSS JOIN LATERAL jsonb_populate_record(NULL::smithers.runs, c.row::jsonb || jsonb_build_object(
            'database', $1::text, 'mirrored_seq', c.end_seq, 'last_seq', c.end_seq, 'owner_id', NULL, 'due_at', NULL,
            'lost_heartbeat_at', NULL)
        || CASE WHEN c.is_partial THEN '{"status": "running", "finished_at": null, "error": null}' ELSE '{}' END::jsonb
    ) AS r
    ON CONFLICT DO NOTHING RETURNING run_id"""

# -- name: insert_events
# Without ON CONFLICT: an event that is there already is a second mirror, whose whole copy is refused.
INSERT_EVENTS: Final = """
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[])"""

# -- name: replace_requests
DELETE_REQUESTS: Final = "DELETE FROM smithers.run_requests WHERE run_id = ANY ($1::text[])"
INSERT_REQUESTS: Final = """
    INSERT INTO smithers.run_requests SELECT q.* FROM unnest($1::text[]) AS c (row)
    CROSS JOIN LATERAL json_populate_record(NULL::smithers.run_requests, c.row::json) AS q
    WHERE q.run_id = ANY ($2::text[])"""

# -- name: replace_nodes
DELETE_NODES: Final = """
    DELETE FROM smithers.nodes AS n
    USING unnest($1::text[]) AS c (row), json_populate_record(NULL::smithers.nodes, c.row::json) AS k
    WHERE n.run_id = k.run_id AND n.node_id = k.node_id AND n.iteration = k.iteration AND n.run_id = ANY ($2::text[])"""
INSERT_NODES: Final = INSERT_REQUESTS.replace("run_requests", "nodes")

# -- name: replace_approvals
DELETE_APPROVALS: Final = DELETE_NODES.replace("smithers.nodes", "smithers.approvals")
INSERT_APPROVALS: Final = INSERT_REQUESTS.replace("run_requests", "approvals")

# -- name: insert_frames
INSERT_FRAMES: Final = INSERT_REQUESTS.replace("run_requests", "frames")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What one copy did."""

    event_count: int
    lag_ms: int  # how old the oldest of them was, by the other database's clock
    unfinished: frozenset[RunId]  # runs with more events than fit


@dataclass(slots=True)
class _Changes:
    """What is to be copied of some runs, from one snapshot."""

    runs: list[asyncpg.Record] = field(default_factory=list)
    events: list[asyncpg.Record] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)  # by run: the last event of this copy
    requests: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    approvals: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    oldest_ms: int = 0


@asynccontextmanager
async def _step() -> AsyncIterator[None]:
    with driver_errors():
        async with asyncio.timeout(STEP_S):
            yield


class MirrorStore:
    """Both databases as a mirror uses them: reads in one, writes in the other."""

    def __init__(self, own: asyncpg.Connection, home: asyncpg.Connection, name: str) -> None:
        self._own = own
        self._home = home
        self._name = name

    async def copy(self, run_ids: Sequence[RunId]) -> Copied:
        """Copy what is new of some runs, a page of events of each at the most."""
        async with _step():
            rows = await self._home.fetch(READ_POSITIONS, self._name, run_ids)
            positions = {row["run_id"]: (row["mirrored_seq"], row["era"]) for row in rows}
            changes = await self._read(run_ids, positions)
            if not changes.runs:
                return Copied(event_count=0, lag_ms=0, unfinished=frozenset())
            moved = await self._write(changes)
        return Copied(
            event_count=sum(event["run_id"] in moved for event in changes.events),
            lag_ms=max(changes.runs[0]["now_ms"] - changes.oldest_ms, 0),
            unfinished=frozenset(
                RunId(run["run_id"])
                for run in changes.runs
                if run["run_id"] in moved and changes.ends[run["run_id"]] < run["last_seq"]
            ),
        )

    async def find_behind(self, after: RunId, limit: int) -> tuple[list[RunId], RunId | None]:
        """Look at the next runs by id; return those with more events than their mirrors, and where to go on."""
        async with _step():
            page = await self._own.fetch(PAGE_RUNS, after, limit)
            behind = await self._home.fetch(
                FIND_BEHIND,
                self._name,
                [row["run_id"] for row in page],
                [row["last_seq"] for row in page],
            )
        last = RunId(page[-1]["run_id"]) if len(page) == limit else None
        return [RunId(row["run_id"]) for row in behind], last

    async def finish_starts(self) -> int:
        """Start the runs whose gateway died, or was refused, between reservation and start; return how many."""
        async with _step():
            abandoned = await list_abandoned(
                self._home, self._name, older_than_s=ABANDONED_S, limit=MAX_STARTS
            )
            if not abandoned:
                return 0
            for each in abandoned:
                await keep_source(self._own, each.start.source_hash, each.bundle)
            outcomes = await start_runs(self._own, [each.start for each in abandoned])
        return sum(outcome is True for outcome in outcomes)

    async def _read(
        self, run_ids: Sequence[RunId], positions: dict[str, tuple[int, int]]
    ) -> _Changes:
        seqs = [positions.get(run_id, NOWHERE)[0] for run_id in run_ids]
        changes = _Changes()
        async with transaction(self._own, isolation="repeatable_read", readonly=True):
            changes.runs = await self._own.fetch(READ_RUNS, run_ids, seqs)
            if not changes.runs:
                return changes
            changes.events = await self._own.fetch(READ_EVENTS, run_ids, seqs, PAGE_EVENTS)
            named = _Named(changes.events)
            changes.oldest_ms = named.oldest_ms
            changes.ends = named.ends
            whole = [
                run["run_id"]
                for run in changes.runs
                if run["run_id"] in named.reloaded
                or positions.get(run["run_id"], NOWHERE)[0] == -1
                or positions[run["run_id"]][1] != run["era"]
                or (run["is_over"] and named.ends[run["run_id"]] == run["last_seq"])
            ]
            keys = list(zip(*(key for key in named.nodes if key[0] not in whole), strict=True))
            run_keys, node_ids, iterations = keys or ((), (), ())
            changes.requests = await self._fetch_rows(READ_REQUESTS, whole)
            changes.nodes = await self._fetch_rows(
                READ_NODES, run_keys, node_ids, iterations, whole
            )
            changes.approvals = await self._fetch_rows(
                READ_APPROVALS, run_keys, node_ids, iterations, whole
            )
            frames = list(zip(*named.frames, strict=True)) or ((), ())
            changes.frames = await self._fetch_rows(READ_FRAMES, *frames)
        return changes

    async def _fetch_rows(self, query: str, *values: Any) -> list[str]:
        return [row["row"] for row in await self._own.fetch(query, *values)]

    async def _write(self, changes: _Changes) -> frozenset[str]:
        """Write a copy; return the runs that it was written of."""
        run_ids = [run["run_id"] for run in changes.runs]
        ends = [changes.ends[run_id] for run_id in run_ids]
        partial = [end < run["last_seq"] for run, end in zip(changes.runs, ends, strict=True)]
        async with transaction(self._home):
            await self._home.execute(DELETE_RUNS, self._name, run_ids)
            rows = await self._home.fetch(
                INSERT_RUNS, self._name, [run["row"] for run in changes.runs], ends, partial
            )
            moved = frozenset(row["run_id"] for row in rows)
            events = [event for event in changes.events if event["run_id"] in moved]
            await self._home.execute(
                INSERT_EVENTS,
                *(
                    [event[part] for event in events]
                    for part in ("run_id", "seq", "epoch", "payload")
                ),
            )
            whole = [orjson.loads(row)["run_id"] for row in changes.requests]
            await self._home.execute(DELETE_REQUESTS, [each for each in whole if each in moved])
            await self._home.execute(INSERT_REQUESTS, changes.requests, moved)
            await self._home.execute(DELETE_NODES, changes.nodes, moved)
            await self._home.execute(INSERT_NODES, changes.nodes, moved)
            await self._home.execute(DELETE_APPROVALS, changes.approvals, moved)
            await self._home.execute(INSERT_APPROVALS, changes.approvals, moved)
            await self._home.execute(INSERT_FRAMES, changes.frames, moved)
        return moved


class _Named:
    """What some events, in order, name: nodes, frames, and the last of each run."""

    def __init__(self, events: Iterable[asyncpg.Record]) -> None:
        self.nodes: set[tuple[str, str, int]] = set()
        self.frames: list[tuple[str, int]] = []
        self.reloaded: set[str] = set()
        self.ends: dict[str, int] = {}
        stamps = []
        for row in events:
            run_id, event = row["run_id"], orjson.loads(row["payload"])
            self.ends[run_id] = row["seq"]
            stamps.append(event["timestampMs"])
            if "nodeId" in event:
                self.nodes.add((run_id, event["nodeId"], event.get("iteration", 0)))
            if event["type"] == EventType.FRAME_COMMITTED:
                self.frames.append((run_id, event["frameNo"]))
            if event["type"] == EventType.WORKFLOW_RELOADED:
                self.reloaded.add(run_id)
        self.oldest_ms = min(stamps, default=0)


@asynccontextmanager
async def open_mirror(own_dsn: str, home_dsn: str, name: str) -> AsyncIterator[MirrorStore]:
    """Be the mirror of a database; wait while another session is. `home_dsn` must be direct, for the lock is a session's.

    Raises StoreError.
    """
    home = await connect_hot(home_dsn, role="mirror", idle_s=IDLE_S)
    try:
        with driver_errors():
            while not await home.fetchval(LOCK_MIRROR, name):  # noqa: ASYNC110 - another session lets go of it
                await asyncio.sleep(LOCK_AGAIN_S)
        own = await connect_hot(own_dsn, role="mirrored")
        try:
            yield MirrorStore(own, home, name)
        finally:
            own.terminate()
    finally:
        home.terminate()
