"""Who gets which run: claims against claims, against burials, against time; and what a death leaves behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import chain, pairwise
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from smithers.engine.facts import NodeFact
from smithers.engine.turn import ApprovalChange, Turn
from smithers.errors import LeaseLost, StoreUnavailable
from smithers.events import EventType
from smithers.ids import RunId, WorkerId
from smithers.states import NodeState, RunStatus
from smithers.store import claims, connections, owners
from smithers.store.claims import ClaimKind
from smithers.store.commits import Committed, Committer, TurnCommit
from smithers.store.whys import find_why
from smithers.store.worker_store import WorkerStore, open_worker_store
from tests.support.proxy import Mode, Proxy
from tests.support.turns import (
    Ground,
    a_turn,
    as_pool,
    change,
    ended,
    ids,
    key_of,
    names,
    parked,
    said,
    seeded,
)

RIVALS = 4
IN_FLIGHT = {key_of("n"): NodeFact(NodeState.IN_PROGRESS, attempt=1)}


async def next_due_ms(ground: Ground) -> int:
    """How long until the default queue has something, which it will."""
    due_ms = await claims.find_next_due_ms(ground.sql, "default")
    assert due_ms is not None
    return due_ms


async def test_no_run_goes_to_two_claimers_and_none_is_left(ground):
    await ground.start(*names(200, "a"), priority=0)
    await ground.start(*names(200, "b"), priority=3)
    workers = [await ground.add_worker() for _ in range(RIVALS)]
    connections = [await ground.connect() for _ in range(RIVALS)]

    async def claim_all(worker: WorkerId, connection: asyncpg.Connection) -> list[str]:
        taken: list[str] = []
        while claimed := await claims.claim_runs(
            connection, worker_id=worker, queue="default", limit=7, kind=ClaimKind.MANY
        ):
            assert len(claimed) <= 7
            taken += [claim.run_id for claim in claimed]
        return taken

    shares = await asyncio.gather(*map(claim_all, workers, connections))
    assert sorted(chain(*shares)) == [*names(200, "a"), *names(200, "b")]
    for worker, share in zip(workers, shares, strict=True):
        owned = await ground.sql.fetchval(
            "SELECT array_agg(run_id ORDER BY run_id) FROM smithers.runs WHERE owner_id = $1",
            worker,
        )
        assert (owned or []) == sorted(share)


@pytest.mark.parametrize("limit", [1, 5, 64])
async def test_a_claim_takes_as_many_as_it_asked_for_and_passes_what_others_hold(
    ground, worker, limit: int
):
    await ground.start(*names(100))
    rival = await ground.connect()
    async with rival.transaction():
        held = await rival.fetch(
            "SELECT run_id FROM smithers.runs ORDER BY run_id LIMIT 30 FOR NO KEY UPDATE"
        )
        claimed = await ground.claim(worker, limit)
    assert len(claimed) == limit
    assert not {claim.run_id for claim in claimed} & {row["run_id"] for row in held}
    owned = await ground.sql.fetchval(
        "SELECT count(*) FROM smithers.runs WHERE owner_id = $1", worker
    )
    assert owned == limit


async def test_the_most_urgent_come_first_and_of_equals_the_longest_due(ground, worker):
    rng = seeded()
    places = [(priority, age_s) for priority in (-3, 0, 7) for age_s in range(1, 6)]
    rng.shuffle(places)
    for number, (priority, age_s) in enumerate(places):
        await ground.start(f"r{number}", priority=priority)
        await ground.sql.execute(
            "UPDATE smithers.runs SET due_at = smithers.clock() - $2 * interval '1 s' WHERE run_id = $1",
            f"r{number}",
            age_s,
        )
    order = []
    while claimed := await ground.claim(worker, limit=1):
        order.append(places[int(claimed[0].run_id[1:])])
    assert order == sorted(places, reverse=True)


@pytest.mark.parametrize("kind", list(ClaimKind))
async def test_what_is_due_in_the_future_or_in_another_queue_is_not_claimed(ground, worker, kind):
    await ground.start("later", "alone-later", queue="default")
    await ground.start("elsewhere", queue="other")
    await ground.sql.execute(
        """UPDATE smithers.runs SET crash_count = CASE run_id WHEN 'alone-later' THEN 1 ELSE 0 END,
        due_at = CASE queue WHEN 'default' THEN smithers.clock() + interval '1 h' ELSE due_at END"""
    )
    assert await ground.claim(worker, kind=kind) == []


async def test_a_claim_says_all_that_a_start_said_and_starts_the_clock(ground, worker):
    said_of = {
        "workflow_path": "flows/x.py",
        "workflow_export": "x",
        "source_hash": "hash",
        "input": '{"a":"ü"}',
        "config": '{"maxConcurrency":2}',
        "auth": '{"user":"u"}',
        "trace_context": "00-1-2-3",
    }
    await ground.start("a", **said_of)
    (claim,) = await ground.claim(worker)
    assert {name: getattr(claim, name) for name in said_of} == said_of
    assert (claim.status_before, claim.is_new) == (RunStatus.QUEUED, True)
    row = await ground.run("a")
    assert (row["status"], row["owner_id"], row["due_at"]) == ("running", worker, None)
    assert row["started_at"] >= row["created_at"]


async def test_the_epoch_grows_with_each_claim_and_each_death(ground):
    await ground.start("a")
    epochs = []
    for _ in range(3):
        worker = await ground.add_worker()
        (claim,) = await ground.claim(worker)
        epochs.append(claim.epoch)
        await owners.bury_worker(as_pool(ground.sql), worker, "silent")
    epochs.append((await ground.run("a"))["epoch"])
    assert all(after > before + 1 for before, after in pairwise(epochs[:-1]))
    assert epochs[-1] == epochs[-2] + 1


async def test_the_epoch_grows_while_the_clock_stands_still_or_is_put_back(ground, worker):
    (before,) = await ground.owned(worker, "a")
    await ground.sql.execute(
        """CREATE OR REPLACE FUNCTION smithers.clock() RETURNS timestamptz
        LANGUAGE sql STABLE AS $$ SELECT timestamptz 'epoch' + interval '1 day' $$"""
    )
    await claims.release_runs(as_pool(ground.sql), worker, [before.run_id])
    (after,) = await ground.claim(worker)
    assert after.epoch > before.epoch


async def test_a_claim_waits_for_no_flush_and_what_follows_it_does(ground, worker):
    await ground.start("a")
    async with ground.sql.transaction():
        assert len(await ground.claim(worker)) == 1
        assert await ground.sql.fetchval("SHOW synchronous_commit") == "off"
    assert await ground.sql.fetchval("SHOW synchronous_commit") == "on"


async def set_clock(ground: Ground, ahead: str) -> None:
    await ground.sql.execute(
        f"""CREATE OR REPLACE FUNCTION smithers.clock() RETURNS timestamptz
        LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT clock_timestamp() + interval '{ahead}' $$"""
    )


@pytest.mark.parametrize("put_back_by", ["0 s", "1 h"])
async def test_a_claim_that_a_crash_of_the_database_took_back_writes_nothing(
    ground, worker, put_back_by: str
):
    """It was not flushed: the next claim finds the row as it was before, and has another epoch all the same."""
    await ground.start("a")
    await set_clock(ground, put_back_by)
    await ground.claim(worker)
    await set_clock(ground, "0 s")
    await claims.release_runs(as_pool(ground.sql), worker, [RunId("a")])
    before = await ground.run("a")
    (lost,) = await ground.claim(worker)
    await ground.sql.execute(
        "UPDATE smithers.runs SET owner_id = NULL, epoch = $1, due_at = $2",
        before["epoch"],
        before["due_at"],
    )
    (taken,) = await ground.claim(rival := await ground.add_worker())
    async with Committer(ground.dsn, worker_id=rival) as committer:
        await committer.commit(change(taken, said("first")))
    async with Committer(ground.dsn, worker_id=worker) as committer:
        with pytest.raises(LeaseLost):  # the same commit_no, and not taken for a repetition
            await committer.commit(change(lost, said("first")))
    assert await ground.types("a") == ["RunStarted", "first"]


async def test_the_era_of_a_resumed_run_begins_with_a_commit_whoever_had_it_before(ground, worker):
    (claim,) = await ground.owned(worker, "a")
    async with Committer(ground.dsn, worker_id=worker) as committer:
        await committer.commit(change(claim, ended(RunStatus.FAILED)))
        await ground.sql.execute("SELECT smithers.resume_run_v3('a', NULL, NULL, NULL, NULL, NULL)")
        (dying,) = await ground.claim(await ground.add_worker())
        await owners.bury_worker(as_pool(ground.sql), (await ground.run("a"))["owner_id"], "silent")
        (heir,) = await ground.claim(worker)
        assert [(one.status_before, one.era) for one in (dying, heir)] == [
            (RunStatus.QUEUED, 1)
        ] * 2
        await committer.commit(change(heir, said("on", status=RunStatus.RUNNING)))
    later = await ground.hand_over(heir, worker, await ground.add_worker())
    assert later.status_before is RunStatus.RUNNING


async def test_what_is_given_back_is_due_at_once_and_only_to_its_owner_to_give(ground, worker):
    await ground.owned(worker, "a", "b")
    rival = await ground.add_worker()
    assert await claims.release_runs(as_pool(ground.sql), rival, ids("a", "b")) == []
    assert await claims.release_runs(as_pool(ground.sql), worker, ids("a")) == ["default"]
    assert [claim.run_id for claim in await ground.claim(rival)] == ["a"]
    assert await ground.types("a") == ["RunStarted"]


async def test_a_run_that_wants_a_child_of_its_own_or_is_suspect_is_for_the_claims_that_say_so(
    ground, worker
):
    await ground.start("many")
    await ground.start("alone", is_solo=True)
    await ground.start("suspect", "suspect-alone")
    await ground.sql.execute(
        "UPDATE smithers.runs SET crash_count = 1 WHERE run_id LIKE 'suspect%'"
    )
    await ground.sql.execute(
        "UPDATE smithers.runs SET is_solo = true WHERE run_id = 'suspect-alone'"
    )
    apart = {ClaimKind.ISOLATED: 2, ClaimKind.SUSPECT: 1}
    assert await claims.count_runs_apart(ground.sql, ("default", "none")) == apart
    assert await next_due_ms(ground) <= 0
    (suspect,) = await ground.claim(worker, kind=ClaimKind.SUSPECT)
    assert (suspect.run_id, suspect.crash_count, suspect.is_solo) == ("suspect", 1, False)
    taken = await ground.claim(worker, kind=ClaimKind.ISOLATED)
    assert [(claim.run_id, claim.is_solo) for claim in taken] == [
        ("alone", True),
        ("suspect-alone", True),
    ]
    assert [claim.run_id for claim in await ground.claim(worker)] == ["many"]
    apart = {ClaimKind.ISOLATED: 0, ClaimKind.SUSPECT: 0}
    assert await claims.count_runs_apart(ground.sql, ("default",)) == apart


async def test_however_many_suspects_are_due_the_isolated_runs_are_counted_and_the_other_way_round(
    ground,
):
    await ground.start(*names(20, "suspect"), priority=1)
    await ground.sql.execute("UPDATE smithers.runs SET crash_count = 1")
    await ground.start(*names(20, "alone"), is_solo=True)
    most = {ClaimKind.ISOLATED: 16, ClaimKind.SUSPECT: 16}
    assert await claims.count_runs_apart(ground.sql, ("default",)) == most


async def test_first_time_suspects_are_claimed_without_those_of_two_deaths(ground, worker):
    await ground.start("many", "once-a", "once-b", "twice")
    await ground.start("alone", is_solo=True)
    await ground.sql.execute(
        """UPDATE smithers.runs SET crash_count = CASE run_id WHEN 'twice' THEN 2 ELSE 1 END
        WHERE run_id <> 'many'"""
    )
    claimed = await ground.claim(worker, kind=ClaimKind.FIRST_TIME)
    assert [claim.run_id for claim in claimed] == ["once-a", "once-b"]
    (claim,) = await ground.claim(worker, kind=ClaimKind.SUSPECT)
    assert (claim.run_id, claim.crash_count) == ("twice", 2)


async def test_an_acquitted_run_is_one_among_others(ground, worker):
    await ground.start("a")
    await ground.sql.execute("UPDATE smithers.runs SET crash_count = 1")
    (claim,) = await ground.claim(worker, kind=ClaimKind.SUSPECT)
    rival = await ground.add_worker()
    await claims.acquit_run(ground.sql, rival, claim.run_id, claim.epoch)
    await claims.acquit_run(ground.sql, worker, claim.run_id, claim.epoch - 1)
    assert (await ground.run("a"))["crash_count"] == 1
    await claims.acquit_run(ground.sql, worker, claim.run_id, claim.epoch)
    assert (await ground.run("a"))["crash_count"] == 0


async def test_the_next_due_time_is_the_earliest_of_any_priority(ground, worker):
    assert await claims.find_next_due_ms(ground.sql, "default") is None
    for run_id, priority, due_s in (("a", 5, 36_000), ("b", 0, 600), ("c", -5, 6_000)):
        await ground.start(run_id, priority=priority)
        await ground.sql.execute(
            "UPDATE smithers.runs SET due_at = smithers.clock() + $2 * interval '1 s' WHERE run_id = $1",
            run_id,
            due_s,
        )
    assert 500_000 < await next_due_ms(ground) <= 600_000
    await ground.start("d", priority=-9)
    assert -100_000 < await next_due_ms(ground) <= 0


async def test_the_news_are_the_runs_that_others_wrote_to_or_took(ground, worker):
    claimed = await ground.owned(worker, "cancelled", "lost", "quiet", "signalled")
    cursors = {claim.run_id: claim.last_seq for claim in claimed}
    assert await claims.find_news(ground.sql, worker, cursors) == {}
    await ground.sql.fetchrow("SELECT * FROM smithers.cancel_run_v1('cancelled')")
    await ground.sql.fetchrow(
        "SELECT * FROM smithers.send_signal_v2('signalled', 's', NULL, '1', NULL, NULL)"
    )
    await ground.hand_over(claimed[1], worker, await ground.add_worker())
    cursors["never was"] = 0
    news = await claims.find_news(ground.sql, worker, cursors)
    assert news == {"cancelled": None, "lost": None, "never was": None, "signalled": 1}


async def test_a_worker_that_is_buried_or_was_never_registered_claims_nothing(ground, worker):
    await ground.start("a")
    await owners.bury_worker(as_pool(ground.sql), worker, "silent")
    assert await ground.claim(worker) == []
    assert await ground.claim(WorkerId(uuid4())) == []
    assert (await ground.run("a"))["epoch"] == 0


async def test_a_burial_waits_for_a_claim_under_way_and_hands_its_runs_back(ground, worker):
    await ground.start("a")
    claiming, burying = await ground.connect(), await ground.connect()
    async with claiming.transaction():
        (claim,) = await claims.claim_runs(
            claiming, worker_id=worker, queue="default", limit=1, kind=ClaimKind.MANY
        )
        burial = asyncio.create_task(owners.bury_worker(burying, worker, "silent"))
        await ground.until_waiting(burying)
    assert (await burial).queues == {"default": 1}
    row = await ground.run("a")
    assert (row["owner_id"], row["epoch"]) == (None, claim.epoch + 1)


async def test_a_claim_waits_for_its_workers_burial_and_takes_nothing(ground, worker):
    await ground.start("a")
    claiming, burying = await ground.connect(), await ground.connect()
    async with burying.transaction():
        await owners.bury_worker(burying, worker, "silent")
        claim = asyncio.create_task(
            claims.claim_runs(
                claiming, worker_id=worker, queue="default", limit=1, kind=ClaimKind.MANY
            )
        )
        await ground.until_waiting(claiming)
    assert await claim == []
    assert (await ground.run("a"))["owner_id"] is None


async def test_no_run_ends_with_a_dead_owner_however_claims_and_burials_race(ground):
    rng, rounds = seeded(), 60
    await ground.start(*names(100))
    claimers = [await ground.connect() for _ in range(3)]
    buriers = [await ground.connect() for _ in range(2)]
    for _ in range(rounds):
        worker = await ground.add_worker()
        racing: list[Any] = [
            claims.claim_runs(
                connection, worker_id=worker, queue="default", limit=10, kind=ClaimKind.MANY
            )
            for connection in claimers
        ]
        racing += [owners.bury_worker(connection, worker, "silent") for connection in buriers]
        rng.shuffle(racing)
        await asyncio.gather(*racing)
        orphans = await ground.sql.fetchval(
            """SELECT count(*) FROM smithers.runs r JOIN smithers.workers w ON w.worker_id = r.owner_id
            WHERE w.dead_at IS NOT NULL"""
        )
        assert orphans == 0
    owned = await ground.sql.fetchval(
        "SELECT count(*) FROM smithers.runs WHERE owner_id IS NOT NULL"
    )
    assert owned == 0


async def test_a_worker_is_buried_once_and_beats_no_more(ground, worker):
    await ground.owned(worker, "a")
    buriers = [await ground.connect() for _ in range(4)]
    freed = await asyncio.gather(*(owners.bury_worker(c, worker, "silent") for c in buriers))
    assert sorted((one.queues for one in freed), key=len) == [{}, {}, {}, {"default": 1}]
    living = await ground.add_worker()
    assert await owners.beat(ground.sql, [worker, living], []) == {living}
    assert [found.worker_id for found in await owners.list_living(ground.sql)] == [living]


async def test_the_late_answer_to_a_park_does_not_make_the_next_claim_unknown(
    ground, worker, monkeypatch: pytest.MonkeyPatch
):
    await ground.start("r")
    async with open_worker_store(ground.dsn, worker) as store:
        (first,) = await store.claim("default", 1, ClaimKind.MANY)
        commit = store._committer.commit

        async def answer_after_the_next_claim(parking: TurnCommit) -> Committed:
            answer = await commit(parking)
            assert len(await store.claim("default", 1, ClaimKind.MANY)) == 1
            return answer

        monkeypatch.setattr(store._committer, "commit", answer_after_the_next_claim)
        await store.commit(change(first, parked(due_ms=0)))
        store._is_claim_lost = True
        assert await store.claim("default", 1, ClaimKind.MANY) == []


async def test_a_worker_that_has_retired_is_not_counted_on_by_who_waits(ground, worker):
    await ground.start("r")
    other = await ground.add_worker()
    assert await owners.beat(ground.sql, [worker, other], [worker]) == {worker, other}
    row = await find_why(ground.sql, RunId("r"))
    assert row is not None
    assert row.worker_count == 1


@pytest.mark.parametrize(
    ("death", "count"), [("exit--9", 1), ("exit-1", 1), ("silent", 0), ("gone", 0)]
)
async def test_only_an_end_that_its_parent_saw_makes_suspects_and_only_of_what_was_in_flight(
    ground, worker, death: str, count: int
):
    busy, waiting, _ = await ground.owned(worker, "busy", "idle", "new")
    async with Committer(ground.dsn, worker_id=worker) as committer:
        await committer.commit(change(busy, a_turn(nodes=IN_FLIGHT)))
        await committer.commit(change(waiting, said("all is done")))
    beaten_at = await ground.sql.fetchval("SELECT heartbeat_at FROM smithers.workers")
    await owners.bury_worker(as_pool(ground.sql), worker, death)
    counts = {
        run_id: (await ground.run(run_id))["crash_count"] for run_id in ("busy", "idle", "new")
    }
    assert counts == {"busy": count, "idle": 0, "new": count}
    assert (await ground.run("idle"))["lost_heartbeat_at"] == beaten_at
    successor = await ground.add_worker()
    taken = await ground.claim(successor, kind=ClaimKind.SUSPECT) if count else []
    taken += await ground.claim(successor)
    assert {claim.run_id for claim in taken} == {"busy", "idle", "new"}
    assert {claim.lost_heartbeat_ms for claim in taken} == {int(beaten_at.timestamp() * 1000)}


async def die_with(ground: Ground, run_id: str, *, turn: Turn | None = None) -> owners.HandedBack:
    """Have a worker take the run up, perhaps commit, and die of it."""
    worker = await ground.add_worker()
    claimed = await ground.claim(worker) or await ground.claim(worker, kind=ClaimKind.SUSPECT)
    assert [claim.run_id for claim in claimed] == [run_id]
    if turn is not None:
        async with Committer(ground.dsn, worker_id=worker) as committer:
            await committer.commit(change(claimed[0], turn, is_cleared=False))
    return await owners.bury_worker(as_pool(ground.sql), worker, "exit--11")


async def test_the_third_death_in_a_row_fails_the_run_and_says_so(ground):
    await ground.start("a")
    nodes = {
        **IN_FLIGHT,
        key_of("ok"): NodeFact(NodeState.WAITING_APPROVAL, "approval"),
        key_of("done"): NodeFact(NodeState.FINISHED, output="1"),
    }
    asked = [ApprovalChange(key_of("ok"), '{"title":"?"}')]
    burials = [await die_with(ground, "a", turn=a_turn(nodes=nodes, approvals=asked))]
    burials += [await die_with(ground, "a") for _ in range(2)]

    assert [burial.queues for burial in burials] == [{"default": 1}, {"default": 1}, {}]
    written = [await owners.list_crash_events(ground.sql, burial.failed) for burial in burials]
    types = [EventType.NODE_FAILED, EventType.NODE_CANCELLED, EventType.RUN_FAILED]
    assert written == [[], [], [("a", kind) for kind in types]]
    failed, cancelled, end = (await ground.history("a"))[1:]
    error = {"name": "WorkerCrashed", "code": "WORKER_CRASHED", "message": end["error"]["message"]}
    assert (failed["type"], failed["nodeId"], failed["attempt"]) == ("NodeFailed", "n", 1)
    assert (cancelled["type"], cancelled["nodeId"]) == ("NodeCancelled", "ok")
    assert (end["type"], end["error"], failed["error"]) == ("RunFailed", error, error)
    row = await ground.run("a")
    assert (row["status"], row["owner_id"], row["due_at"]) == ("failed", None, None)
    assert (row["crash_count"], json.loads(row["error"])) == (0, error)
    states = {node["node_id"]: node["state"] for node in await ground.rows("nodes", "a")}
    assert states == {"n": "failed", "ok": "cancelled", "done": "finished"}
    assert [row["status"] for row in await ground.rows("approvals", "a")] == ["cancelled"]
    worker = await ground.add_worker()
    assert [await ground.claim(worker, kind=kind) for kind in ClaimKind] == [[], [], [], []]


async def test_a_run_that_was_to_be_cancelled_is_not_failed_by_its_third_death(ground):
    await ground.start("a")
    await die_with(ground, "a", turn=a_turn(nodes=IN_FLIGHT))
    await die_with(ground, "a")
    worker = await ground.add_worker()
    await ground.claim(worker, kind=ClaimKind.SUSPECT)
    await ground.sql.fetchrow("SELECT * FROM smithers.cancel_run_v1('a')")
    burial = await owners.bury_worker(as_pool(ground.sql), worker, "exit--11")
    assert burial.queues == {"default": 1}
    (claim,) = await ground.claim(await ground.add_worker(), kind=ClaimKind.SUSPECT)
    assert claim.is_cancelling
    assert await ground.ends("a") == []


async def test_a_run_that_another_writes_to_is_handed_back_when_that_is_over(ground):
    await ground.start("a")
    await die_with(ground, "a", turn=a_turn(nodes=IN_FLIGHT))
    await die_with(ground, "a")
    worker, writing = await ground.add_worker(), await ground.connect()
    await ground.claim(worker, kind=ClaimKind.SUSPECT)
    await ground.owned(worker, "b")
    async with writing.transaction():
        await writing.fetchrow(
            "SELECT * FROM smithers.send_signal_v2('a', 's', NULL, '1', NULL, NULL)"
        )
        first = await owners.bury_worker(as_pool(ground.sql), worker, "exit--11")
        assert first == owners.HandedBack(
            is_all=False, queues={"default": 1}, failed=[], held=ids("a", "b")
        )
        (found,) = await owners.list_living(ground.sql)
        assert (found.worker_id, found.death) == (worker, "exit--11")
        assert await owners.beat(ground.sql, [worker], []) == set()
    second = await owners.bury_worker(as_pool(ground.sql), worker, "silent")
    assert second == owners.HandedBack(is_all=True, queues={}, failed=ids("a"), held=ids("a"))
    row = await ground.sql.fetchrow(
        "SELECT death, dead_at FROM smithers.workers WHERE worker_id = $1", worker
    )
    assert (row["death"], row["dead_at"]) == ("exit--11", (await ground.run("a"))["finished_at"])
    # Not older than what came meanwhile.
    assert await ground.types("a") == ["RunStarted", "SignalReceived", "NodeFailed", "RunFailed"]
    assert await owners.list_living(ground.sql) == []


async def test_a_burial_leaves_alone_what_its_worker_gave_back(ground, worker):
    over, waiting, held = await ground.owned(worker, "a", "b", "c")
    async with Committer(ground.dsn, worker_id=worker) as committer:
        await committer.commit(change(over, ended()))
        await committer.commit(change(waiting, parked()))
    await ground.hand_over(held, worker, await ground.add_worker())
    before = [dict(await ground.run(run_id)) for run_id in "abc"]
    burial = await owners.bury_worker(as_pool(ground.sql), worker, "exit-1")
    assert burial == owners.HandedBack(is_all=True, queues={}, failed=[], held=[])
    assert [dict(await ground.run(run_id)) for run_id in "abc"] == before


@pytest.fixture
async def remote(ground: Ground, worker: WorkerId) -> AsyncIterator[tuple[WorkerStore, Proxy]]:
    """A worker's store behind a proxy."""
    async with (
        Proxy(ground.dsn) as proxy,
        open_worker_store(proxy.dsn, worker) as store,
    ):
        yield store, proxy


