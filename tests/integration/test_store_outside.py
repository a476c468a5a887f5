"""Races of what comes from outside, over connections of their own: one outcome, and answers, events and rows agree on it."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import asyncpg
import orjson
import pytest

from smithers.engine.facts import NodeFact
from smithers.engine.questions import TIMEOUT_USER
from smithers.engine.turn import ApprovalChange, ChildStart, Ending, EventDraft
from smithers.errors import RowsHeld
from smithers.events import EventType
from smithers.ids import NodeId, RunId, WorkerId
from smithers.states import ApprovalStatus, NodeState, RunStatus
from smithers.store import claims, lanes, run_facts
from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.commits import Committer, Outcome
from smithers.store.connections import open_pool
from smithers.store.forms import Answer, answer_form
from smithers.store.hints import Channel
from smithers.store.node_reads import list_approvals
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
from smithers.store.refusals import NodeNotFound, NodeNotWaiting, RunNotActive
from smithers.store.starts import open_start_lane, start_unique
from smithers.store.worker_store import open_worker_store
from tests.support.turns import (
    LOG,
    Ground,
    a_start,
    a_turn,
    change,
    ended,
    hear,
    key_of,
    names,
    parked,
    said,
    seeded,
)

ROUNDS = 200
LOCK = "SELECT FROM smithers.runs WHERE run_id = $1 FOR NO KEY UPDATE"


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
async def doors(database: str) -> AsyncIterator[list[Door]]:
    """Three gateways."""
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(open_pool(database, role="test", max_size=2))
            for _ in range(3)
        ]
        yield [
            Door(await stack.enter_async_context(open_outside_lane(database, pool)), pool)
            for pool in pools
        ]


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
    rng = seeded()
    seen: Counter[Any] = Counter()
    waiting = {key_of("ok"): NodeFact(NodeState.WAITING_APPROVAL, "approval")}
    asked = [ApprovalChange(key_of("ok"), '{"title":"?"}')]
    ending = parked(RunStatus.WAITING_APPROVAL).ending
    turn = a_turn(nodes=waiting, approvals=asked, ending=ending)
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
    rng = seeded()
    seen: Counter[Any] = Counter()
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
    rng = seeded()
    seen: Counter[Any] = Counter()
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
            news = await run_facts.load_news(ground.sql, RunId("a"), after_seq=0, after_signal=-1)
            assert news is not None
            waits = {key_of("w"): NodeFact(NodeState.WAITING_EVENT, "signal")}
            park = Ending(
                status=RunStatus.WAITING_EVENT,
                events=(EventDraft(EventType.RUN_STATUS_CHANGED, {}),),
            )
            turn = a_turn(nodes=waits, ending=park)
            answer = await committer.commit(change(claim, turn, expected_seq=news.last_seq))
            assert answer.outcome is Outcome.COMMITTED
        answers = await asyncio.gather(*(send_share(doors, rng, share[half]) for share in shares))
        for numbers in answers:
            assert list(numbers.values()) == sorted(numbers.values())
            sent |= numbers
    assert sorted(sent.values()) == list(range(500))
    assert len(await ground.claim(worker)) == 1
    news = await run_facts.load_news(ground.sql, RunId("a"), after_seq=0, after_signal=-1)
    assert news is not None
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


async def test_a_cancelled_run_shuts_out_whoever_had_it(ground, worker, doors):
    (claim,) = await ground.owned(worker, "a")
    await claims.release_runs(ground.sql, worker, [claim.run_id])
    before = (await ground.run("a"))["epoch"]
    assert await doors[0].cancel("a") is CancelOutcome.CANCELLED
    assert (await ground.run("a"))["epoch"] == before + 1


async def test_a_run_that_was_claimed_while_it_waited_is_not_given_another_source(
    ground, worker, committer, doors
):
    (claim,) = await ground.owned(worker, "a")
    await committer.commit(change(claim, parked()))
    await ground.sql.execute("UPDATE smithers.runs SET due_at = smithers.clock()")
    (taken,) = await ground.claim(worker)
    assert taken.status_before is RunStatus.WAITING_EVENT
    before = dict(await ground.run("a"))
    row = await ground.sql.fetchrow(
        "SELECT * FROM smithers.resume_run_v3('a', 'other', 'other.py', NULL, NULL, NULL)"
    )
    assert row["outcome"] == "active"
    assert dict(await ground.run("a")) == before
    (request,) = await ground.rows("run_requests", "a")
    assert request["source_hash"] == "none"


async def test_a_run_that_nobody_owns_yet_is_given_another_source(ground, worker):
    await ground.start("a")
    row = await ground.sql.fetchrow(
        "SELECT * FROM smithers.resume_run_v3('a', 'other', 'other.py', NULL, NULL, NULL)"
    )
    assert row["outcome"] == "resumed"
    # A claim that is under way, and has read the old source, finds the run due no more.
    assert await ground.claim(worker) == []
    await ground.until("SELECT due_at <= smithers.clock() FROM smithers.runs")
    (claim,) = await ground.claim(worker)
    assert (claim.source_hash, claim.status_before) == ("other", RunStatus.QUEUED)
    assert await ground.types("a") == ["RunStarted", "WorkflowReloaded"]


async def test_a_resume_changes_what_it_names_of_the_configuration(ground, worker):
    await ground.start("a")
    await ground.sql.execute("UPDATE smithers.runs SET status = 'failed', due_at = NULL")
    known = '{"maxConcurrency": 1, "budget": {"tokens": 10}, "spent": {"tokens": 4}}'
    await ground.sql.execute("UPDATE smithers.run_requests SET config = $1", known)
    row = await ground.sql.fetchrow(
        """SELECT * FROM smithers.resume_run_v3('a', NULL, NULL, NULL, '{"maxConcurrency": 4}', NULL)"""
    )
    assert row["outcome"] == "resumed"
    (claim,) = await ground.claim(worker)
    assert json.loads(claim.config) == {**json.loads(known), "maxConcurrency": 4}


async def test_a_resumed_run_begins_again_without_failures_or_suspicion(
    ground, worker, committer, doors
):
    (claim,) = await ground.owned(worker, "a")
    failed = NodeFact(NodeState.FAILED, attempt=3, failures=3)
    turn = ended(RunStatus.FAILED)
    turn.nodes[key_of("n")] = failed
    await committer.commit(change(claim, turn))
    await ground.sql.execute("UPDATE smithers.runs SET crash_count = 2")
    assert await doors[0].resume("a") is ResumeOutcome.RESUMED
    (node,) = await ground.rows("nodes", "a")
    assert (node["state"], node["attempt"], node["failures"]) == ("pending", 3, 0)
    row = await ground.run("a")
    assert (row["crash_count"], row["era"]) == (0, 1)


@pytest.mark.parametrize("asked", ["{}", '{"mode": "form"}'], ids=["approval", "form"])
async def test_of_a_run_that_has_ended_nothing_is_decided_before_a_resume(
    ground, worker, committer, doors, asked: str
):
    async def answer(door: Door) -> bool:
        if asked == "{}":
            return await door.decide("a", is_approved=True)
        told = dict.fromkeys(("answered_by", "user", "scopes"))
        form = Answer(run_id=RunId("a"), node_id=NodeId("ok"), iteration=0, value="1", **told)
        return (await answer_form(door.pool, form, asked)).is_new

    (claim,) = await ground.owned(worker, "a")
    # As a run fails whose rows could not be read: its question is not withdrawn.
    turn = ended(RunStatus.FAILED)
    turn.approvals.append(ApprovalChange(key_of("ok"), asked))
    turn.nodes[key_of("ok")] = NodeFact(NodeState.WAITING_APPROVAL)
    await committer.commit(change(claim, turn))
    with pytest.raises(NodeNotWaiting):
        await answer(doors[0])
    with pytest.raises(RunNotActive):
        await doors[0].send("a", "s1", 1)
    assert await open_questions(doors[0]) == []
    assert await ground.ends("a") == ["RunFailed"]
    assert (await ground.run("a"))["due_at"] is None

    await doors[0].resume("a")
    assert await open_questions(doors[0]) == ["ok"]
    assert await answer(doors[0])
    assert not await answer(doors[1])
    (claim,) = await ground.claim(worker)
    (loaded,) = await run_facts.load_runs(ground.sql, [claim.run_id])
    assert isinstance(loaded, run_facts.LoadedRun)
    assert loaded.news.approvals[key_of("ok")].status is ApprovalStatus.APPROVED


async def open_questions(door: Door) -> list[str]:
    found, _ = await list_approvals(door.pool, after=None, limit=10, page_bytes=1 << 20)
    return [one.node_id for one in found]


async def test_a_run_that_another_writes_to_holds_up_no_other(
    ground: Ground, doors: list[Door], worker: WorkerId
) -> None:
    await ground.start("held", "free")
    writing = await ground.connect()
    async with writing.transaction():
        await writing.execute(LOCK, "held")
        held = [
            asyncio.create_task(doors[0].send("held", "a", 1)),
            asyncio.create_task(doors[0].decide("held", is_approved=True)),
        ]
        assert await doors[0].send("free", "b", 2) == 0
        with pytest.raises(NodeNotFound):
            await doors[0].decide("free", is_approved=True)
        assert not any(task.done() for task in held)
    assert await held[0] == 0
    with pytest.raises(NodeNotFound):
        await held[1]


async def test_what_is_held_for_too_long_is_told_alone(
    ground: Ground, doors: list[Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "HELD_S", 0.1)
    await ground.start("held")
    writing = await ground.connect()
    async with writing.transaction():
        await writing.execute(LOCK, "held")
        with pytest.raises(RowsHeld):
            await doors[0].send("held", "a", 1)
    assert await doors[0].send("held", "a", 1) == 0


DAWDLE = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(0.5); RETURN new; END $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON smithers.events FOR EACH ROW EXECUTE FUNCTION dawdle();
"""


