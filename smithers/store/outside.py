"""Changes of a run from outside: decisions, signals, cancels, resumes.

Each is one call of one SQL function, which locks the run's row first, reads under the lock, writes, and wakes the run in
the same transaction. It decides races; here its answer becomes a value or an exception. Decisions and
signals share a lane: queued ones are written in one transaction, and the workers concerned are notified in the same round
trip. No call there waits for a locked row: its item is sent again with the next batch. A run that commits without a pause
has its row locked whenever one looks, but for moments: if a second of looking was in vain, one item at a time waits for the
row over another connection, where it gets it in its turn.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, cast

import asyncpg
import orjson

from smithers.errors import Deadlocked, RowsHeld, StoreError
from smithers.ids import NodeId, RunId, SourceHash
from smithers.store.connections import driver_errors, open_connection
from smithers.store.hints import Channel, notify
from smithers.store.lanes import Lane, each_on_its_own
from smithers.store.refusals import (
    DecisionMisfit,
    NothingToResume,
    RunNotActive,
    RunNotFound,
    refuse_at_node,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An answer to an approval; `user` and `scopes` are the credential's, None if the server has no tokens."""

    run_id: RunId
    node_id: NodeId
    iteration: int
    is_approved: bool
    note: str | None
    decided_by: str | None
    decision: str | None  # JSON: a selection or a ranking
    user: str | None
    scopes: tuple[str, ...] | None
    is_timeout: bool = False  # nobody decided in time: also a form's


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSent:
    """A signal as it was sent."""

    run_id: RunId
    signal_name: str
    correlation_id: str | None
    data: str  # JSON
    received_by: str | None
    signal_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRecord:
    """A signal as it is stored."""

    is_new: bool  # false: its sender's id was used before, and this is the first record
    seq: int  # numbers the run's signals from 0
    signal_name: str
    correlation_id: str | None
    received_ms: int


class CancelOutcome(StrEnum):
    """The immediate result of a cancel."""

    CANCELLED = "cancelled"  # no worker held the run: it has ended
    # Its owner, or the next one, must end it, and may commit no other end.
    REQUESTED = "requested"


class ResumeOutcome(StrEnum):
    """What a resume found."""

    RESUMED = "resumed"
    ACTIVE = "active"  # active, or it resumes by itself
    FINISHED = "finished"  # nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What a resume may change; None keeps what the run has."""

    run_id: RunId
    source_hash: SourceHash | None
    workflow_path: str | None
    workflow_export: str | None
    config: str | None  # JSON: the fields that change
    changed_files: str | None  # JSON


HELD: Final = "the run is locked by another call"
DEADLOCK_TRIES: Final = 3
DEADLOCK_PAUSE_S: Final = 0.02  # in which the other call takes the row that the victim has given up

Link = asyncpg.Connection | asyncpg.Pool
OutsideLane = Lane[Decision | SignalSent, bool | SignalRecord]

# -- name: decide_approvals
# Each sees the effects of those before it in the batch; see migrations/functions/decide_and_tell_v4.sql.
DECIDE_APPROVALS: Final = "CALL smithers.decide_and_tell_v4($1::smithers.decision_v1[], NULL)"

# -- name: asks_yes_or_no
# Whether there is an open question that this credential may decide, and that has no options: only then a choice is a
# misfit. In all other cases the decision itself reports the error.
ASKS_YES_OR_NO: Final = """
    SELECT EXISTS (SELECT FROM smithers.approvals AS a
        WHERE a.run_id = $1 AND a.node_id = $2 AND a.iteration = $3 AND a.status = 'requested'
            AND a.request::jsonb ->> 'mode' IS NULL AND smithers.is_allowed_v1(a.request::jsonb, $4, $5::text[]))"""

# -- name: send_signals
SEND_SIGNALS: Final = "CALL smithers.signal_and_tell_v4($1::smithers.signal_v1[], NULL)"

# -- name: decide_in_turn
# As decide_approvals for one of them, but it waits for the run's row, and tells nobody.
DECIDE_IN_TURN: Final = """
    SELECT outcome, request, queue, is_owned FROM smithers.decide_approval_v5($1::smithers.decision_v1)"""

