"""Copy changes in a workflow's own database to the server's, so that lists show them: in order, each event once.

A run's position is the last event that its mirror has; it is written with the corresponding rows, in one transaction,
so that an interrupted copy resumes where it stopped. One mirror at a time: the writing session holds a lock for as
long as it lives, and its transaction dies with it; a silent one is ended by the server. The rows of a
copy come from one snapshot. Mutable rows named by new events are replaced as a whole; after a resume, which
names no nodes, and at its end, all of the run's are. Only a page of them at a time is in memory, and each
page has its own time-out. A large run's rows alternate with other runs: its position does not change until the
last of them is copied, and changes meanwhile are named by events after that position.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import asyncpg
import orjson

from smithers.events import EventType
from smithers.ids import RunId
from smithers.store.connections import connect_hot, driver_errors, transaction
from smithers.store.descriptions import keep_source
from smithers.store.mirrored_tables import APPROVALS, FRAMES, NODES, REQUESTS, MirroredTable
from smithers.store.own_databases import list_abandoned
from smithers.store.starts import start_runs

PAGE_EVENTS: Final = 200  # of each run
PAGE_KEYS: Final = 1_000
PAGE_BYTES: Final = 4 << 20  # of the rows in memory; a larger row goes alone
MAX_STARTS: Final = 20
ABANDONED_S: Final = 60.0  # longer than any pending call of a living gateway
LOCK_AGAIN_S: Final = 1.0
STEP_S: Final = 25.0  # for one page of a copy, or one look
TURN_S: Final = 1.0  # for all rows of large runs, before the others have their turn
# The limit of a session's silence, e.g. if the mirror's host is gone: longer than two steps, each of which uses it.
IDLE_S: Final = 60.0
FIRST: Final = ("", -1)  # before every node
NOWHERE: Final = (-1, 0)  # the position and the era of a run that has no mirror yet

# -- name: lock_mirror
LOCK_MIRROR: Final = "SELECT pg_try_advisory_lock(hashtextextended('smithers mirror of ' || $1, 0))"

# -- name: page_runs
# A walk over all runs by their key, which finds the runs whose hints were lost.
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

# -- name: lock_mirrored
LOCK_MIRRORED: Final = """
    SELECT run_id FROM smithers.runs WHERE run_id = ANY ($2::text[]) AND database = $1 FOR NO KEY UPDATE"""

# -- name: read_runs
READ_RUNS: Final = """
    SELECT r.run_id, r.last_seq, r.era, r.finished_at IS NOT NULL AS is_over, to_json(r)::text AS row,
           smithers.to_ms(smithers.clock()) AS now_ms
    FROM unnest($1::text[], $2::bigint[]) AS c (run_id, seq) JOIN smithers.runs AS r ON r.run_id = c.run_id
    WHERE r.last_seq > c.seq AND r.database IS NULL"""

# -- name: read_events
# A page of each run, limited by number and bytes, but with at least one event.
READ_EVENTS: Final = """
    SELECT e.run_id, e.seq, e.epoch, e.payload
    FROM unnest($1::text[], $2::bigint[]) AS c (run_id, seq) CROSS JOIN LATERAL (
        SELECT p.*, sum(octet_length(p.payload)) OVER (ORDER BY p.seq) - octet_length(p.payload) AS bytes_before FROM (
            SELECT v.run_id, v.seq, v.epoch, v.payload FROM smithers.events AS v
            WHERE v.run_id = c.run_id AND v.seq > c.seq ORDER BY v.seq LIMIT $3) AS p) AS e
    WHERE e.bytes_before < $4 ORDER BY e.run_id, e.seq"""

# -- name: replace_runs
# The owner, its heartbeat and the due time are not copied: here no worker may claim the run. While there is more to
# copy, it is shown as not ended. An id that belongs to a run of this database, or of a third, is skipped, and not returned.
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
# Without ON CONFLICT: an existing event means that there is a second mirror, whose whole copy is refused.
INSERT_EVENTS: Final = """
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[])"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The result of one copy."""

    event_count: int
    lag_ms: int  # how old the oldest of them was, by the other database's clock
    unfinished: frozenset[RunId]  # runs of which there is more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    """Changes to copy of some runs: a page of their events, and the rows that these name."""

    runs: Sequence[asyncpg.Record]
    events: Sequence[asyncpg.Record]
    named: "_Named"
    new: frozenset[str]  # runs that have no mirror yet
    whole: frozenset[str]  # runs of which every row is copied