@asynccontextmanager
async def asking_without_a_pause(
    ground: Ground, worker: WorkerId, committer: Committer
) -> AsyncIterator[None]:
    """The run `a` asks `ok`, and commits on: its row is free for a moment between two commits.

    Who only looks now and then finds it locked.
    """
    (claim,) = await ground.owned(worker, "a")
    waiting = {key_of("ok"): NodeFact(NodeState.WAITING_APPROVAL, "approval")}
    asked = a_turn(nodes=waiting, approvals=[ApprovalChange(key_of("ok"), '{"title":"?"}')])
    await committer.commit(change(claim, asked))
    await ground.sql.execute(DAWDLE)

    async def commit_on() -> None:
        for number in count(2):
            await committer.commit(change(claim, said("on"), number))

    committing = asyncio.create_task(commit_on())
    yield
    committing.cancel()
    await asyncio.wait([committing])


async def test_a_run_that_commits_without_a_pause_is_decided_and_signalled(
    ground: Ground, doors: list[Door], worker: WorkerId, committer: Committer
) -> None:
    news = await hear(await ground.connect(), Channel.NEWS)
    async with asking_without_a_pause(ground, worker, committer):
        is_decided, seq = await asyncio.gather(
            doors[0].decide("a", is_approved=True), doors[1].send("a", "i", 1)
        )
    assert (is_decided, seq) == (True, 0)
    async with asyncio.timeout(10):
        assert [await news.get(), await news.get()] == ["a", "a"]
    (approval,) = await ground.rows("approvals", "a")
    assert approval["status"] == "approved"
    assert {"ApprovalGranted", "SignalReceived"} < set(await ground.types("a"))


