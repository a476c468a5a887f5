"""Many runs' turns in one commit: each run's fate its own, and each turn written once whatever breaks."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from smithers.engine.facts import LoopFact, NodeFact, Problem
from smithers.engine.turn import (
    ApprovalChange,
    AttemptEnd,
    ChildStart,
    EventDraft,
    FrameDraft,
    ToolCall,
    Turn,
)
from smithers.errors import LeaseLost, StoreError, StoreUnavailable
from smithers.events import EventType, event_parts
from smithers.ids import LoopId, NodeId, RunId, WorkerId
from smithers.states import AttemptState, NodeState, RunStatus, ToolCallState
from smithers.store import claims, commits, lanes, owners, run_facts, tool_calls
from smithers.store.commits import Committed, Committer, Outcome
from smithers.store.hints import Channel
from smithers.store.worker_store import open_worker_store
from tests.support.proxy import Mode, Proxy
from tests.support.turns import Ground, a_turn, change, ended, key_of, names, parked, said, seeded

LOCK = "SELECT FROM smithers.runs WHERE run_id = $1 FOR NO KEY UPDATE"


@pytest.fixture
async def ground(database: str) -> AsyncIterator[Ground]:
    async with Ground(database) as ground:
        yield ground


@pytest.fixture
async def worker(ground: Ground) -> WorkerId:
    return await ground.add_worker()


@pytest.fixture
async def committer(ground: Ground, worker: WorkerId) -> AsyncIterator[Committer]:
    async with Committer(ground.dsn, worker_id=worker) as committer:
        yield committer


async def commit_all(committer: Committer, *changes: Any) -> list[Committed | BaseException]:
    """Commit at once: they come in before the lane's first call, so they are one group."""
    return await asyncio.gather(*map(committer.commit, changes), return_exceptions=True)


def outcomes(answers: list[Committed | BaseException]) -> list[Any]:
    return [answer.outcome if isinstance(answer, Committed) else type(answer) for answer in answers]


async def test_turns_of_many_runs_are_one_transaction(ground, worker, committer):
    claimed = await ground.owned(worker, *names(100))
    answers = await commit_all(committer, *[change(claim, said("a", "b")) for claim in claimed])
    assert outcomes(answers) == [Outcome.COMMITTED] * 100
    assert {answer.last_seq for answer in answers} == {2}
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
    told: asyncio.Queue[str] = asyncio.Queue()
    await ground.sql.add_listener(Channel.EVENTS, lambda *hint: told.put_nowait(hint[3]))
    (old,) = await ground.owned(worker, "a")
    new = await ground.hand_over(old, worker, worker)
    assert outcomes(await commit_all(committer, change(old, said("old")))) == [LeaseLost]
    assert outcomes(await commit_all(committer, change(new, said("new")))) == [Outcome.COMMITTED]
    await ground.sql.execute("SELECT pg_notify($1, 'the last')", Channel.EVENTS)
    async with asyncio.timeout(60):
        assert [await told.get(), await told.get()] == ["a", "the last"]
    await ground.sql.reset()


async def test_of_a_group_only_those_are_told_that_shall_be(ground, worker, committer):
    told: asyncio.Queue[str] = asyncio.Queue()
    await ground.sql.add_listener(Channel.EVENTS, lambda *hint: told.put_nowait(hint[3]))
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
            await claims.release_runs(ground.sql, worker, [claim.run_id for claim in claimed])
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


async def node(ground: Ground) -> dict[str, Any]:
    (row,) = await ground.rows("nodes", "a")
    return row