async def test_runs_of_a_claim_whose_answer_was_lost_are_claimed_again(ground, worker, remote):
    store, proxy = remote
    await ground.start("known", "known-and-committed")
    known = await store.claim("default", 2, ClaimKind.MANY)
    await store.commit(change(known[1], said("on")))
    await ground.start("lost")
    proxy.link("smithers-claim").mode = Mode.LOSE_ANSWER
    with pytest.raises(StoreUnavailable):
        await store.claim("default", 2, ClaimKind.MANY)
    assert (await ground.run("lost"))["owner_id"] == worker
    again = await store.claim("default", 2, ClaimKind.MANY)
    assert [claim.run_id for claim in again] == ["lost"]
    for claim in (*known, *again):
        assert (await ground.run(claim.run_id))["epoch"] == claim.epoch
    assert await store.claim("default", 2, ClaimKind.MANY) == []


async def test_an_executor_that_asks_waits_for_as_long_as_the_database_is_away(
    ground, worker, remote
):
    store, proxy = remote
    await ground.start("a")
    (claim,) = await store.claim("default", 1, ClaimKind.MANY)
    await store.load_news(claim.run_id, after_seq=0, after_signal=-1)
    proxy.link("smithers-child").mode = Mode.LOSE_REQUEST
    news = await store.load_news(claim.run_id, after_seq=0, after_signal=-1)
    assert (news.last_seq, news.epoch) == (0, claim.epoch)


async def test_a_claim_over_a_stalled_connection_is_given_up_and_the_next_has_a_new_one(
    ground, remote, monkeypatch
):
    store, proxy = remote
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", 1.0)
    assert await store.claim("default", 1, ClaimKind.MANY) == []
    monkeypatch.undo()
    proxy.link("smithers-claim").mode = Mode.KEEP_REQUEST
    await ground.start("a")
    with pytest.raises(StoreUnavailable):
        await store.claim("default", 1, ClaimKind.MANY)
    assert [claim.run_id for claim in await store.claim("default", 1, ClaimKind.MANY)] == ["a"]
