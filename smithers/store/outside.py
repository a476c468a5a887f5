"""What comes from outside and changes a run: decisions, signals, cancels, resumes.

Each is one call of one SQL function, which takes the run's row first, reads under the lock, writes, and wakes the run in
the same transaction. Who wins a race is decided there; here its word becomes a value or an exception. Decisions and
signals share a lane: what piles up goes in one transaction, in the order of run ids, so that two gateways never deadlock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, cast

import asyncpg
import orjson

from smithers.errors import StoreError
from smithers.ids import NodeId, RunId, SourceHash
from smithers.store.connections import driver_errors
from smithers.store.lanes import Lane
from smithers.store.refusals import (
    DecisionMisfit,
    NodeNotFound,
    NodeNotWaiting,
    NotAllowed,
    NothingToResume,
    RunNotActive,
    RunNotFound,
)
from smithers.store.starts import each_on_its_own


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An answer to an approval; `user` and `scopes` are the credential's, None where the server has none."""

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
    """A signal as its sender put it."""

    run_id: RunId
    signal_name: str
    correlation_id: str | None
    data: str  # JSON
    received_by: str | None
    signal_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Whom to tell: the run's owner, or, where nobody owns it, whoever claims from its queue."""

    is_new: bool  # false: it was recorded before, and nothing was written
    queue: str | None
    is_owned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRecord:
    """A signal as it stands in the run's row of signals."""

    wake: Wake
    seq: int  # numbers the run's signals from 0
    signal_name: str
    correlation_id: str | None
    received_ms: int


class CancelOutcome(StrEnum):
    """How far a cancel got at once."""

    CANCELLED = "cancelled"  # nobody held the run: it has ended
    REQUESTED = (
        "requested"  # its owner, or who claims it next, must end it, and may commit no other end
    )


class ResumeOutcome(StrEnum):
    """What a resume found."""

    RESUMED = "resumed"
    ACTIVE = "active"  # on its way, or goes on by itself
    FINISHED = "finished"  # nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What a resume may change; None keeps what the run has."""

    run_id: RunId
    source_hash: SourceHash | None
    workflow_path: str | None
    workflow_export: str | None
    config: str | None
    changed_files: str | None  # JSON


OutsideLane = Lane[Decision | SignalSent, Wake | SignalRecord]

# -- name: decide_approvals
# A statement in a volatile function has its own snapshot, so that each sees what those before it in the batch did.
# An empty text of scopes is an empty array: a credential without scopes, not the absence of credentials.
DECIDE_APPROVALS: Final = """
    SELECT o.outcome, o.queue, o.is_owned, o.request
    FROM unnest($1::text[], $2::text[], $3::integer[], $4::boolean[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::boolean[]) WITH ORDINALITY
        AS d(run_id, node_id, iteration, is_approved, note, decided_by, decision, user_name, scopes, is_timeout, n),
    LATERAL smithers.decide_approval_v2(d.run_id, d.node_id, d.iteration, d.is_approved, d.note, d.decided_by,
        d.decision, d.user_name, string_to_array(d.scopes, ' '), d.is_timeout) AS o
    ORDER BY d.n"""

# -- name: send_signals
SEND_SIGNALS: Final = """
    SELECT o.outcome, o.queue, o.is_owned, o.seq, o.signal_name, o.correlation_id, o.received_ms
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) WITH ORDINALITY
        AS s(run_id, signal_name, correlation_id, data, received_by, signal_id, n),
    LATERAL smithers.send_signal_v1(s.run_id, s.signal_name, s.correlation_id, s.data, s.received_by, s.signal_id) AS o
    ORDER BY s.n"""

# -- name: cancel_run
CANCEL_RUN: Final = "SELECT outcome, is_owned, queue FROM smithers.cancel_run_v2($1)"

# -- name: resume_run
RESUME_RUN: Final = "SELECT outcome, queue FROM smithers.resume_run_v1($1, $2, $3, $4, $5, $6)"


def open_outside_lane(dsn: str) -> OutsideLane:
    """Make the lane of decisions and signals; use decide() and send_signal()."""
    return Lane(dsn, role="outside", flush=_write_outside)


async def decide(lane: OutsideLane, decision: Decision) -> Wake:
    """Decide an approval; raises NodeNotFound, NodeNotWaiting, NotAllowed, DecisionMisfit."""
    return cast("Wake", await lane.submit(decision))


async def send_signal(lane: OutsideLane, signal: SignalSent) -> SignalRecord:
    """Record a signal; the same `signal_id` again answers the first. Raises RunNotFound, RunNotActive."""
    return cast("SignalRecord", await lane.submit(signal))


async def cancel_run(pool: asyncpg.Pool, run_id: RunId) -> tuple[CancelOutcome, str | None]:
    """Cancel a run, or ask its owner to; again while that is under way is the same.

    Also names the queue of a parked run that somebody must claim first, because it has to clean up; else None.
    """
    with driver_errors():
        row = await pool.fetchrow(CANCEL_RUN, run_id)
    outcome = _word(row)
    if row is None or outcome in {"not-found", "not-active"}:
        raise RunNotFound if outcome == "not-found" else RunNotActive
    is_due = outcome == CancelOutcome.REQUESTED and not row["is_owned"]
    return CancelOutcome(outcome), row["queue"] if is_due else None


