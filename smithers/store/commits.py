"""Commit turns and notify others: many runs' changes in one call of `commit_turns_v5`, with an outcome for each run.

The lane gathers turns while the last group is being committed. A run that lost its lease, or whose row a gateway has
locked, does not affect the others; neither does a value that Postgres refuses: the group is then committed run by run,
and only the culprit fails. If the connection broke, it is unknown whether the group was committed: it is sent again, and the
run's row, which has the number of its owner's last commit, distinguishes a repetition.

A group that the database aborts because it takes too long is sent again run by run. A turn that is aborted alone goes over
a connection of its own, with a far longer time-out, and delays nobody; if it is aborted there too, it is refused.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self, assert_never
from uuid import UUID

import asyncpg
import orjson

from smithers.engine.facts import Problem
from smithers.engine.rendering import SPENT
from smithers.engine.turn import ChildStart, Turn
from smithers.errors import CallTooLong, LeaseLost, StoreError, StoreUnavailable
from smithers.events import Envelope, EventType, event_parts
from smithers.ids import WorkerId
from smithers.states import NodeState
from smithers.store.claims import ClaimedRun
from smithers.store.connections import driver_errors
from smithers.store.hints import Channel, pack_hints
from smithers.store.lanes import Lane, one_by_one

RETRY_PAUSE_S: Final = 0.2  # while the database is away
PATIENT_S: Final = 300.0  # for a turn that is too long for a call
LOCKED_PAUSE_S: Final = 0.005  # about the duration of a gateway's commit, which holds the row

# -- name: commit_turns
# One round trip and one flush for all; see migrations/functions/commit_turns_v5.sql for the reason of its order, and
# require_replicated_v1.sql for when it answers.
COMMIT_TURNS: Final = """
CALL smithers.commit_turns_v5(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, NULL, NULL, NULL)"""


class Outcome(StrEnum):
    """The outcome of one run's turn."""

    COMMITTED = "committed"
    STALE = "stale"  # there is news that the plan did not take into account: nothing was written
    LOST = "lost"
    LOCKED = "locked"


class TurnCommit(NamedTuple):
    """A turn, and whose it is."""

    claim: ClaimedRun
    envelope: Envelope
    commit_no: int  # counts this owner's commits of the run, from 1
    frame_no: int
    expected_seq: int | None  # set if news would change the turn: parks, ends
    is_cancelling: bool
    is_cleared: bool  # the attempts in flight when an owner died have ended
    turn: Turn
    has_cleanup: bool = False  # a cancel must let the owner clean up first
    is_told: bool = True  # with a hint that it has new events
    # What to tell besides.
    hints: Mapping[Channel, Collection[str]] = MappingProxyType({})


class Committed(NamedTuple):
    """The database's answer to a turn."""

    outcome: Outcome
    last_seq: int
    now_ms: int


class Committer:
    """A child's only way to write to its runs."""

    def __init__(self, dsn: str, *, worker_id: WorkerId) -> None:
        self._worker_id = worker_id
        self.lane: Lane[TurnCommit, Committed] = Lane(dsn, role="commit", flush=self._flush)
        self.patient_lane: Lane[TurnCommit, Committed] = Lane(
            dsn, role="commit-long", flush=self._flush, max_batch=1, limit_s=PATIENT_S
        )

    async def __aenter__(self) -> Self:
        await self.lane.__aenter__()
        await self.patient_lane.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.patient_lane.__aexit__(*exc)
        await self.lane.__aexit__(*exc)

    async def commit(self, change: TurnCommit) -> Committed:
        """Commit one turn; waits while the database is away.

        Raises LeaseLost if another owner has the run, StoreError if the database refuses the turn's values, or
        cannot commit it within PATIENT_S.
        """
        lane = self.lane
        while True:
            try:
                answer = await lane.submit(change)
            except CallTooLong as error:
                if lane is self.patient_lane:
                    raise StoreError("the turn took too long to commit, alone, too") from error
                lane = self.patient_lane
                continue
            except StoreUnavailable:
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            match answer.outcome:
                case Outcome.LOST:
                    raise LeaseLost(f"run {change.claim.run_id} has another owner")
                case Outcome.LOCKED:
                    await asyncio.sleep(LOCKED_PAUSE_S)
                case Outcome.COMMITTED | Outcome.STALE:
                    return answer
                case _:
                    assert_never(answer.outcome)

    async def _flush(
        self, connection: asyncpg.Connection, changes: Sequence[TurnCommit]
    ) -> Sequence[Committed | Exception]:
        try:
            with driver_errors():
                return await _commit_group(connection, self._worker_id, changes)
        except CallTooLong as error:
            if len(changes) == 1:
                return [error]
            raise StoreUnavailable("a group took too long: each run by itself") from error
        except StoreUnavailable:
            raise
        except StoreError as error:
            if len(changes) == 1:
                return [error]
        return await one_by_one(changes, partial(self._flush, connection))