@dataclass(frozen=True, slots=True)
class _Sweep:
    """The progress of copying all rows of a run."""

    # The run's era, and whether it is over: in another one the copy begins anew.
    stage: tuple[int, bool]
    # By table, the node whose row was copied last; a table that is done is not there any more.
    places: dict[MirroredTable, tuple[str, int]]


@asynccontextmanager
async def _step() -> AsyncIterator[None]:
    with driver_errors():
        async with asyncio.timeout(STEP_S):
            yield


class MirrorStore:
    """A mirror's two databases: it reads from one, and writes to the other."""

    def __init__(self, own: asyncpg.Connection, home: asyncpg.Connection, name: str) -> None:
        self._own = own
        self._home = home
        self._name = name
        self._sweeps: dict[str, _Sweep] = {}  # by run: of those that wait for another turn

    async def copy(self, run_ids: Sequence[RunId]) -> Copied:
        """Copy changes of some runs, at most a page of events of each, in one transaction; raises StoreError."""
        async with _step():
            rows = await self._home.fetch(READ_POSITIONS, self._name, run_ids)
        positions = {row["run_id"]: (row["mirrored_seq"], row["era"]) for row in rows}
        with driver_errors():
            async with transaction(self._own, isolation="repeatable_read", readonly=True):
                async with _step():
                    changes = await self._read(run_ids, positions)
                if changes is None:
                    return Copied(event_count=0, lag_ms=0, unfinished=frozenset())
                moved, waiting = await self._write(changes)
        return Copied(
            event_count=sum(event["run_id"] in moved for event in changes.events),
            lag_ms=max(changes.runs[0]["now_ms"] - changes.named.oldest_ms, 0),
            unfinished=frozenset(
                RunId(run["run_id"])
                for run in changes.runs
                if run["run_id"] in waiting
                or (run["run_id"] in moved and changes.named.ends[run["run_id"]] < run["last_seq"])
            ),
        )

    async def find_behind(self, after: RunId, limit: int) -> tuple[list[RunId], RunId | None]:
        """Check the next runs by id; return those with more events than their mirrors, and the next position."""
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
        """Read the changes of some runs; None: there are none."""
        seqs = [positions.get(run_id, NOWHERE)[0] for run_id in run_ids]
        runs = await self._own.fetch(READ_RUNS, run_ids, seqs)
        if not runs:
            return None
        room_bytes = PAGE_BYTES // len(runs)
        events = await self._own.fetch(READ_EVENTS, run_ids, seqs, PAGE_EVENTS, room_bytes)
        named = _Named(events)
        new = frozenset(
            run["run_id"] for run in runs if positions.get(run["run_id"], NOWHERE)[0] == -1
        )
        whole = frozenset(
            run["run_id"]
            for run in runs
            if (run["is_over"] and named.ends[run["run_id"]] == run["last_seq"])
            or (run["run_id"] not in new and _is_resumed(run, named, positions))
        )
        return _Changes(runs=runs, events=events, named=named, new=new, whole=whole)

    async def _write(self, changes: _Changes) -> tuple[frozenset[str], frozenset[str]]:
        """Write a copy; return the runs written, and those that wait until all their rows are copied."""
        # Of a copy that fails nothing is there.
        sweeps, self._sweeps = self._sweeps, {}
        swept_at_once = changes.whole - sweeps.keys()
        async with transaction(self._home):
            async with _step():
                known = sorted(changes.whole - changes.new)
                locked = await self._home.fetch(LOCK_MIRRORED, self._name, known) if known else []
            mirrored = frozenset(row["run_id"] for row in locked)
            await self._sweep(sweeps, changes.runs, mirrored, TURN_S)
            waiting = frozenset(
                run_id for run_id in known if run_id not in mirrored or sweeps[run_id].places
            )
            async with _step():
                moved = await self._write_events(changes, waiting)
            # Not before they are the mirror's; the history of such a run is a page at the most.
            await self._sweep(sweeps, changes.runs, changes.whole & changes.new & moved, inf)
            requests = sorted((changes.whole | changes.new) & moved)
            await self._replace(REQUESTS, [(run_id,) for run_id in requests])
            await self._replace(FRAMES, [key for key in changes.named.frames if key[0] in moved])
            keys = sorted(key for key in changes.named.nodes if key[0] in moved - swept_at_once)
            for table in (NODES, APPROVALS):
                await self._replace(table, keys)
        self._sweeps = {run_id: sweep for run_id, sweep in sweeps.items() if run_id not in moved}
        return moved, waiting

    async def _write_events(self, changes: _Changes, waiting: frozenset[str]) -> frozenset[str]:
        """Write the runs' rows, with their positions, and events; return the runs that are the mirror's to write."""
        runs = [run for run in changes.runs if run["run_id"] not in waiting]
        run_ids = [run["run_id"] for run in runs]
        ends = [changes.named.ends[run_id] for run_id in run_ids]
        partial = [end < run["last_seq"] for run, end in zip(runs, ends, strict=True)]
        await self._home.execute(DELETE_RUNS, self._name, run_ids)
        rows = await self._home.fetch(
            INSERT_RUNS, self._name, [run["row"] for run in runs], ends, partial
        )
        moved = frozenset(row["run_id"] for row in rows)
        events = [event for event in changes.events if event["run_id"] in moved]
        await self._home.execute(
            INSERT_EVENTS,
            *([event[part] for event in events] for part in ("run_id", "seq", "epoch", "payload")),
        )
        return moved

    async def _replace(self, table: MirroredTable, keys: Sequence[tuple[Any, ...]]) -> None:
        """Copy the rows of a table that these keys name."""
        for start in range(0, len(keys), PAGE_KEYS):
            page = keys[start : start + PAGE_KEYS]
            async with _step():
                weighed = await self._own.fetch(table.weigh, *zip(*page, strict=True))
            for part in _pages(weighed):
                await self._replace_page(table, part)

    async def _sweep(
        self,
        sweeps: dict[str, _Sweep],
        runs: Sequence[asyncpg.Record],
        run_ids: frozenset[str],
        turn_s: float,
    ) -> None:
        """Copy all rows of some of these runs for as long as their turn lasts; `sweeps` tells how far, before and after."""
        stages = {
            run["run_id"]: (run["era"], run["is_over"]) for run in runs if run["run_id"] in run_ids
        }
        for run_id, stage in stages.items():
            if run_id not in sweeps or sweeps[run_id].stage != stage:
                sweeps[run_id] = _Sweep(stage, {NODES: FIRST, APPROVALS: FIRST})
        begun = {run_id for run_id in stages if sweeps[run_id].places.get(NODES) != FIRST}
        until = asyncio.get_running_loop().time() + turn_s
        for turn in (stages.keys() - begun, begun):  # a large run holds up none that is small
            for table in (NODES, APPROVALS):
                places = {run_id: sweeps[run_id].places for run_id in sorted(turn)}
                await self._sweep_table(table, places, until)

    async def _sweep_table(
        self,
        table: MirroredTable,
        places: Mapping[str, dict[MirroredTable, tuple[str, int]]],
        until: float,
    ) -> None:
        """Copy all rows that some runs have in a table, in the order of their ids: one page of them in any case."""
        loop = asyncio.get_running_loop()
        while after := [(run_id, *at[table]) for run_id, at in places.items() if table in at]:
            async with _step():
                weighed = await self._own.fetch(
                    table.weigh_all, *zip(*after, strict=True), PAGE_KEYS
                )
            pages = [*_pages(weighed)]
            for page in pages:
                await self._replace_page(table, page)
                last_id, *place = page[-1]
                places[last_id][table] = (place[0], place[1])
                for run_id, at in places.items():
                    if run_id < last_id:
                        at.pop(table, None)
                if loop.time() >= until and page is not pages[-1]:
                    return
            if len(weighed) < PAGE_KEYS:
                for at in places.values():
                    at.pop(table, None)
            if loop.time() >= until:
                return

    async def _replace_page(self, table: MirroredTable, page: Sequence[tuple[Any, ...]]) -> None:
        keys = [*zip(*page, strict=True)]
        async with _step():
            rows = await self._own.fetch(table.read, *keys)
            await self._home.execute(table.delete, *keys)
            await self._home.execute(table.insert, [row["row"] for row in rows])


def _is_resumed(
    run: asyncpg.Record, named: "_Named", positions: Mapping[str, tuple[int, int]]
) -> bool:
    return run["run_id"] in named.reloaded or positions[run["run_id"]][1] != run["era"]


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
    """Become the mirror of a database; wait while another session is. `home_dsn` must be direct: the lock is a session's.

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