async def test_the_time_of_a_question_runs_out_although_its_run_is_written_to_without_a_pause(
    ground: Ground, worker: WorkerId, committer: Committer
) -> None:
    async with (
        open_worker_store(ground.dsn, worker) as store,
        asking_without_a_pause(ground, worker, committer),
        asyncio.timeout(lanes.HELD_S),
    ):
        await store.deny_for_timeout(RunId("a"), NodeId("ok"), 0)
    (approval,) = await ground.rows("approvals", "a")
    assert (approval["status"], approval["decided_by"]) == ("denied", TIMEOUT_USER)


async def test_a_start_whose_id_another_is_about_to_take_holds_up_no_other(ground: Ground) -> None:
    rival = await ground.connect()
    async with open_start_lane(ground.dsn) as lane:
        async with rival.transaction():
            assert await start_unique(rival, [a_start("r")]) == [True]
            waiting = asyncio.create_task(lane.submit(a_start("r")))
            others = [lane.submit(a_start(run_id)) for run_id in names(5, "other")]
            assert await asyncio.gather(*others) == [True] * 5
            assert not waiting.done()
        assert await waiting is False


async def test_a_cancel_that_was_chosen_to_end_a_deadlock_is_done_again(
    ground: Ground, doors: list[Door], worker: WorkerId, committer: Committer
) -> None:
    """As of a parent that ends beside its child: each has its own row, and waits for the other's."""
    (parent,) = await ground.owned(worker, "parent")
    child = ChildStart(key_of("n"), RunId("child"), "w", queue=None, is_solo=False)
    await committer.commit(change(parent, said(children=[child])))
    database = await ground.sql.fetchval("SELECT current_database()")
    await ground.sql.execute(f"ALTER DATABASE {database} SET deadlock_timeout = '3s'")
    rival = await ground.connect()
    await rival.execute("SET deadlock_timeout = '60s'")
    async with rival.transaction():
        await rival.execute(LOCK, "parent")
        cancelling = asyncio.create_task(doors[0].cancel("child"))
        await ground.until(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND application_name = 'smithers-test' AND datname = current_database())"
        )
        await rival.execute(LOCK, "child")
    assert await cancelling is CancelOutcome.CANCELLED
    assert await ground.types("child") == ["RunStarted", "RunCancelled"]
    assert (await ground.rows("children", "parent"))[0]["status"] == "cancelled"