async def _commit_group(
    connection: asyncpg.Connection, worker_id: UUID, changes: Sequence[TurnCommit]
) -> list[Committed | Exception]:
    rows = _Rows()
    for number, change in enumerate(changes, start=1):
        try:
            rows.add(number, change)
        except (TypeError, ValueError) as error:  # an unpaired surrogate, which UTF-8 cannot encode
            raise StoreError(
                f"a value of run {change.claim.run_id} is not JSON: {error}"
            ) from error
    answer = await connection.fetchrow(
        COMMIT_TURNS, worker_id, *rows.columns(), *pack_hints(_hints(changes))
    )
    assert answer is not None
    now_ms = answer["now_ms"]
    return [
        Committed(Outcome(outcome), last_seq, now_ms)
        for outcome, last_seq in zip(answer["outcomes"], answer["last_seqs"], strict=True)
    ]


def _hints(changes: Sequence[TurnCommit]) -> dict[Channel, set[str]]:
    """Return the group's hints; a hint about an uncommitted turn leads to nothing new."""
    hints: dict[Channel, set[str]] = {Channel.EVENTS: set()}
    for change in changes:
        if change.is_told:
            hints[Channel.EVENTS].add(change.claim.run_id)
        for channel, names in change.hints.items():
            hints.setdefault(channel, set()).update(names)
    return hints


