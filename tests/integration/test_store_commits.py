"""Many runs' turns in one commit: each run's fate its own, and each turn written once whatever breaks."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from smithers.engine.facts import NodeFact, Problem
from smithers.engine.turn import (
    ChildStart,
    Ending,
    EventDraft,
    Turn,
)
from smithers.errors import LeaseLost, StoreError, StoreUnavailable
from smithers.events import EventType, event_parts
from smithers.ids import RunId
from smithers.states import NodeState, RunStatus
from smithers.store import claims, commits, lanes, owners
from smithers.store.commits import Committed, Committer, Outcome
from smithers.store.hints import Channel
from smithers.store.worker_store import open_worker_store
from tests.support.proxy import Mode, Proxy
from tests.support.turns import (
    PATIENCE_S,
    Ground,
    a_turn,
    as_pool,
    change,
    commit_all,
    ended,
    hear,
    key_of,
    names,
    parked,
    said,
    seeded,
)

LOCK = "SELECT FROM smithers.runs WHERE run_id = $1 FOR NO KEY UPDATE"


def outcomes(answers: list[Committed | BaseException]) -> list[Any]:
    return [answer.outcome if isinstance(answer, Committed) else type(answer) for answer in answers]


async def test_turns_of_many_runs_are_one_transaction(ground, worker, committer):
    claimed = await ground.owned(worker, *names(100))
    answers = await commit_all(committer, *[change(claim, said("a", "b")) for claim in claimed])
    assert outcomes(answers) == [Outcome.COMMITTED] * 100
    for answer in answers:
        assert isinstance(answer, Committed)
        assert answer.last_seq == 2
    assert await ground.sql.fetchval("SELECT count(DISTINCT xmin::text) FROM smithers.runs") == 1
    for run_id in names(100):
        assert await ground.types(run_id) == ["RunStarted", "a", "b"]


async def test_a_displaced_owner_writes_nothing_and_the_others_of_its_group_commit(
    ground, worker, committer
):
    first, displaced, last = await ground.owned(worker, "a", "b", "c")
    taken = await ground.hand_over(displaced, worker, rival := await ground.add_worker())
    before = dict(await ground.run("b"))
    answers = await commit_all(
        committer, *[change(claim, said("late")) for claim in (first, displaced, last)]
    )
    assert outcomes(answers) == [Outcome.COMMITTED, LeaseLost, Outcome.COMMITTED]
    assert dict(await ground.run("b")) == before
    assert await ground.types("b") == ["RunStarted"]
    async with Committer(ground.dsn, worker_id=rival) as new:
        assert (await new.commit(change(taken, said("new")))).outcome is Outcome.COMMITTED
    assert await ground.types("b") == ["RunStarted", "new"]


async def test_only_what_was_committed_is_told(ground, worker, committer):
    told = await hear(ground.sql, Channel.EVENTS)
    (old,) = await ground.owned(worker, "a")
    new = await ground.hand_over(old, worker, worker)
    assert outcomes(await commit_all(committer, change(old, said("old")))) == [LeaseLost]
    assert outcomes(await commit_all(committer, change(new, said("new")))) == [Outcome.COMMITTED]
    await ground.sql.execute("SELECT pg_notify($1, 'the last')", Channel.EVENTS)
    async with asyncio.timeout(60):
        assert [await told.get(), await told.get()] == ["a", "the last"]
    await ground.sql.reset()


async def test_of_a_group_only_those_are_told_that_shall_be(ground, worker, committer):
    told = await hear(ground.sql, Channel.EVENTS)
    a, b, c = await ground.owned(worker, "a", "b", "c")
    silent = [change(claim, said("quietly"), is_told=False) for claim in (a, c)]
    assert (
        outcomes(await commit_all(committer, silent[0], change(b, said("loud")), silent[1]))
        == [Outcome.COMMITTED] * 3
    )
    assert outcomes(await commit_all(committer, change(a, said("more"), 2, is_told=False))) == [
        Outcome.COMMITTED
    ]
    await ground.sql.execute("SELECT pg_notify($1, 'the last')", Channel.EVENTS)
    async with asyncio.timeout(60):
        assert [await told.get(), await told.get()] == ["b", "the last"]
    await ground.sql.reset()


async def test_a_silent_commit_that_nobody_awaits_any_more_is_told_of(ground, worker):
    """A drain cancels whoever awaits it, and not what the database does with it."""
    (claim,) = await ground.owned(worker, "a")
    told = await hear(ground.sql, Channel.EVENTS)
    async with open_worker_store(ground.dsn, worker) as store:
        commit = asyncio.ensure_future(store.commit(change(claim, said("x"), is_told=False)))
        await asyncio.sleep(0)
        commit.cancel()
        async with asyncio.timeout(PATIENCE_S):
            assert await told.get() == "a"
    assert commit.cancelled()
    await ground.sql.reset()


async def test_the_epoch_alone_shuts_out_a_worker_that_got_its_run_back(ground, worker, committer):
    (old,) = await ground.owned(worker, "a")
    new = await ground.hand_over(old, worker, worker)
    answers = await commit_all(committer, change(old, said("old")), change(new, said("new")))
    assert outcomes(answers) == [LeaseLost, Outcome.COMMITTED]
    assert await ground.types("a") == ["RunStarted", "new"]


async def test_a_buried_worker_writes_nothing(ground, worker, committer):
    claimed = await ground.owned(worker, *names(5))
    assert (await owners.bury_worker(ground.sql, worker, "silent")).queues == {"default": 5}
    answers = await commit_all(committer, *[change(claim, said("late")) for claim in claimed])
    assert outcomes(answers) == [LeaseLost] * 5
    assert [await ground.types(run_id) for run_id in names(5)] == [["RunStarted"]] * 5


async def test_a_run_that_a_gateway_holds_waits_alone_and_is_committed_after_it(
    ground, worker, committer
):
    claimed = await ground.owned(worker, *names(10))
    gateway = await ground.connect()
    transaction = gateway.transaction()
    await transaction.start()
    await gateway.fetchrow(
        "SELECT * FROM smithers.send_signal_v2('r0003', 's', NULL, '1', NULL, NULL)"
    )
    held = asyncio.create_task(committer.commit(change(claimed[3], said("held"))))
    others = [change(claim, said("free")) for claim in claimed if claim is not claimed[3]]
    assert outcomes(await commit_all(committer, *others)) == [Outcome.COMMITTED] * 9
    assert not held.done()
    assert (await ground.run("r0003"))["commit_no"] == 0
    await transaction.commit()
    assert await held == Committed(Outcome.COMMITTED, 2, (await held).now_ms)
    assert await ground.types("r0003") == ["RunStarted", "SignalReceived", "held"]


async def test_a_child_that_another_writer_holds_holds_up_its_parent_alone(
    ground, worker, committer
):
    innocent, parent = await ground.owned(worker, "innocent", "parent")
    node = key_of("sub")
    child = ChildStart(node, RunId("child"), "w", queue=None, is_solo=False)
    await committer.commit(change(parent, said(children=[child])))
    holder = await ground.connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(LOCK, "child")
    letting_go = asyncio.create_task(committer.commit(change(parent, said(abandoned=[node]), 2)))
    for number in range(1, 4):  # each in a group with it, or after it
        answer = await asyncio.wait_for(
            committer.commit(change(innocent, said("x"), number)), timeout=20
        )
        assert answer.outcome is Outcome.COMMITTED
    assert not letting_go.done()
    await transaction.rollback()
    assert (await letting_go).outcome is Outcome.COMMITTED
    assert (await ground.run("child"))["cancel_requested_at"] is not None


def a_child(run_id: str, node_id: str = "sub") -> ChildStart:
    return ChildStart(key_of(node_id), RunId(run_id), "w", queue=None, is_solo=False)


async def test_a_parent_that_takes_a_child_up_again_as_it_ends_is_told_of_its_next_end(
    ground, worker, committer
):
    (parent,) = await ground.owned(worker, "p")
    child = a_child("p.c")
    await commit_all(committer, change(parent, said(children=[child])))
    (of_child,) = await ground.claim(worker)
    await commit_all(committer, change(of_child, said(children=[a_child("p.c.c")])))
    now = {"expected_seq": (await ground.run("p"))["last_seq"]}
    await commit_all(committer, change(parent, parked(), 2, **now))
    await ground.sql.execute("SELECT smithers.cancel_run_v3('p')")
    await ground.sql.execute("SELECT smithers.resume_run_v3('p', NULL, NULL, NULL, NULL, NULL)")
    parent, _ = await ground.claim(worker)
    now = {"expected_seq": (await ground.run("p.c"))["last_seq"], "is_cancelling": True}
    answers = await commit_all(
        committer,
        change(parent, said("again", children=[child])),
        change(of_child, ended(RunStatus.CANCELLED), 2, **now),
    )
    assert outcomes(answers) == [Outcome.COMMITTED] * 2
    assert [row["status"] for row in await ground.rows("children", "p")] == [None]
    assert (await ground.types("p"))[-1] == "again"
    assert (await ground.run("p.c"))["status"] == "queued"
    assert (await ground.run("p.c.c"))["cancel_requested_at"] is not None

    (of_child,) = await ground.claim(worker)
    await commit_all(committer, change(of_child, ended()))
    assert [row["status"] for row in await ground.rows("children", "p")] == ["finished"]
    assert (await ground.types("p")).count("SubflowEnded") == 1
    assert (await ground.history("p"))[-1]["status"] == "finished"


@pytest.mark.parametrize("is_parent_first", [True, False])
async def test_a_parent_that_lets_go_of_a_child_as_it_continues_as_new_cancels_what_it_continues_as(
    ground, worker, committer, is_parent_first: bool
):
    (parent,) = await ground.owned(worker, "p")
    child = a_child("p.c")
    await commit_all(committer, change(parent, said(children=[child])))
    (of_child,) = await ground.claim(worker)
    successor = ChildStart(None, RunId("p.c+1"), "w", queue=None, is_solo=False, carried="1")
    goes_on = Ending(
        status=RunStatus.CONTINUED,
        events=(EventDraft(EventType.RUN_CONTINUED_AS_NEW, {}),),
        successor=successor,
    )
    group = [
        change(parent, said(abandoned=[child.key]), 2),
        change(of_child, a_turn(ending=goes_on)),
    ]
    answers = await commit_all(committer, *(group if is_parent_first else reversed(group)))
    assert outcomes(answers) == [Outcome.COMMITTED] * 2
    assert [row["child_run_id"] for row in await ground.rows("children", "p")] == ["p.c+1"]
    (of_child,) = await ground.claim(worker)
    assert (of_child.run_id, of_child.is_cancelling) == ("p.c+1", True)


async def test_a_child_that_is_let_go_and_started_again_in_one_turn_goes_on(
    ground, worker, committer
):
    (parent,) = await ground.owned(worker, "p")
    child = a_child("p.c")
    await commit_all(committer, change(parent, said(children=[child])))
    (of_child,) = await ground.claim(worker)
    await commit_all(committer, change(of_child, ended(RunStatus.FAILED)))
    again = said(abandoned=[child.key], children=[child])
    await commit_all(committer, change(parent, again, 2))
    (of_child,) = await ground.claim(worker)
    assert (of_child.run_id, of_child.is_cancelling) == ("p.c", False)


@pytest.mark.parametrize("turn", [parked(), ended(), ended(RunStatus.FAILED)])
@pytest.mark.parametrize(
    "function", ["send_signal_v2('a', 's', NULL, '1', NULL, NULL)", "cancel_run_v1('a')"]
)
async def test_an_end_that_does_not_know_what_came_commits_nothing(
    ground, worker, committer, turn: Turn, function: str
):
    (claim,) = await ground.owned(worker, "a")
    await ground.sql.fetchrow(f"SELECT * FROM smithers.{function}")
    before, told = dict(await ground.run("a")), await ground.types("a")
    turn.nodes[key_of("n")] = NodeFact(NodeState.FINISHED)
    answer = await committer.commit(change(claim, turn))
    assert (answer.outcome, answer.last_seq) == (Outcome.STALE, before["last_seq"])
    assert dict(await ground.run("a")) == before
    assert await ground.types("a") == told
    assert await ground.rows("nodes", "a") == []


async def test_a_turn_that_does_not_end_the_run_need_not_know_what_came(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")
    await ground.sql.fetchrow(
        "SELECT * FROM smithers.send_signal_v2('a', 's', NULL, '1', NULL, NULL)"
    )
    await ground.sql.fetchrow("SELECT * FROM smithers.cancel_run_v1('a')")
    answer = await committer.commit(change(claim, said("on")))
    assert (answer.outcome, answer.last_seq) == (Outcome.COMMITTED, 2)


async def test_after_a_cancel_the_owner_can_only_end_it_as_cancelled(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")
    await ground.sql.fetchrow("SELECT * FROM smithers.cancel_run_v1('a')")
    stale = await committer.commit(change(claim, ended()))
    assert stale.outcome is Outcome.STALE
    end = change(claim, ended(RunStatus.CANCELLED), 2, is_cancelling=True)
    assert (await committer.commit(end)).outcome is Outcome.COMMITTED
    assert await ground.ends("a") == ["RunCancelled"]
    assert (await ground.run("a"))["status"] == "cancelled"


BAD_TURNS = {
    "an output with a zero byte, which Postgres refuses": a_turn(
        nodes={key_of("n"): NodeFact(NodeState.FINISHED, output='"\x00"')}
    ),
    "an output with half of a surrogate pair, which the driver refuses": a_turn(
        nodes={key_of("n"): NodeFact(NodeState.FINISHED, output='"\ud800"')}
    ),
    "an event with half of a surrogate pair, which JSON refuses": said("\ud800"),
    "an error with half of a surrogate pair": a_turn(
        nodes={key_of("n"): NodeFact(NodeState.FAILED, error=Problem("E", "m", details="\ud800"))}
    ),
    "an iteration that is no integer of Postgres": a_turn(
        nodes={key_of("n", 1 << 40): NodeFact(NodeState.PENDING)}
    ),
}


@pytest.mark.parametrize("turn", BAD_TURNS.values(), ids=BAD_TURNS)
async def test_a_value_that_is_refused_fails_its_own_run_only(
    ground, worker, committer, turn: Turn
):
    claimed = await ground.owned(worker, *names(5))
    turns = [said("good"), said("good"), turn, said("good"), said("good")]
    answers = await commit_all(committer, *map(change, claimed, turns))
    assert outcomes(answers)[:2] + outcomes(answers)[3:] == [Outcome.COMMITTED] * 4
    assert isinstance(answers[2], StoreError)
    assert not isinstance(answers[2], StoreUnavailable | LeaseLost)
    assert [await ground.types(run_id) for run_id in names(5)] == [
        ["RunStarted", *(["good"] if number != 2 else [])] for number in range(5)
    ]
    assert (await committer.commit(change(claimed[2], said("good"), 2))).last_seq == 1


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with Proxy(database) as proxy:
        yield proxy


@pytest.mark.parametrize("mode", [Mode.LOSE_ANSWER, Mode.LOSE_REQUEST])
@pytest.mark.parametrize(
    "turn", [said("once"), ended(), parked()], ids=["goes on", "ends", "parks"]
)
async def test_a_turn_is_written_once_when_the_connection_breaks_around_its_commit(
    ground, worker, proxy: Proxy, mode: Mode, turn: Turn
):
    claimed = await ground.owned(worker, *names(3))
    async with Committer(proxy.dsn, worker_id=worker) as committer:
        await commit_all(committer, *[change(claim, said("before")) for claim in claimed])
        proxy.link("smithers-commit").mode = mode
        answers = await commit_all(
            committer,
            *[change(claim, turn, 2, expected_seq=1) for claim in claimed],
        )
    assert outcomes(answers) == [Outcome.COMMITTED] * 3
    for run_id in names(3):
        assert len(await ground.types(run_id)) == 3
        row = await ground.run(run_id)
        assert (row["commit_no"], row["owner_id"] is None) == (2, turn.ending is not None)


async def test_a_lost_answer_to_a_run_that_others_took_meanwhile_is_a_lost_lease(
    ground, worker, proxy: Proxy, monkeypatch
):
    monkeypatch.setattr("smithers.store.commits.RETRY_PAUSE_S", 0.3)
    (claim,) = await ground.owned(worker, "a")
    async with Committer(proxy.dsn, worker_id=worker) as committer:
        await committer.commit(change(claim, said("before")))
        proxy.link("smithers-commit").mode = Mode.LOSE_ANSWER
        late = asyncio.create_task(committer.commit(change(claim, said("kept"), 2)))
        await ground.until("SELECT commit_no = 2 FROM smithers.runs")
        await owners.bury_worker(ground.sql, worker, "silent")
        with pytest.raises(LeaseLost):
            await late
    assert await ground.types("a") == ["RunStarted", "before", "kept"]


async def test_a_copy_of_a_commit_that_comes_late_writes_nothing(
    ground, worker, proxy: Proxy, monkeypatch
):
    (claim,) = await ground.owned(worker, "a")
    async with Committer(proxy.dsn, worker_id=worker) as committer:
        await committer.commit(change(claim, said("before")))
        stuck = proxy.link("smithers-commit")
        stuck.mode = Mode.KEEP_REQUEST
        monkeypatch.setattr(committer.lane, "_limit_s", 0.1)
        commit = asyncio.create_task(committer.commit(change(claim, said("once"), 2)))
        await stuck.has_kept.wait()
        monkeypatch.setattr(committer.lane, "_limit_s", 30.0)
        assert (await commit).outcome is Outcome.COMMITTED
        await committer.commit(change(claim, said("after"), 3))
        await stuck.deliver()
    assert await ground.types("a") == ["RunStarted", "before", "once", "after"]
    assert (await ground.run("a"))["commit_no"] == 3


async def test_a_commit_waits_until_the_database_lets_it_in_again(
    postgres_server, ground, worker, committer
):
    (claim,) = await ground.owned(worker, "a")
    await committer.commit(change(claim, said("before")))
    name = await ground.sql.fetchval("SELECT current_database()")
    server = await asyncpg.connect(postgres_server)
    try:
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await ground.cut("smithers-commit")
        waiting = asyncio.create_task(committer.commit(change(claim, said("patient"), 2)))
        # Nothing is to happen: there is nothing to wait for.
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    finally:
        await server.close()
    assert (await waiting).last_seq == 2
    assert await ground.types("a") == ["RunStarted", "before", "patient"]


async def test_an_event_is_stored_as_head_now_and_tail_with_the_time_under_the_lock(
    ground, worker, committer
):
    (claim,) = await ground.owned(worker, "a")
    fields = {"text": 'ä " \\ \u2028 €', "n": 1.5, "deep": {"k": [None, True]}}
    turn = a_turn(events=[EventDraft(EventType.NODE_OUTPUT, fields)])
    commit = change(claim, turn)
    async with ground.sql.transaction():
        await ground.sql.execute(LOCK, "a")
        waiting = asyncio.create_task(committer.commit(commit))
        await asyncio.wait([waiting], timeout=0.05)
        released_ms = await ground.sql.fetchval("SELECT smithers.to_ms(smithers.clock())")
    answer = await waiting
    head, tail = event_parts(EventType.NODE_OUTPUT, commit.envelope, fields)
    payload = await ground.sql.fetchval("SELECT payload FROM smithers.events WHERE seq = 1")
    assert payload == f"{head}{answer.now_ms}{tail}"
    assert answer.now_ms >= released_ms


async def play_owner(ground: Ground, rng: random.Random, ids: list[str]) -> int:
    """Own the runs for a while, commit, give them back; say how many commits there were."""
    worker, written = await ground.add_worker(), 0
    async with Committer(ground.dsn, worker_id=worker) as committer:
        for _ in range(6):
            claimed = await ground.claim(worker, limit=rng.randrange(1, len(ids)))
            for number in range(1, rng.randrange(2, 5)):
                texts = [str(n) for n in range(rng.randrange(1, 4))]
                answers = await commit_all(
                    committer, *[change(claim, said(*texts), number) for claim in claimed]
                )
                assert set(outcomes(answers)) <= {Outcome.COMMITTED}
                written += len(texts) * len(claimed)
            await claims.release_runs(
                as_pool(ground.sql), worker, [claim.run_id for claim in claimed]
            )
    return written


async def test_a_history_has_no_gap_and_neither_epoch_nor_time_falls_whoever_writes(ground):
    rng, ids, sent = seeded(), names(8), 0
    await ground.start(*ids)
    gateway = await ground.connect()
    owning = asyncio.create_task(play_owner(ground, rng, ids))
    while not owning.done():
        await gateway.fetchrow(
            "SELECT * FROM smithers.send_signal_v2($1, 's', NULL, '1', NULL, NULL)", rng.choice(ids)
        )
        sent += 1
    histories = [await ground.history(run_id) for run_id in ids]
    assert sum(map(len, histories)) == len(ids) + sent + await owning


# What the owner writes of one run takes as long as an enormous turn does.
DAWDLE = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF new.run_id = 'long' AND new.payload LIKE '%dawdle%' THEN
            PERFORM {dawdling};
        END IF;
        RETURN new;
    END $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON smithers.events FOR EACH ROW EXECUTE FUNCTION dawdle();
"""