async def test_a_node_keeps_its_making_and_its_start_and_takes_the_rest_of_the_newest_turn(
    ground, worker, committer
):
    (claim,) = await ground.owned(worker, "a")
    key = key_of("n", 2)
    waits = NodeFact(
        NodeState.WAITING_TIMER, "timer", "L", due_ms=5_000, wait="{}", loop=LoopId("l")
    )
    asked = await committer.commit(change(claim, a_turn(nodes={key: waits})))
    first = await node(ground)
    assert (first["iteration"], first["kind"], first["label"], first["loop_id"]) == (
        2,
        "timer",
        "L",
        "l",
    )
    assert first["due_at"].timestamp() == 5
    assert first["created_at"] == first["started_at"]
    assert int(first["created_at"].timestamp() * 1000) == asked.now_ms

    again = NodeFact(NodeState.IN_PROGRESS, attempt=1, failures=1, heartbeat="3")
    await committer.commit(change(claim, a_turn(nodes={key: again}, started={key}), 2))
    second = await node(ground)
    assert second["started_at"] > first["started_at"]
    assert (second["created_at"], second["due_at"], second["wait"]) == (
        first["created_at"],
        None,
        None,
    )
    assert (second["attempt"], second["failures"], second["heartbeat"]) == (1, 1, "3")

    done = NodeFact(NodeState.FINISHED, attempt=1, output="7")
    await committer.commit(change(claim, a_turn(nodes={key: done}), 3))
    third = await node(ground)
    assert (third["started_at"], third["output"]) == (second["started_at"], "7")
    assert third["finished_at"] > third["started_at"]

    await committer.commit(change(claim, a_turn(nodes={key: NodeFact(NodeState.PENDING)}), 4))
    fourth = await node(ground)
    assert (fourth["finished_at"], fourth["output"]) == (None, None)


