"""What a turn says of nodes, questions, signals, ends and tool calls is what is stored, and what is loaded again."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from smithers.engine.facts import LoopFact, NodeFact, Problem
from smithers.engine.turn import (
    ApprovalChange,
    AttemptEnd,
    FrameDraft,
    ToolCall,
)
from smithers.errors import AnswerTooLarge
from smithers.ids import LoopId, NodeId, RunId, WorkerId
from smithers.states import AttemptState, NodeState, RunStatus, ToolCallState
from smithers.store import lanes, run_facts, tool_calls
from smithers.store.commits import Committed, Committer
from smithers.store.worker_store import open_worker_store
from tests.support.turns import Ground, a_turn, change, commit_all, ended, key_of, parked, said


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
    assert isinstance(loaded, run_facts.LoadedRun)
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
        """SELECT (smithers.decide_approval_v5(
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
        news = await run_facts.load_news(
            ground.sql, RunId("a"), after_seq=after_seq, after_signal=-1
        )
        assert news is not None
        told = {str(key.node_id): fact.status.value for key, fact in news.approvals.items()}
        return told, news.last_seq

    told, seq = await read_news(0)
    assert told == {}
    for node_id, is_approved in (("first", True), ("second", False)):
        assert await decide(ground, is_approved=is_approved, node_id=node_id) == "decided"
    assert await read_news(seq) == ({"first": "approved", "second": "denied"}, seq + 2)
    assert await read_news(seq + 1) == ({"second": "denied"}, seq + 2)
    assert await read_news(seq + 2) == ({}, seq + 2)
    (loaded,) = await run_facts.load_runs(ground.sql, [RunId("a")])
    assert isinstance(loaded, run_facts.LoadedRun)
    assert {key.node_id for key in loaded.news.approvals} == {"first", "second"}


async def test_a_signal_that_a_node_took_is_not_among_the_news_any_more(ground, worker, committer):
    (claim,) = await ground.owned(worker, "a")
    for data in ("1", "2", "3"):
        await ground.sql.fetchrow(
            "SELECT * FROM smithers.send_signal_v2('a', 's', NULL, $1, NULL, NULL)", data
        )
    await committer.commit(change(claim, a_turn(signals=[(0, key_of("n")), (2, key_of("n", 1))])))
    news = await run_facts.load_news(ground.sql, RunId("a"), after_seq=0, after_signal=-1)
    assert news is not None
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
        news = await run_facts.load_news(
            ground.sql, RunId("a"), after_seq=0, after_signal=after_signal
        )
        assert news is not None
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
    assert isinstance(loaded, run_facts.LoadedRun)
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
        assert isinstance(answer, Committed)
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


# The nodes that have one moment take long to read.
DAWDLING = """
    CREATE OR REPLACE FUNCTION smithers.to_ms(p_at timestamptz) RETURNS bigint LANGUAGE plpgsql AS $$
    BEGIN
        IF p_at = '2999-01-01' THEN
            PERFORM {dawdling};
        END IF;
        RETURN floor(extract(epoch FROM p_at) * 1000);
    END $$"""


async def own_long_and_quick(ground: Ground, worker: WorkerId, committer: Committer) -> None:
    for claim in await ground.owned(worker, "long", "quick"):
        await committer.commit(
            change(claim, a_turn(nodes={key_of("n"): NodeFact(NodeState.PENDING)}))
        )
    await ground.sql.execute(
        "UPDATE smithers.nodes SET due_at = '2999-01-01' WHERE run_id = 'long'"
    )


async def test_a_run_that_takes_longer_to_load_than_a_call_may_is_loaded_and_holds_nobody_up(
    ground, worker, committer, monkeypatch
):
    monkeypatch.setattr(lanes, "COMMAND_TIMEOUT_S", 1.5)
    await own_long_and_quick(ground, worker, committer)
    await ground.sql.execute(DAWDLING.format(dawdling="pg_advisory_xact_lock(7)"))
    holder = await ground.connect()
    await holder.execute("SELECT pg_advisory_lock(7)")
    async with open_worker_store(ground.dsn, worker) as store, asyncio.timeout(60):
        loading = [asyncio.create_task(store.load_run(RunId(name))) for name in ("long", "quick")]
        await loading[1]
        await ground.until(
            """SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'smithers-load-long'
            AND wait_event_type = 'Lock' AND datname = current_database()"""
        )
        assert (await store.load_run(RunId("quick"))).facts.nodes
        assert not loading[0].done()
        await holder.execute("SELECT pg_advisory_unlock(7)")
        assert (await loading[0]).facts.nodes.keys() == {key_of("n")}


async def test_a_run_that_takes_longer_to_load_than_anybody_waits_is_too_large(
    ground, worker, committer, monkeypatch
):
    monkeypatch.setattr(lanes, "COMMAND_TIMEOUT_S", 1.0)
    monkeypatch.setattr(run_facts, "PATIENT_S", 2.0)
    await own_long_and_quick(ground, worker, committer)
    await ground.sql.execute(DAWDLING.format(dawdling="pg_sleep(600)"))
    async with open_worker_store(ground.dsn, worker) as store, asyncio.timeout(60):
        with pytest.raises(AnswerTooLarge):
            await store.load_run(RunId("long"))
        assert (await store.load_run(RunId("quick"))).facts.nodes