# -- name: signal_in_turn
# The same for signals.
SIGNAL_IN_TURN: Final = """
    SELECT outcome, seq, signal_name, correlation_id, received_ms, queue, is_owned
    FROM smithers.send_signal_v2($1, $2, $3, $4, $5, $6)"""

# -- name: cancel_run
CANCEL_RUN: Final = "SELECT outcome, is_owned, queue FROM smithers.cancel_run_v3($1)"

# -- name: resume_run
RESUME_RUN: Final = "SELECT outcome, queue FROM smithers.resume_run_v3($1, $2, $3, $4, $5, $6)"


def open_outside_lane(dsn: str, pool: asyncpg.Pool | None = None) -> OutsideLane:
    """Make the lane of decisions and signals; use decide() and send_signal().

    `pool`: one of its connections at a time may wait for a run's row; None: one that is opened for that.
    """
    in_turn = partial(_write_by_itself, dsn) if pool is None else partial(_write_in_turn, pool)
    return Lane(dsn, role="outside", flush=_write_outside, in_turn=in_turn)


async def decide(lane: OutsideLane, decision: Decision) -> bool:
    """Decide an approval, and notify the run's worker; False: it was decided so before, and nothing was written.

    Raises NodeNotFound, NodeNotWaiting, NotAllowed, DecisionMisfit.
    """
    return cast("bool", await lane.submit(decision))


async def asks_yes_or_no(pool: asyncpg.Pool, decision: Decision) -> bool:
    """Say whether there is an open question without options."""
    place = (decision.run_id, decision.node_id, decision.iteration)
    with driver_errors():
        return bool(await pool.fetchval(ASKS_YES_OR_NO, *place, decision.user, decision.scopes))


async def send_signal(lane: OutsideLane, signal: SignalSent) -> SignalRecord:
    """Record a signal, and notify the run's worker; repeating a `signal_id` returns the first record.

    Raises RunNotFound, RunNotActive.
    """
    return cast("SignalRecord", await lane.submit(signal))


async def cancel_run(pool: asyncpg.Pool, run_id: RunId) -> tuple[CancelOutcome, str | None]:
    """Cancel a run, or ask its owner to; idempotent while that is in progress.

    Also names the queue of a parked run that somebody must claim first, because it has to clean up; else None.
    """
    row = await _fetch_outcome(pool, CANCEL_RUN, run_id)
    outcome = str(row["outcome"])
    if outcome in {"not-found", "not-active"}:
        raise RunNotFound if outcome == "not-found" else RunNotActive
    is_due = outcome == CancelOutcome.REQUESTED and not row["is_owned"]
    return CancelOutcome(outcome), row["queue"] if is_due else None


async def resume_run(pool: asyncpg.Pool, resume: Resume) -> tuple[ResumeOutcome, str]:
    """Open a new era of a failed or cancelled run, or give one that nobody owns its new source; return its queue.

    Raises NothingToResume, RunNotActive.
    """
    row = await _fetch_outcome(
        pool,
        RESUME_RUN,
        resume.run_id,
        resume.source_hash,
        resume.workflow_path,
        resume.workflow_export,
        resume.config,
        resume.changed_files,
    )
    outcome = str(row["outcome"])
    if outcome in {"not-found", "not-active"}:
        raise NothingToResume if outcome == "not-found" else RunNotActive
    return ResumeOutcome(outcome), row["queue"]


async def _write_outside(
    connection: asyncpg.Connection, items: Sequence[Decision | SignalSent]
) -> Sequence[bool | SignalRecord | Exception]:
    decisions = {place: item for place, item in enumerate(items) if isinstance(item, Decision)}
    signals = {place: item for place, item in enumerate(items) if isinstance(item, SignalSent)}
    results: dict[int, bool | SignalRecord | Exception] = {}
    if decisions:
        answers = await _decide_all(connection, [*decisions.values()])
        results.update(zip(decisions, answers, strict=True))
    if signals:
        records = await _send_all(connection, [*signals.values()])
        results.update(zip(signals, records, strict=True))
    return [results[place] for place in range(len(items))]


async def _write_by_itself(dsn: str, item: Decision | SignalSent) -> bool | SignalRecord:
    async with open_connection(dsn, role="outside-long") as connection:
        return await _write_in_turn(connection, item)


