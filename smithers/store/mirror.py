"""Copy what happens in a workflow's own database to the server's, so that lists show it: in order, each event once.

A run's position is the last event that its mirror has; it is written with the rows that it stands for, in one transaction,
so that a copy that was killed goes on where it stopped. One mirror at a time: the session that writes holds a lock for as
long as it lives, and what it writes dies with it; one that says nothing any more is ended by the server. The rows of a
copy come from one snapshot. Those that may change are replaced whole, by what their new events name; after a resume, which
names no nodes, and at its end all of the run's are. However many they are, a page of them at a time is in memory, and each
page has a time of its own.

Rows travel as JSON and are read by the names of their columns: the two databases may be a version apart.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import asyncpg
import orjson

from smithers.events import EventType
from smithers.ids import RunId
from smithers.store.connections import connect_hot, driver_errors, transaction
from smithers.store.descriptions import keep_source
from smithers.store.own_databases import list_abandoned
from smithers.store.starts import start_runs

PAGE_EVENTS: Final = 200  # of each run
PAGE_KEYS: Final = 1_000
PAGE_BYTES: Final = 4 << 20  # of the rows that are held at once; one that is larger goes alone
MAX_STARTS: Final = 20
ABANDONED_S: Final = 60.0  # longer than any call that a living gateway may still wait for
LOCK_AGAIN_S: Final = 1.0
STEP_S: Final = 25.0  # for one page of a copy, or one look
# For a session to say nothing, e.g. because the mirror's host is gone: longer than two steps, each of which uses it.
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
# A page of each run: so many, or so many bytes, but the first in any case.
READ_EVENTS: Final = """
    SELECT e.run_id, e.seq, e.epoch, e.payload
    FROM unnest($1::text[], $2::bigint[]) AS c (run_id, seq) CROSS JOIN LATERAL (
        SELECT p.*, sum(octet_length(p.payload)) OVER (ORDER BY p.seq) - octet_length(p.payload) AS bytes_before FROM (
            SELECT v.run_id, v.seq, v.epoch, v.payload FROM smithers.events AS v
            WHERE v.run_id = c.run_id AND v.seq > c.seq ORDER BY v.seq LIMIT $3) AS p) AS e
    WHERE e.bytes_before < $4 ORDER BY e.run_id, e.seq"""

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

# -- name: weigh_rows
# Which rows there are for these keys, and their size. octet_length does not read what is stored outside of its row.
_WEIGH: Final = """
    SELECT T_KEY, WEIGHT AS byte_count FROM unnest(ARRAYS) AS k (KEY) JOIN smithers.TABLE AS t ON (T_KEY) = (K_KEY)"""

# -- name: weigh_all
# The same for all rows of these runs, a page at a time, each run's from the row on after the one that is named.
_WEIGH_ALL: Final = """
    SELECT n.* FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (run_id, node_id, iteration) CROSS JOIN LATERAL (
        SELECT T_KEY, WEIGHT AS byte_count FROM smithers.TABLE AS t
        WHERE t.run_id = k.run_id AND (t.node_id, t.iteration) > (k.node_id, k.iteration)
        ORDER BY t.node_id, t.iteration LIMIT $4) AS n
    ORDER BY n.run_id, n.node_id, n.iteration LIMIT $4"""

# -- name: read_rows
_READ: Final = """
    SELECT to_json(t)::text AS row FROM unnest(ARRAYS) AS k (KEY) JOIN smithers.TABLE AS t ON (T_KEY) = (K_KEY)"""

# -- name: replace_rows
_DELETE: Final = (
    "DELETE FROM smithers.TABLE AS t USING unnest(ARRAYS) AS k (KEY) WHERE (T_KEY) = (K_KEY)"
)
_INSERT: Final = """
    INSERT INTO smithers.TABLE SELECT t.* FROM unnest($1::text[]) AS c (row)
    CROSS JOIN LATERAL json_populate_record(NULL::smithers.TABLE, c.row::json) AS t"""


class _Table:
    """The statements that copy the rows of one table."""

    def __init__(self, name: str, *, key: Mapping[str, str], large: Sequence[str]) -> None:
        """`key`: its columns, each with its type; `large`: the columns that make a row large."""
        words = {
            "TABLE": name,
            "ARRAYS": ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(key.values(), 1)),
            "T_KEY": ", ".join(f"t.{column}" for column in key),
            "K_KEY": ", ".join(f"k.{column}" for column in key),
            "KEY": ", ".join(key),
            "WEIGHT": " + ".join(f"coalesce(octet_length(t.{column}), 0)" for column in large),
        }
        self.weigh, self.weigh_all, self.read, self.delete, self.insert = (
            reduce(lambda text, word: text.replace(*word), words.items(), template)
            for template in (_WEIGH, _WEIGH_ALL, _READ, _DELETE, _INSERT)
        )


_OF_NODE: Final = {"run_id": "text", "node_id": "text", "iteration": "integer"}
NODES: Final = _Table("nodes", key=_OF_NODE, large=("output", "error", "heartbeat", "wait"))
APPROVALS: Final = _Table("approvals", key=_OF_NODE, large=("request", "note", "decision"))
FRAMES: Final = _Table("frames", key={"run_id": "text", "frame_no": "integer"}, large=("body",))
REQUESTS: Final = _Table(
    "run_requests", key={"run_id": "text"}, large=("input", "config", "auth", "carried")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What one copy did."""

    event_count: int
    lag_ms: int  # how old the oldest of them was, by the other database's clock
    unfinished: frozenset[RunId]  # runs with more events than fit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    """What is to be copied of some runs: a page of their events, and what these name."""

    runs: Sequence[asyncpg.Record]
    events: Sequence[asyncpg.Record]
    named: "_Named"
    whole: frozenset[str]  # runs of which every row is copied


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
        """Copy what is new of some runs, a page of events of each at the most, in one transaction; raises StoreError."""
        async with _step():
            rows = await self._home.fetch(READ_POSITIONS, self._name, run_ids)
        positions = {row["run_id"]: (row["mirrored_seq"], row["era"]) for row in rows}
        with driver_errors():
            async with transaction(self._own, isolation="repeatable_read", readonly=True):
                async with _step():
                    changes = await self._read(run_ids, positions)
                if changes is None:
                    return Copied(event_count=0, lag_ms=0, unfinished=frozenset())
                moved = await self._write(changes)
        return Copied(
            event_count=sum(event["run_id"] in moved for event in changes.events),
            lag_ms=max(changes.runs[0]["now_ms"] - changes.named.oldest_ms, 0),
            unfinished=frozenset(
                RunId(run["run_id"])
                for run in changes.runs
                if run["run_id"] in moved and changes.named.ends[run["run_id"]] < run["last_seq"]
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
        self, run_ids: Sequence[RunId], positions: Mapping[str, tuple[int, int]]
    ) -> _Changes | None:
        """Read what has happened in some runs since; None: nothing."""
        seqs = [positions.get(run_id, NOWHERE)[0] for run_id in run_ids]
        runs = await self._own.fetch(READ_RUNS, run_ids, seqs)
        if not runs:
            return None
        room_bytes = PAGE_BYTES // len(runs)
        events = await self._own.fetch(READ_EVENTS, run_ids, seqs, PAGE_EVENTS, room_bytes)
        named = _Named(events)
        whole = frozenset(
            run["run_id"]
            for run in runs
            if run["run_id"] in named.reloaded
            or positions.get(run["run_id"], NOWHERE)[0] == -1
            or positions[run["run_id"]][1] != run["era"]
            or (run["is_over"] and named.ends[run["run_id"]] == run["last_seq"])
        )
        return _Changes(runs=runs, events=events, named=named, whole=whole)

    async def _write(self, changes: _Changes) -> frozenset[str]:
        """Write a copy; return the runs that it was written of."""
        named = changes.named
        async with transaction(self._home):
            async with _step():
                moved = await self._write_events(changes)
            whole = sorted(changes.whole & moved)
            await self._replace(REQUESTS, [(run_id,) for run_id in whole])
            await self._replace(FRAMES, [key for key in named.frames if key[0] in moved])
            keys = sorted(key for key in named.nodes if key[0] in moved - changes.whole)
            for table in (NODES, APPROVALS):
                await self._replace(table, keys)
                await self._replace_all(table, whole)
        return moved

    async def _write_events(self, changes: _Changes) -> frozenset[str]:
        """Write the runs' rows, with their positions, and events; return the runs that are the mirror's to write."""
        run_ids = [run["run_id"] for run in changes.runs]
        ends = [changes.named.ends[run_id] for run_id in run_ids]
        partial = [end < run["last_seq"] for run, end in zip(changes.runs, ends, strict=True)]
        await self._home.execute(DELETE_RUNS, self._name, run_ids)
        rows = await self._home.fetch(
            INSERT_RUNS, self._name, [run["row"] for run in changes.runs], ends, partial
        )
        moved = frozenset(row["run_id"] for row in rows)
        events = [event for event in changes.events if event["run_id"] in moved]
        await self._home.execute(
            INSERT_EVENTS,
            *([event[part] for event in events] for part in ("run_id", "seq", "epoch", "payload")),
        )
        return moved

    async def _replace(self, table: _Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Copy the rows of a table that these keys name."""
        for start in range(0, len(keys), PAGE_KEYS):
            page = keys[start : start + PAGE_KEYS]
            async with _step():
                weighed = await self._own.fetch(table.weigh, *zip(*page, strict=True))
            await self._replace_weighed(table, weighed)

    async def _replace_all(self, table: _Table, run_ids: Sequence[str]) -> None:
        """Copy all rows that some runs, in the order of their ids, have in a table."""
        after = [(run_id, "", -1) for run_id in run_ids]
        while after:
            async with _step():
                weighed = await self._own.fetch(
                    table.weigh_all, *zip(*after, strict=True), PAGE_KEYS
                )
            await self._replace_weighed(table, weighed)
            if len(weighed) < PAGE_KEYS:
                return
            *last, _ = weighed[-1]
            after = [(*last,), *(each for each in after if each[0] > last[0])]

    async def _replace_weighed(self, table: _Table, weighed: Sequence[asyncpg.Record]) -> None:
        for page in _pages(weighed):
            keys = [*zip(*page, strict=True)]
            async with _step():
                rows = await self._own.fetch(table.read, *keys)
                await self._home.execute(table.delete, *keys)
                await self._home.execute(table.insert, [row["row"] for row in rows])


def _pages(weighed: Iterable[asyncpg.Record]) -> Iterator[list[tuple[Any, ...]]]:
    """Part keys, each with its row's size, into pages of so many bytes; at least one key is in each."""
    page: list[tuple[Any, ...]] = []
    total_bytes = 0
    for *key, byte_count in weighed:
        if page and total_bytes + byte_count > PAGE_BYTES:
            yield page
            page, total_bytes = [], 0
        page.append(tuple(key))
        total_bytes += byte_count
    if page:
        yield page


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
    # While one of the two reads a page, or writes it, the other waits in its transaction.
    idle = f"{IDLE_S * 1000:.0f}ms"
    patient = {"idle_in_transaction_session_timeout": idle}
    home = await connect_hot(
        home_dsn, role="mirror", settings={"idle_session_timeout": idle, **patient}
    )
    try:
        with driver_errors():
            while not await home.fetchval(LOCK_MIRROR, name):  # noqa: ASYNC110 - another session lets go of it
                await asyncio.sleep(LOCK_AGAIN_S)
        own = await connect_hot(own_dsn, role="mirrored", settings=patient)
        try:
            yield MirrorStore(own, home, name)
        finally:
            own.terminate()
    finally:
        home.terminate()
