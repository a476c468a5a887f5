"""Read a run's facts: all of them when it is taken up, and news from outside while it runs.

Runs that are taken up are read in groups. A group that the database aborts because it takes too long is read again run by
run. A run whose reading is aborted alone is read over a connection of its own, with a far longer time-out, and delays only
others like it; if it is aborted there too, it is too large.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import asyncpg
import orjson

from smithers.engine.facts import (
    ApprovalFact,
    EndFact,
    Facts,
    LoopFact,
    NodeFact,
    NodeKey,
    Problem,
    SignalFact,
    TryFact,
)
from smithers.errors import AnswerTooLarge, CallTooLong, LeaseLost, StoreUnavailable
from smithers.ids import Epoch, LoopId, RunId, TryId
from smithers.states import ApprovalStatus, NodeState, RunStatus, TryPhase
from smithers.store.connections import driver_errors
from smithers.store.lanes import Lane, each_on_its_own
from smithers.store.patterns import fill

RETRY_PAUSE_S: Final = 0.2  # while the database is away
PATIENT_S: Final = 300.0  # for a run that is too long for a call

_LOAD: Final = """
SELECT r.run_id, r.last_seq, r.epoch, r.cancel_requested_at IS NOT NULL AS is_cancelling,
    smithers.to_ms(smithers.clock()) AS now_ms,
    (SELECT coalesce(json_agg(json_build_array(a.node_id, a.iteration, a.status, a.note, a.decided_by,
            smithers.to_ms(a.decided_at), a.decision)), '[]')
        FROM {approvals} AS a WHERE a.status IN ('approved', 'denied'))::text AS approvals,
    (SELECT coalesce(json_agg(json_build_array(s.seq, s.signal_name, s.correlation_id, s.data) ORDER BY s.seq), '[]')
        FROM smithers.signals AS s WHERE s.run_id = r.run_id AND s.consumed_by IS NULL{newer})::text AS signals,
    (SELECT coalesce(max(s.seq), -1) FROM smithers.signals AS s WHERE s.run_id = r.run_id) AS newest_signal,
    (SELECT coalesce(json_agg(json_build_array(k.node_id, k.iteration, k.child_run_id, k.status, k.output, k.error,
            CASE WHEN k.status = 'cancelled' THEN (SELECT smithers.to_ms(c.cancel_requested_at)
                FROM smithers.runs AS c WHERE c.run_id = k.child_run_id) END)), '[]')
        FROM {children} AS k WHERE k.status IS NOT NULL)::text AS ends
    {more}
FROM smithers.runs AS r WHERE r.run_id = {chosen}
"""
# The rows of the nodes named by events of certain types after a seq. An event's text begins with its type: see event_parts.
_TOLD: Final = """
            (SELECT e.payload::json AS said FROM smithers.events AS e
                WHERE e.run_id = r.run_id AND e.seq > $2 AND split_part(e.payload, '"', 4) IN ({types})) AS told
            CROSS JOIN LATERAL (
                SELECT * FROM smithers.{table} AS t WHERE t.run_id = r.run_id
                    AND t.node_id = told.said ->> 'nodeId' AND t.iteration = (told.said ->> 'iteration')::integer LIMIT 1)"""

# -- name: load_news
# A run's news after a seq: decisions and children's ends by the events that name their nodes, and the signals after a known
# one. It runs at every hint and reads only what is new, however many nodes wait and however much was decided before. LIMIT:
# one key lookup for each. One run, not an array: the server would not keep a plan for an array by its own choice.
LOAD_NEWS: Final = fill(
    _LOAD,
    chosen="$1",
    approvals=fill(_TOLD, table="approvals", types="'ApprovalGranted', 'ApprovalDenied'"),
    children=fill(_TOLD, table="children", types="'SubflowEnded'"),
    newer=" AND s.seq > $3",
    more="",
)

# -- name: load_runs
# All that is known of some runs, in one snapshot and one round trip: what has come, and what their own history says. Old
# decisions too: a task that was let through is tried again.
LOAD_RUNS: Final = fill(
    _LOAD,
    chosen="ANY ($1)",
    approvals="(SELECT * FROM smithers.approvals AS t WHERE t.run_id = r.run_id)",
    children="""(SELECT t.* FROM smithers.children AS t JOIN smithers.nodes AS n
            ON n.run_id = t.run_id AND n.node_id = t.node_id AND n.iteration = t.iteration
            WHERE t.run_id = r.run_id AND n.state = 'waiting-event')""",
    newer="",
    more=""",
    (SELECT coalesce(json_agg(json_build_array(n.node_id, n.iteration, n.state, n.kind, n.label, n.attempt, n.failures,
            n.output, n.error, smithers.to_ms(n.due_at), smithers.to_ms(n.started_at), n.wait, n.heartbeat, n.loop_id)), '[]')
        FROM smithers.nodes AS n WHERE n.run_id = r.run_id)::text AS nodes,
    (SELECT coalesce(json_agg(json_build_array(l.loop_id, l.iteration, l.is_done)), '[]')
        FROM smithers.loops AS l WHERE l.run_id = r.run_id)::text AS loops,
    (SELECT coalesce(json_agg(json_build_array(t.try_id, t.phase, t.is_done, t.problem)), '[]')
        FROM smithers.tries AS t WHERE t.run_id = r.run_id)::text AS tries,
    (SELECT f.xml_hash FROM smithers.frames AS f WHERE f.run_id = r.run_id ORDER BY f.frame_no DESC LIMIT 1) AS xml_hash""",
)


@dataclass(frozen=True, slots=True)
class News:
    """A run's news from outside."""

    last_seq: int
    epoch: Epoch
    is_cancelling: bool
    now_ms: int
    approvals: dict[NodeKey, ApprovalFact]  # decided
    signals: list[SignalFact]  # that nobody has taken
    newest_signal: int  # its seq, whether taken or not; -1: none has come
    ends: dict[NodeKey, EndFact]  # of children that nodes wait for


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """The facts of a run that is taken up again."""

    facts: Facts
    xml_hash: str | None
    news: News