async def _write_in_turn(link: Link, item: Decision | SignalSent) -> bool | SignalRecord:
    answer: bool | SignalRecord | Exception
    if isinstance(item, Decision):
        row = await _fetch_outcome(link, DECIDE_IN_TURN, _decision_row(item))
        answer = _decided(row)
    else:
        row = await _fetch_outcome(link, SIGNAL_IN_TURN, *_signal_row(item))
        answer = _sent(row)
    if isinstance(answer, Exception):
        raise answer
    if row["outcome"] in {"decided", "received"}:
        woken = {Channel.NEWS: [item.run_id]} if row["is_owned"] else {Channel.DUE: [row["queue"]]}
        with suppress(StoreError):  # only hints: it is done
            await notify(link, {Channel.EVENTS: [item.run_id], **woken})
    return answer


async def _decide_all(
    connection: asyncpg.Connection, decisions: Sequence[Decision]
) -> list[bool | Exception]:
    rows = await each_on_its_own(connection, decisions, _decide_rows)
    return [row if isinstance(row, Exception) else _decided(row) for row in rows]


async def _decide_rows(
    connection: asyncpg.Connection, decisions: Sequence[Decision]
) -> Sequence[asyncpg.Record]:
    answers: list[asyncpg.Record] = await connection.fetchval(
        DECIDE_APPROVALS, [_decision_row(decision) for decision in decisions]
    )
    return answers


def _decision_row(decision: Decision) -> tuple[object, ...]:
    return (
        decision.run_id,
        decision.node_id,
        decision.iteration,
        decision.is_approved,
        decision.note,
        decision.decided_by,
        decision.decision,
        decision.user,
        decision.scopes,
        decision.is_timeout,
    )


def _decided(row: asyncpg.Record) -> bool | Exception:
    match row["outcome"]:
        case "decided" | "repeated" as outcome:
            return bool(outcome == "decided")
        case "misfit":
            asked = orjson.loads(row["request"])
            return DecisionMisfit(mode=asked["mode"], options=asked["options"])
        case "locked":
            return RowsHeld(HELD)
        case outcome:
            return refuse_at_node(outcome)


async def _send_all(
    connection: asyncpg.Connection, signals: Sequence[SignalSent]
) -> list[SignalRecord | Exception]:
    rows = await each_on_its_own(connection, signals, _send_rows)
    return [row if isinstance(row, Exception) else _sent(row) for row in rows]


async def _send_rows(
    connection: asyncpg.Connection, signals: Sequence[SignalSent]
) -> Sequence[asyncpg.Record]:
    answers: list[asyncpg.Record] = await connection.fetchval(
        SEND_SIGNALS, [_signal_row(signal) for signal in signals]
    )
    return answers


def _signal_row(signal: SignalSent) -> tuple[object, ...]:
    return (
        signal.run_id,
        signal.signal_name,
        signal.correlation_id,
        signal.data,
        signal.received_by,
        signal.signal_id,
    )


def _sent(row: asyncpg.Record) -> SignalRecord | Exception:
    match row["outcome"]:
        case "received" | "repeated" as outcome:
            return SignalRecord(
                is_new=outcome == "received",
                seq=row["seq"],
                signal_name=row["signal_name"],
                correlation_id=row["correlation_id"],
                received_ms=row["received_ms"],
            )
        case "not-found":
            return RunNotFound()
        case "not-active":
            return RunNotActive()
        case "locked":
            return RowsHeld(HELD)
        case outcome:
            return StoreError(f"unexpected outcome {outcome!r} from the database")


async def _fetch_outcome(link: Link, query: str, *values: object) -> asyncpg.Record:
    """Fetch the one row of an outcome; retry after a deadlock.

    A run that ends updates its parent, and asks its children to end: if a parent and a child end concurrently, each may
    wait for the other's row. The deadlock's victim has written nothing.
    """
    for _ in range(DEADLOCK_TRIES - 1):
        with suppress(Deadlocked):
            return await _fetch_row(link, query, *values)
        await asyncio.sleep(DEADLOCK_PAUSE_S)
    return await _fetch_row(link, query, *values)


async def _fetch_row(link: Link, query: str, *values: object) -> asyncpg.Record:
    with driver_errors():
        row: asyncpg.Record | None = await link.fetchrow(query, *values)
    if row is None:
        raise StoreError("a function that always answers one row answered none")
    return row
