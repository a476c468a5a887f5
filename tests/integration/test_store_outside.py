"""Races of what comes from outside, over connections of their own: one outcome, and answers, events and rows agree on it."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
import pytest

from smithers.engine.facts import NodeFact
from smithers.engine.turn import ApprovalChange, Ending, EventDraft, Turn
from smithers.events import EventType
from smithers.ids import NodeId, RunId, WorkerId
from smithers.states import NodeState, RunStatus
from smithers.store import claims
from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.commits import Committer, Outcome
from smithers.store.connections import open_pool
from smithers.store.outside import (
    CancelOutcome,
    Decision,
    OutsideLane,
    Resume,
    ResumeOutcome,
    SignalSent,
    cancel_run,
    decide,
    open_outside_lane,
    resume_run,
    send_signal,
)
from smithers.store.refusals import NodeNotWaiting, RunNotActive
from smithers.store.starts import open_start_lane
from tests.support.turns import LOG, Ground, a_start, change, ended, key_of, names, parked, seeded

ROUNDS = 200


@dataclass(frozen=True)
class Door:
    """What one gateway has to write with."""

    lane: OutsideLane
    pool: asyncpg.Pool

    async def decide(self, run_id: str, *, is_approved: bool) -> bool:
        return await decide(
            self.lane,
            Decision(
                run_id=RunId(run_id),
                node_id=NodeId("ok"),
                iteration=0,
                is_approved=is_approved,
                note=None,
                decided_by="x",
                decision=None,
                user=None,
                scopes=None,
            ),
        )

    async def send(self, run_id: str, signal_id: str, data: Any) -> int:
        signal = SignalSent(
            run_id=RunId(run_id),
            signal_name="s",
            correlation_id=None,
            data=orjson.dumps(data).decode(),
            received_by=None,
            signal_id=signal_id,
        )
        return (await send_signal(self.lane, signal)).seq

    async def cancel(self, run_id: str) -> CancelOutcome:
        outcome, _ = await cancel_run(self.pool, RunId(run_id))
        return outcome

    async def resume(self, run_id: str) -> ResumeOutcome:
        nothing_new = dict.fromkeys(
            ("source_hash", "workflow_path", "workflow_export", "config", "changed_files")
        )
        outcome, _ = await resume_run(self.pool, Resume(run_id=RunId(run_id), **nothing_new))
        return outcome


@pytest.fixture
async def ground(database: str) -> AsyncIterator[Ground]:
    async with Ground(database) as ground:
        yield ground


@pytest.fixture
async def doors(database: str) -> AsyncIterator[list[Door]]:
    """Three gateways."""
    async with AsyncExitStack() as stack:
        yield [
            Door(
                await stack.enter_async_context(open_outside_lane(database)),
                await stack.enter_async_context(open_pool(database, role="test", max_size=2)),
            )
            for _ in range(3)
        ]


@pytest.fixture
async def worker(ground: Ground) -> WorkerId:
    return await ground.add_worker()


@pytest.fixture
async def committer(ground: Ground, worker: WorkerId) -> AsyncIterator[Committer]:
    async with Committer(ground.dsn, worker_id=worker) as committer:
        yield committer


async def race(rng: random.Random, **racers: Any) -> dict[str, Any]:
    """Let them run at once, started in any order; give what each answered or raised."""
    order = rng.sample(list(racers), len(racers))
    answers = await asyncio.gather(*(racers[name] for name in order), return_exceptions=True)
    return dict(zip(order, answers, strict=True))


def is_or_raised(answer: Any, kind: type, refusal: type[Exception]) -> bool:
    """Say whether it is an answer; anything but the one refusal breaks the test."""
    if isinstance(answer, kind):
        return True
    assert isinstance(answer, refusal), repr(answer)
    return False


async def test_of_approve_deny_and_cancel_one_decision_stands_at_most_and_never_after_the_cancel(
    ground, worker, committer, doors
):
    rng, seen = seeded(), Counter()
    waiting = {key_of("ok"): NodeFact(NodeState.WAITING_APPROVAL, "approval")}
    asked = [ApprovalChange(key_of("ok"), '{"title":"?"}')]
    ending = parked(RunStatus.WAITING_APPROVAL).ending
    turn = Turn(nodes=waiting, approvals=asked, ending=ending)
    claimed = await ground.owned(worker, *names(ROUNDS))
    await asyncio.gather(*(committer.commit(change(claim, turn)) for claim in claimed))
    for run_id in names(ROUNDS):
        answers = await race(
            rng,
            approved=doors[0].decide(run_id, is_approved=True),
            denied=doors[1].decide(run_id, is_approved=False),
            cancelled=doors[2].cancel(run_id),
        )
        assert answers["cancelled"] is CancelOutcome.CANCELLED
        won = [
            name
            for name in ("approved", "denied")
            if is_or_raised(answers[name], bool, NodeNotWaiting)
        ]
        assert len(won) <= 1
        (approval,) = await ground.rows("approvals", run_id)
        assert approval["status"] == (won[0] if won else "cancelled")
        types = await ground.types(run_id)
        decided = {"approved": ["ApprovalGranted"], "denied": ["ApprovalDenied"]}
        assert types[2:] == [*(decided[won[0]] if won else []), "NodeCancelled", "RunCancelled"]
        assert (await ground.run(run_id))["status"] == "cancelled"
        seen[won[0] if won else "cancelled"] += 1
    LOG.warning("first were %s", dict(seen))


async def finish(committer: Committer, claim: ClaimedRun) -> RunStatus:
    """End a run as its owner does: as finished, or, where a cancel came before, as cancelled."""
    if (await committer.commit(change(claim, ended()))).outcome is Outcome.COMMITTED:
        return RunStatus.FINISHED
    end = change(claim, ended(RunStatus.CANCELLED), 2, is_cancelling=True)
    assert (await committer.commit(end)).outcome is Outcome.COMMITTED
    return RunStatus.CANCELLED


async def test_a_cancel_and_the_end_of_a_run_agree_on_which_was_first(
    ground, worker, committer, doors
):
    rng, seen = seeded(), Counter()
    for claim in await ground.owned(worker, *names(ROUNDS)):
        answers = await race(
            rng, cancel=doors[0].cancel(claim.run_id), end=finish(committer, claim)
        )
        is_cancelled = is_or_raised(answers["cancel"], CancelOutcome, RunNotActive)
        wanted = RunStatus.CANCELLED if is_cancelled else RunStatus.FINISHED
        row = await ground.run(claim.run_id)
        assert (answers["end"], row["status"]) == (wanted, wanted)
        assert await ground.ends(claim.run_id) == [
            "RunCancelled" if is_cancelled else "RunFinished"
        ]
        seen[wanted] += 1
    LOG.warning("they ended as %s", dict(seen))


async def test_a_cancel_of_a_run_that_is_being_claimed_ends_it_or_is_told_to_its_owner(
    ground, worker, doors
):
    rng, claiming = seeded(), await ground.connect()
    for run_id in names(100):
        await ground.start(run_id)
        answers = await race(
            rng,
            cancel=doors[0].cancel(run_id),
            claim=claims.claim_runs(
                claiming, worker_id=worker, queue="default", limit=1, kind=ClaimKind.MANY
            ),
        )
        if answers["cancel"] is CancelOutcome.CANCELLED:
            assert answers["claim"] == []
            assert await ground.types(run_id) == ["RunStarted", "RunCancelled"]
        else:
            (claim,) = answers["claim"]
            assert claim.is_cancelling or await claims.find_news(
                claiming, worker, {claim.run_id: 0}
            )
            assert await ground.types(run_id) == ["RunStarted"]


async def test_a_cancel_hits_the_new_era_or_nothing_when_it_races_a_resume(
    ground, worker, committer, doors
):
    rng, seen = seeded(), Counter()
    claimed = await ground.owned(worker, *names(ROUNDS))
    failed = ended(RunStatus.FAILED)
    await asyncio.gather(*(committer.commit(change(claim, failed)) for claim in claimed))
    for run_id in names(ROUNDS):
        answers = await race(
            rng,
            resume=doors[0].resume(run_id),
            again=doors[1].resume(run_id),
            cancel=doors[2].cancel(run_id),
        )
        is_cancelled = is_or_raised(answers["cancel"], CancelOutcome, RunNotActive)
        eras = [answers["resume"], answers["again"]].count(ResumeOutcome.RESUMED)
        row, types = await ground.run(run_id), (await ground.types(run_id))[2:]
        assert row["era"] == eras == types.count("RunStatusChanged")
        assert types.count("RunCancelled") == is_cancelled
        assert row["status"] == ("cancelled" if types[-1] == "RunCancelled" else "queued")
        assert (row["due_at"] is None) == (row["status"] == "cancelled")
        seen[" ".join(types)] += 1
    LOG.warning("histories were %s", dict(seen))


async def send_share(door: list[Door], rng: random.Random, share: list[int]) -> dict[int, int]:
    """Send signals one after another, each twice at once through two gateways; give the number of each."""
    numbers: dict[int, int] = {}
    for data in share:
        one, two = rng.sample(door, 2)
        first, second = await asyncio.gather(
            one.send("a", f"id{data}", data), two.send("a", f"id{data}", data)
        )
        assert first == second
        numbers[data] = first
    return numbers


async def test_each_signal_is_kept_once_in_the_order_of_the_answers_also_before_its_wait(
    ground, worker, committer, doors
):
    rng = seeded()
    (claim,) = await ground.owned(worker, "a")
    shares = [list(range(sender, 500, 5)) for sender in range(5)]
    sent: dict[int, int] = {}
    for half in (slice(0, 50), slice(50, 100)):
        if half.start:
            news = await claims.load_news(ground.sql, claim.run_id)
            waits = {key_of("w"): NodeFact(NodeState.WAITING_EVENT, "signal")}
            park = Ending(
                status=RunStatus.WAITING_EVENT,
                events=(EventDraft(EventType.RUN_STATUS_CHANGED, {}),),
            )
            turn = Turn(nodes=waits, ending=park)
            answer = await committer.commit(change(claim, turn, expected_seq=news.last_seq))
            assert answer.outcome is Outcome.COMMITTED
        answers = await asyncio.gather(*(send_share(doors, rng, share[half]) for share in shares))
        for numbers in answers:
            assert list(numbers.values()) == sorted(numbers.values())
            sent |= numbers
    assert sorted(sent.values()) == list(range(500))
    (again,) = await ground.claim(worker)
    news = await claims.load_news(ground.sql, again.run_id)
    assert {signal.seq: orjson.loads(signal.data) for signal in news.signals} == {
        seq: data for data, seq in sent.items()
    }
    told = [
        event["seq"] for event in await ground.history("a") if event["type"] == "SignalReceived"
    ]
    assert told == list(range(500))


async def test_of_starts_with_one_id_one_wins_and_nothing_of_the_others_is_kept(ground):
    async with AsyncExitStack() as stack:
        lanes = [await stack.enter_async_context(open_start_lane(ground.dsn)) for _ in range(4)]
        for run_id in names(25):
            starts = [a_start(run_id, input=str(number)) for number in range(20)]
            wins = await asyncio.gather(
                *(lanes[number % 4].submit(start) for number, start in enumerate(starts))
            )
            assert wins.count(True) == 1
            (request,) = await ground.rows("run_requests", run_id)
            assert request["input"] == str(wins.index(True))
            assert await ground.types(run_id) == ["RunStarted"]


async def test_two_gateways_that_write_to_the_same_runs_at_once_never_lock_each_other_out(
    ground, doors
):
    """Batches take their runs in one order: in any other, two of them end in a deadlock."""
    rng, ids = seeded(), names(40)
    await ground.start(*ids)
    for number in range(10):
        await asyncio.gather(
            *(
                door.send(run_id, f"{place}-{number}", number)
                for place, door in enumerate(doors)
                for run_id in rng.sample(ids, len(ids))
            )
        )
    for run_id in ids:
        assert len(await ground.history(run_id)) == 1 + 10 * len(doors)