async def test_what_a_turn_says_of_nodes_is_what_is_loaded(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")
    problem = Problem("ValueError", "no", "TASK_FAILED", {"k": [1]}, "Traceback …")
    facts = {
        key_of("x@@l=1", 1): NodeFact(
            NodeState.FAILED,
            "task",
            "ü",
            3,
            2,
            error=problem,
            heartbeat='{"a":1}',
            loop=LoopId("l"),
        ),
        key_of("y"): NodeFact(NodeState.FINISHED, output='{"big":"' + "x" * 100_000 + '"}'),
        key_of("z"): NodeFact(
            NodeState.WAITING_EVENT, "signal", wait='{"name":"s"}', due_ms=1234567890123
        ),
    }
    loops = {LoopId("l"): LoopFact(1), LoopId("m"): LoopFact(4, is_done=True)}
    frame = FrameDraft(1, "hash", "keyframe", "<a/>")
    turn = a_turn(nodes=facts, loops=loops, frame=frame)
    answer = await committer.commit(change(claim, turn, frame_no=1))
    (loaded,) = await run_facts.load_runs(ground.sql, [claim.run_id])
    kept = {key: fact._replace(started_ms=None) for key, fact in loaded.facts.nodes.items()}
    assert kept == facts
    assert loaded.facts.nodes[key_of("z")].started_ms == answer.now_ms
    assert loaded.facts.loops == loops
    assert loaded.xml_hash == "hash"


async def test_attempts_and_frames_are_kept_one_by_one_and_a_loop_has_its_newest_state(
    ground, worker, committer
):
    (claim,) = await ground.owned(worker, "a")
    for number in (1, 2):
        await committer.commit(
            change(
                claim,
                a_turn(
                    attempts=[
                        AttemptEnd(
                            key_of("n"), number, AttemptState.FAILED, 1_000, Problem("E", "m")
                        )
                    ],
                    frame=FrameDraft(number, f"h{number}", "delta", "{}"),
                    loops={LoopId("l"): LoopFact(number, is_done=number == 2)},
                ),
                number,
                frame_no=number,
            )
        )
    lost = AttemptEnd(key_of("n"), 3, AttemptState.LOST, None, None)
    await committer.commit(change(claim, a_turn(attempts=[lost]), 3, frame_no=2))
    attempts = await ground.rows("attempts", "a")
    assert [(row["attempt"], row["state"], row["worker_id"]) for row in attempts] == [
        (1, "failed", worker),
        (2, "failed", worker),
        (3, "lost", None),
    ]
    assert json.loads(attempts[0]["error"]) == {"name": "E", "message": "m"}
    assert [row["xml_hash"] for row in await ground.rows("frames", "a")] == ["h1", "h2"]
    (loop,) = await ground.rows("loops", "a")
    assert (loop["iteration"], loop["is_done"]) == (2, True)
    assert (await ground.run("a"))["last_frame_no"] == 2


async def decide(ground: Ground, *, is_approved: bool, node_id: str = "ok") -> str:
    return await ground.sql.fetchval(
        """SELECT (smithers.decide_approval_v4(
            ROW('a', $2, 0, $1::boolean, NULL, 'x', '1', NULL, NULL, false)::smithers.decision_v1)).outcome""",
        is_approved,
        node_id,
    )


async def approval(ground: Ground) -> tuple[Any, ...]:
    (row,) = await ground.rows("approvals", "a")
    return (
        row["status"],
        row["request"],
        row["decided_at"] is not None,
        row["decided_by"],
        row["decision"],
    )


async def test_an_approval_is_withdrawn_only_while_nobody_has_decided_and_may_be_asked_again(
    ground, worker, committer
):
    (claim,) = await ground.owned(worker, "a")
    number = 0

    async def put(request: str | None) -> None:
        nonlocal number
        number += 1
        asked = a_turn(approvals=[ApprovalChange(key_of("ok"), request)])
        await committer.commit(change(claim, asked, number))

    await put('{"title":"1"}')
    assert await approval(ground) == ("requested", '{"title":"1"}', False, None, None)
    assert await decide(ground, is_approved=False) == "decided"
    await put(None)
    assert await approval(ground) == ("denied", '{"title":"1"}', True, "x", "1")
    await put('{"title":"2"}')
    assert await approval(ground) == ("requested", '{"title":"2"}', False, None, None)
    await put(None)
    assert await approval(ground) == ("cancelled", '{"title":"2"}', True, None, None)
    assert await decide(ground, is_approved=True) == "not-waiting"


async def test_a_decision_is_news_once_and_what_is_loaded_is_all_of_them(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")
    keys = [key_of(name) for name in ("first", "second", "open")]
    await committer.commit(
        change(claim, a_turn(approvals=[ApprovalChange(key, "{}") for key in keys]))
    )

    async def read_news(after_seq: int) -> tuple[dict[str, str], int]:
        news = await run_facts.load_news(ground.sql, "a", after_seq=after_seq, after_signal=-1)
        told = {key.node_id: fact.status.value for key, fact in news.approvals.items()}
        return told, news.last_seq

    told, seq = await read_news(0)
    assert told == {}
    for node_id, is_approved in (("first", True), ("second", False)):
        assert await decide(ground, is_approved=is_approved, node_id=node_id) == "decided"
    assert await read_news(seq) == ({"first": "approved", "second": "denied"}, seq + 2)
    assert await read_news(seq + 1) == ({"second": "denied"}, seq + 2)
    assert await read_news(seq + 2) == ({}, seq + 2)
    (loaded,) = await run_facts.load_runs(ground.sql, ["a"])
    assert {key.node_id for key in loaded.news.approvals} == {"first", "second"}


async def test_a_signal_that_a_node_took_is_not_among_the_news_any_more(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")
    for data in ("1", "2", "3"):
        await ground.sql.fetchrow(
            "SELECT * FROM smithers.send_signal_v2('a', 's', NULL, $1, NULL, NULL)", data
        )
    await committer.commit(change(claim, a_turn(signals=[(0, key_of("n")), (2, key_of("n", 1))])))
    news = await run_facts.load_news(ground.sql, "a", after_seq=0, after_signal=-1)
    assert [(signal.seq, signal.data) for signal in news.signals] == [(1, "2")]
    taken = [
        (row["consumed_by"], row["consumed_iteration"]) for row in await ground.rows("signals", "a")
    ]
    assert sorted(taken, key=str) == [("n", 0), ("n", 1), (None, None)]


async def test_a_signal_is_news_once_however_long_nobody_takes_it(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")

    async def send(data: str) -> None:
        await ground.sql.fetchrow(
            "SELECT * FROM smithers.send_signal_v2('a', 's', NULL, $1, NULL, NULL)", data
        )

    async def read_news(after_signal: int) -> tuple[list[str], int]:
        news = await run_facts.load_news(ground.sql, "a", after_seq=0, after_signal=after_signal)
        return [signal.data for signal in news.signals], news.newest_signal

    assert await read_news(-1) == ([], -1)
    await send("1")
    await send("2")
    assert await read_news(-1) == (["1", "2"], 1)
    assert await read_news(1) == ([], 1)
    await send("3")
    assert await read_news(1) == (["3"], 2)
    await committer.commit(change(claim, a_turn(signals=[(2, key_of("n"))])))
    (loaded,) = await run_facts.load_runs(ground.sql, [claim.run_id])
    news = loaded.news
    assert ([signal.data for signal in news.signals], news.newest_signal) == (["1", "2"], 2)


async def test_an_end_gives_the_run_back_for_good_with_what_it_ended_with(
    ground, worker, committer
):
    good, bad = await ground.owned(worker, "a", "b")
    problem = Problem("ValueError", "no", "TASK_FAILED")
    answers = await commit_all(
        committer,
        change(good, ended(output=key_of("n", 3))),
        change(bad, ended(RunStatus.FAILED, error=problem)),
    )
    for answer, run_id, status in zip(answers, "ab", ("finished", "failed"), strict=True):
        row = await ground.run(run_id)
        assert (row["status"], row["owner_id"], row["due_at"]) == (status, None, None)
        assert int(row["finished_at"].timestamp() * 1000) == answer.now_ms
    assert (await ground.run("a"))["output_node_id"] == "n"
    assert (await ground.run("a"))["output_iteration"] == 3
    assert json.loads((await ground.run("b"))["error"]) == problem.to_wire()
    assert await ground.claim(worker) == []


async def test_a_park_is_claimable_when_its_time_comes_and_not_before(ground, worker, committer):
    soon, later, never = await ground.owned(worker, "a", "b", "c")
    await commit_all(
        committer,
        change(soon, parked(RunStatus.WAITING_TIMER, due_ms=soon.now_ms)),
        change(later, parked(RunStatus.WAITING_TIMER, due_ms=later.now_ms + 3_600_000)),
        change(never, parked()),
    )
    assert [claim.run_id for claim in await ground.claim(worker)] == ["a"]


@pytest.mark.parametrize("is_cleared", [True, False])
async def test_a_commit_lifts_the_suspicion_only_when_what_was_in_flight_has_ended(
    ground, worker, committer, *, is_cleared: bool
):
    (claim,) = await ground.owned(worker, "a")
    await ground.sql.execute(
        "UPDATE smithers.runs SET crash_count = 2, lost_heartbeat_at = smithers.clock()"
    )
    await committer.commit(change(claim, said("on"), is_cleared=is_cleared))
    row = await ground.run("a")
    assert (row["crash_count"], row["lost_heartbeat_at"]) == (0 if is_cleared else 2, None)


async def test_a_tool_call_keeps_its_start_and_takes_its_end(ground, worker, committer):
    (claim,) = await ground.owned(worker, "r")
    begun = ToolCall(
        call_no=1,
        kind="tool",
        tool_name="bash",
        state=ToolCallState.STARTED,
        is_side_effect=True,
        is_idempotent=False,
        input='{"cmd":"ls"}',
    )
    over = begun._replace(state=ToolCallState.FINISHED, output='"a"', took_ms=500)
    quick = over._replace(call_no=2, parent_call_no=1, beside_call_no=1)
    key = key_of("a")
    await committer.commit(change(claim, said("1", tool_calls={(key, 1, 1): begun}), 1))
    calls = {(key, 1, 1): over, (key, 1, 2): quick}
    await committer.commit(change(claim, said("2", tool_calls=calls), 2))
    rows = await ground.sql.fetch(
        """SELECT call_no, state, output, parent_call_no, beside_call_no, finished_at - started_at AS took
            FROM smithers.tool_calls ORDER BY call_no"""
    )
    assert [tuple(row)[:5] for row in rows] == [
        (1, "finished", '"a"', 0, None),
        (2, "finished", '"a"', 1, 1),
    ]
    assert rows[1]["took"] == timedelta(milliseconds=500)


# Attempt 1 has failed, 2 and 3 were lost.
MAKE_ATTEMPTS = """
    INSERT INTO smithers.attempts (run_id, node_id, iteration, attempt, state, finished_at)
    SELECT 'r', 'a', 0, n, CASE n WHEN 1 THEN 'failed' ELSE 'lost' END, now() FROM generate_series(1, 3) AS n"""
MAKE_CALLS = """
    INSERT INTO smithers.tool_calls (run_id, node_id, iteration, attempt, call_no, kind, tool_name, state,
        is_side_effect, is_idempotent, input, output, started_at, finished_at)
    SELECT 'r', 'a', 0, $1, n, 'tool', 'bash', 'finished', true, true, '{}', n::text, now(), now()
    FROM generate_series($2::integer, $3) AS n"""


async def test_all_calls_that_are_recallable_are_read_however_many_they_are(ground, worker):
    await ground.owned(worker, "r")
    await ground.sql.execute(MAKE_ATTEMPTS)
    for attempt, first, last in ((1, 1, 500), (2, 501, 1500), (3, 1501, 2700)):
        await ground.sql.execute(MAKE_CALLS, attempt, first, last)
    async with open_worker_store(ground.dsn, worker) as store:
        rows = await store.list_previous_calls(RunId("r"), NodeId("a"), 0)
        assert {row.input for row in rows} == {"{}"}
        recallable = [row for row in rows if row.is_recallable]
        assert [row.call_no for row in recallable] == list(range(501, 2701))
        kept = [row.call_no for row in recallable if row.output is not None]
        assert kept == list(range(1701, 2701))
        place = tool_calls.CallPlace(rows[-2000].attempt, rows[-2000].call_no)
        assert await store.find_call_output(RunId("r"), NodeId("a"), 0, place) == "701"


async def test_of_calls_before_the_newest_thousand_only_the_head_of_an_input_is_read(
    ground, worker
):
    given = '{"to": "' + "ä" * 5_000 + '"}'
    await ground.owned(worker, "r")
    await ground.sql.execute(MAKE_CALLS, 1, 1, 1100)
    await ground.sql.execute("UPDATE smithers.tool_calls SET input = $1, parent_call_no = 0", given)
    inner = "UPDATE smithers.tool_calls SET parent_call_no = 1 WHERE call_no = 2"
    await ground.sql.execute(inner)
    async with open_worker_store(ground.dsn, worker) as store:
        rows = await store.list_previous_calls(RunId("r"), NodeId("a"), 0)
    head = given[: tool_calls.HEAD_CHARS]
    assert [row.input for row in rows] == [head, given, *[head] * 98, *[given] * 1000]
    digests = [row.input_digest for row in rows]
    assert digests == [tool_calls.digest_of(given)] * 100 + [None] * 1000


@pytest.mark.parametrize("lost_count", [700, 2200])
async def test_what_an_agent_is_told_of_does_not_depend_on_how_much_is_recallable(
    ground, worker, lost_count: int
):
    """A question with another prompt is another question: nothing would be recalled."""
    await ground.owned(worker, "r")
    await ground.sql.execute(MAKE_ATTEMPTS)
    await ground.sql.execute(MAKE_CALLS, 1, 1, 1200)
    async with open_worker_store(ground.dsn, worker) as store:
        told = await store.list_previous_calls(RunId("r"), NodeId("a"), 0)
        assert [row.output for row in told] == [str(number) for number in range(201, 1201)]
        await ground.sql.execute(MAKE_CALLS, 2, 1, lost_count)
        rows = await store.list_previous_calls(RunId("r"), NodeId("a"), 0)
    assert [row for row in rows if not row.is_recallable] == told
    assert len(rows) == len(told) + lost_count


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