async def test_a_turn_that_takes_longer_than_a_call_may_is_committed_and_holds_nobody_up(
    ground, worker, monkeypatch
):
    monkeypatch.setattr(lanes, "COMMAND_TIMEOUT_S", 1.5)
    await ground.sql.execute(DAWDLE.format(dawdling="pg_advisory_xact_lock(7)"))
    holder = await ground.connect()
    await holder.execute("SELECT pg_advisory_lock(7)")
    *others, long = await ground.owned(worker, "a", "b", "long")
    async with Committer(ground.dsn, worker_id=worker) as committer:
        committing = asyncio.create_task(committer.commit(change(long, said("dawdle"))))
        for number, claim in enumerate(others * 3, start=1):
            turn = change(claim, said("quick"), (number + 1) // 2)
            assert (await committer.commit(turn)).outcome is Outcome.COMMITTED
        await ground.until(
            """SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'smithers-commit-long'
            AND wait_event_type = 'Lock' AND datname = current_database()"""
        )
        assert not committing.done()
        await holder.execute("SELECT pg_advisory_unlock(7)")
        assert (await committing).outcome is Outcome.COMMITTED
    assert await ground.types("long") == ["RunStarted", "dawdle"]


async def test_a_turn_that_takes_longer_than_anybody_waits_is_refused_and_leaves_nothing(
    ground, worker, monkeypatch
):
    monkeypatch.setattr(lanes, "COMMAND_TIMEOUT_S", 1.0)
    monkeypatch.setattr(commits, "PATIENT_S", 2.0)
    await ground.sql.execute(DAWDLE.format(dawdling="pg_sleep(600)"))
    quick, long = await ground.owned(worker, "a", "long")
    async with Committer(ground.dsn, worker_id=worker) as committer:
        answers = await commit_all(
            committer, change(long, said("dawdle")), change(quick, said("quick"))
        )
        assert outcomes(answers) == [StoreError, Outcome.COMMITTED]
        small = change(long, said("failed"), 2)
        assert (await committer.commit(small)).outcome is Outcome.COMMITTED
    assert await ground.types("long") == ["RunStarted", "failed"]