class Loader:
    """A child's way to take up runs."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._alone = asyncio.Lock()  # at most one further connection, and only while it is needed
        self.lane: Lane[RunId, LoadedRun] = Lane(dsn, role="load", flush=_load_group)

    async def __aenter__(self) -> Self:
        await self.lane.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.lane.__aexit__(*exc)

    async def load(self, run_id: RunId) -> LoadedRun:
        """Read the facts of a run; waits while the database is away.

        Raises LeaseLost where it is gone, AnswerTooLarge where more is known of it than one row holds, or than can be read
        within PATIENT_S.
        """
        is_alone = False
        while True:
            try:
                return await (self._load_alone(run_id) if is_alone else self.lane.submit(run_id))
            except CallTooLong as error:
                if is_alone:
                    raise AnswerTooLarge("it took too long to read, alone, too") from error
                is_alone = True
            except StoreUnavailable:
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _load_alone(self, run_id: RunId) -> LoadedRun:
        alone = Lane(self._dsn, role="load-long", flush=_load_group, limit_s=PATIENT_S)
        async with self._alone, alone:
            return await alone.submit(run_id)


async def _load_group(
    connection: asyncpg.Connection, run_ids: Sequence[RunId]
) -> Sequence[LoadedRun | Exception]:
    try:
        return await load_runs(connection, run_ids)
    except CallTooLong as error:
        if len(run_ids) == 1:
            return [error]
        raise StoreUnavailable("a group took too long: each run by itself") from error


async def load_runs(
    connection: asyncpg.Connection | asyncpg.Pool, run_ids: Sequence[RunId]
) -> list[LoadedRun | Exception]:
    """Read the facts of runs that are taken up again, in the order of the ids.

    Instead of one there is LeaseLost where it is gone, AnswerTooLarge where more is known of it than one row holds.
    """
    rows = await each_on_its_own(connection, run_ids, _load_rows)
    return [row if isinstance(row, Exception) else _loaded(row) for row in rows]


async def _load_rows(
    connection: asyncpg.Connection | asyncpg.Pool, run_ids: Sequence[RunId]
) -> list[asyncpg.Record | Exception]:
    found = {row["run_id"]: row for row in await connection.fetch(LOAD_RUNS, run_ids)}
    return [found.get(run_id) or LeaseLost(f"run {run_id} is gone") for run_id in run_ids]


async def load_news(
    pool: asyncpg.Pool, run_id: RunId, *, after_seq: int, after_signal: int
) -> News | None:
    """Read a run's news from outside; None if the run is gone.

    These are the decisions and ends with events after `after_seq`, and the signals whose `seq` is above `after_signal`.
    """
    with driver_errors():
        row = await pool.fetchrow(LOAD_NEWS, run_id, after_seq, after_signal)
    return None if row is None else _news(row)


def _loaded(row: asyncpg.Record) -> LoadedRun:
    facts = Facts()
    # The columns of LOAD_RUNS from the state on stand in the order of a NodeFact's fields.
    for columns in orjson.loads(row["nodes"]):
        node_id, iteration, state, kind, label, attempt, failures, output, error, *rest = columns
        facts.put(
            NodeKey(node_id, iteration),
            NodeFact(
                NodeState(state),
                kind,
                label,
                attempt,
                failures,
                output,
                _problem_of(error),
                *rest,
            ),
        )
    for loop_id, iteration, is_done in orjson.loads(row["loops"]):
        facts.loops[LoopId(loop_id)] = LoopFact(iteration, is_done)
    for try_id, phase, is_done, problem in orjson.loads(row["tries"]):
        facts.tries[TryId(try_id)] = TryFact(TryPhase(phase), is_done, _problem_of(problem))
    return LoadedRun(facts, row["xml_hash"], _news(row))


def _news(row: asyncpg.Record) -> News:
    approvals = {
        NodeKey(node_id, iteration): ApprovalFact(ApprovalStatus(status), *rest)
        for node_id, iteration, status, *rest in orjson.loads(row["approvals"])
    }
    signals = [SignalFact(*fields) for fields in orjson.loads(row["signals"])]
    ends = {
        NodeKey(node_id, iteration): EndFact(
            run_id, RunStatus(status), output, _problem_of(error), cancel_asked_ms
        )
        for node_id, iteration, run_id, status, output, error, cancel_asked_ms in orjson.loads(
            row["ends"]
        )
    }
    return News(
        last_seq=row["last_seq"],
        epoch=row["epoch"],
        is_cancelling=row["is_cancelling"],
        now_ms=row["now_ms"],
        approvals=approvals,
        signals=signals,
        newest_signal=row["newest_signal"],
        ends=ends,
    )


def _problem_of(text: str | None) -> Problem | None:
    if text is None:
        return None
    kept = orjson.loads(text)
    return Problem(
        kept["name"], kept["message"], kept.get("code"), kept.get("details"), kept.get("traceback")
    )