async def resume_run(pool: asyncpg.Pool, resume: Resume) -> tuple[ResumeOutcome, str]:
    """Open a new era of a failed or cancelled run, or give a parked one its new source; name its queue.

    Raises NothingToResume, RunNotActive.
    """
    with driver_errors():
        row = await pool.fetchrow(
            RESUME_RUN,
            resume.run_id,
            resume.source_hash,
            resume.workflow_path,
            resume.workflow_export,
            resume.config,
            resume.changed_files,
        )
    outcome = _word(row)
    if row is None or outcome in {"not-found", "not-active"}:
        raise NothingToResume if outcome == "not-found" else RunNotActive
    return ResumeOutcome(outcome), row["queue"]


async def _write_outside(
    connection: asyncpg.Connection, items: Sequence[Decision | SignalSent]
) -> Sequence[Wake | SignalRecord | Exception]:
    order = sorted(range(len(items)), key=lambda index: items[index].run_id)
    decisions = [index for index in order if isinstance(items[index], Decision)]
    signals = [index for index in order if isinstance(items[index], SignalSent)]
    results: dict[int, Wake | SignalRecord | Exception] = {}
    if decisions:
        asked = cast("list[Decision]", [items[index] for index in decisions])
        results.update(zip(decisions, await _decide_all(connection, asked), strict=True))
    if signals:
        sent = cast("list[SignalSent]", [items[index] for index in signals])
        results.update(zip(signals, await _send_all(connection, sent), strict=True))
    return [results[index] for index in range(len(items))]


async def _decide_all(
    connection: asyncpg.Connection, decisions: Sequence[Decision]
) -> list[Wake | Exception]:
    rows = await each_on_its_own(connection, decisions, _decide_rows)
    return [row if isinstance(row, Exception) else _decided(row) for row in rows]


async def _decide_rows(
    connection: asyncpg.Connection, decisions: Sequence[Decision]
) -> Sequence[asyncpg.Record]:
    return await connection.fetch(
        DECIDE_APPROVALS,
        [item.run_id for item in decisions],
        [item.node_id for item in decisions],
        [item.iteration for item in decisions],
        [item.is_approved for item in decisions],
        [item.note for item in decisions],
        [item.decided_by for item in decisions],
        [item.decision for item in decisions],
        [item.user for item in decisions],
        [None if item.scopes is None else " ".join(item.scopes) for item in decisions],
        [item.is_timeout for item in decisions],
    )


def _decided(row: asyncpg.Record) -> Wake | Exception:
    match row["outcome"]:
        case "decided":
            return Wake(is_new=True, queue=row["queue"], is_owned=row["is_owned"])
        case "repeated":
            return Wake(is_new=False, queue=None, is_owned=False)
        case "misfit":
            asked = orjson.loads(row["request"])
            return DecisionMisfit(mode=asked["mode"], options=asked["options"])
        case outcome:
            return _refusal(outcome)


def _refusal(outcome: str) -> Exception:
    match outcome:
        case "not-found":
            return NodeNotFound()
        case "not-waiting":
            return NodeNotWaiting()
        case "forbidden":
            return NotAllowed()
        case _:
            return StoreError(f"a decision was answered with {outcome!r}")


async def _send_all(
    connection: asyncpg.Connection, signals: Sequence[SignalSent]
) -> list[SignalRecord | Exception]:
    rows = await each_on_its_own(connection, signals, _send_rows)
    return [row if isinstance(row, Exception) else _sent(row) for row in rows]


async def _send_rows(
    connection: asyncpg.Connection, signals: Sequence[SignalSent]
) -> Sequence[asyncpg.Record]:
    return await connection.fetch(
        SEND_SIGNALS,
        [item.run_id for item in signals],
        [item.signal_name for item in signals],
        [item.correlation_id for item in signals],
        [item.data for item in signals],
        [item.received_by for item in signals],
        [item.signal_id for item in signals],
    )


def _sent(row: asyncpg.Record) -> SignalRecord | Exception:
    match row["outcome"]:
        case "received" | "repeated" as outcome:
            is_new = outcome == "received"
            return SignalRecord(
                wake=Wake(is_new=is_new, queue=row["queue"], is_owned=bool(row["is_owned"])),
                seq=row["seq"],
                signal_name=row["signal_name"],
                correlation_id=row["correlation_id"],
                received_ms=row["received_ms"],
            )
        case "not-found":
            return RunNotFound()
        case "not-active":
            return RunNotActive()
        case outcome:
            return StoreError(f"send_signal_v1 answered {outcome!r}")


def _word(row: asyncpg.Record | None) -> str:
    if row is None:
        raise StoreError("a function that always answers one row answered none")
    return str(row["outcome"])