class _Rows:
    """A group's changes as the function's arrays; the order of fields is that of its types."""

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.nodes: list[tuple[Any, ...]] = []
        self.attempts: list[tuple[Any, ...]] = []
        self.frames: list[tuple[Any, ...]] = []
        self.loops: list[tuple[Any, ...]] = []
        self.approvals: list[tuple[Any, ...]] = []
        self.signals: list[tuple[Any, ...]] = []
        self.tries: list[tuple[Any, ...]] = []
        self.tool_calls: list[tuple[Any, ...]] = []
        self.successors: list[tuple[Any, ...]] = []
        self.abandoned: list[tuple[Any, ...]] = []
        self.children: list[tuple[Any, ...]] = []
        self.cached: list[tuple[Any, ...]] = []

    def columns(self) -> tuple[list[tuple[Any, ...]] | None, ...]:
        # Most are empty, and the driver inspects an empty array, but not a null.
        return (
            self.runs,
            self.events or None,
            self.nodes or None,
            self.attempts or None,
            self.frames or None,
            self.loops or None,
            self.approvals or None,
            self.signals or None,
            self.tries or None,
            self.tool_calls or None,
            # The function's FOREACH takes no null, and applies them in this order. A child that its parent abandons may
            # continue as new in the same group: then its continuation is there to be cancelled. One that its parent abandons
            # and starts again in one turn is cancelled first.
            [*self.successors, *self.abandoned, *self.children],
            self.cached or None,
        )

    def add(self, number: int, change: TurnCommit) -> None:
        turn, run_id = change.turn, change.claim.run_id
        self._add_run(change)
        ending = turn.ending
        events = turn.events if ending is None else [*turn.events, *ending.events]
        for event_no, (event_type, fields) in enumerate(events, start=1):
            head, tail = event_parts(event_type, change.envelope, fields)
            self.events.append((number, run_id, event_no, head, tail))
        self._add_nodes(number, change)
        for end in turn.attempts:
            error = end.error and problem_json(end.error)
            self.attempts.append(
                (number, run_id, *end.key, end.attempt, end.state, end.started_ms, error)
            )
        if turn.frame is not None:
            self.frames.append((number, run_id, *turn.frame))
        for loop_id, loop in turn.loops.items():
            self.loops.append((number, run_id, loop_id, loop.iteration, loop.is_done))
        for try_id, place in turn.tries.items():
            problem = place.problem and problem_json(place.problem)
            self.tries.append((number, run_id, try_id, place.phase, place.is_done, problem))
        # Asked and withdrawn in one turn is one change of one row.
        for approval in {change.key: change for change in turn.approvals}.values():
            status = "cancelled" if approval.request is None else "requested"
            request = approval.request or "{}"
            self.approvals.append((number, run_id, *approval.key, status, request, None, None))
        for seq, key in turn.signals:
            self.signals.append((number, run_id, seq, *key))
        for (key, attempt, _), call in turn.tool_calls.items():
            self.tool_calls.append((number, run_id, *key, attempt, *call))
        self._add_children(number, change)
        for cached in turn.cached:
            of_node = (cached.key.node_id, cached.cache_key, cached.output, cached.ttl_ms)
            self.cached.append((number, run_id, *of_node))

    def _add_run(self, change: TurnCommit) -> None:
        turn, ending = change.turn, change.turn.ending
        output, error = (None, None) if ending is None else (ending.output, ending.error)
        count = len(turn.events) + (0 if ending is None else len(ending.events))
        self.runs.append(
            (
                change.claim.run_id,
                change.claim.epoch,
                change.commit_no,
                change.expected_seq,
                change.is_cancelling,
                turn.status if ending is None else ending.status,
                ending is not None,
                None if ending is None else ending.due_ms,
                count,
                change.frame_no,
                change.is_cleared,
                error and problem_json(error),
                None if output is None else output.node_id,
                None if output is None else output.iteration,
                change.has_cleanup or None,
            )
        )

    def _add_children(self, number: int, change: TurnCommit) -> None:
        turn, ending = change.turn, change.turn.ending
        for key in turn.abandoned:
            self.abandoned.append((number, change.claim.run_id, *key, None, True, *[None] * 13))
        if ending is not None and ending.successor is not None:
            self.successors.append(_child_row(number, change, ending.successor))
        for child in turn.children:
            self.children.append(_child_row(number, change, child))

    def _add_nodes(self, number: int, change: TurnCommit) -> None:
        run_id, started = change.claim.run_id, change.turn.started
        for key, fact in change.turn.nodes.items():
            self.nodes.append(
                (
                    number,
                    run_id,
                    *key,
                    fact.kind,
                    fact.label,
                    fact.state,
                    fact.attempt,
                    fact.failures,
                    key in started or fact.state.is_waiting,
                    fact.state.is_settled or fact.state is NodeState.CANCELLED,
                    fact.due_ms,
                    fact.wait,
                    fact.loop,
                    fact.heartbeat,
                    fact.output,
                    fact.error and problem_json(fact.error),
                )
            )


def _child_row(number: int, change: TurnCommit, child: ChildStart) -> tuple[Any, ...]:
    claim = change.claim
    envelope = Envelope.of(child.run_id, child.workflow_name)
    return (
        number,
        claim.run_id,
        *(child.key or (None, None)),
        child.run_id,
        False,
        child.workflow_name,
        claim.workflow_path,
        child.workflow_export or claim.workflow_export,
        claim.source_hash,
        child.input or claim.input,
        _config_of(child, claim),
        claim.auth,
        claim.trace_context,
        child.carried,
        child.queue,
        child.is_solo,
        *event_parts(EventType.RUN_STARTED, envelope, {}),
    )


def _config_of(child: ChildStart, claim: ClaimedRun) -> str:
    """Return a run's config for another: the spent budget is passed to its continuation, not to children."""
    config = orjson.loads(claim.config)
    config.pop(SPENT, None)
    if child.spent is not None:
        config[SPENT] = child.spent.to_wire()
    return orjson.dumps(config).decode()


def problem_json(problem: Problem) -> str:
    """Return a problem as stored: the API's fields, and the traceback for operators."""
    kept = problem.to_wire()
    if problem.traceback is not None:
        kept["traceback"] = problem.traceback
    return orjson.dumps(kept).decode()
