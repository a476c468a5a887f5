"""A workflow's own database: what happens in it stands in the server's a little later, as it is there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from smithers import service_loops
from smithers.errors import CallTooLong, StoreError, StoreUnavailable
from smithers.ids import RunId, SourceHash
from smithers.store.mirror import PAGE_EVENTS, Copied, MirrorStore, open_mirror
from smithers.store.outside import SignalSent, cancel_run, open_outside_lane, send_signal
from smithers.store.own_databases import (
    find_home,
    list_own_databases,
    reserve_run,
    use_own_database,
)
from smithers.store.refusals import KeyReused, LivesElsewhere, RunExists
from smithers.store.starts import IdempotencyKey, RunStart, count_queued
from tests.support.gateway import Rows
from tests.support.mirrors import NAME, assert_equal, two_worlds, until_mirrored
from tests.support.world import PATIENCE_S, World, until
from worker import mirroring as mirroring_module
from worker.mirroring import Mirror, mirroring
from worker.settings import PoolSettings

FLOW = """
    from smithers import Approval, Loop, Parallel, Sequence, Task, workflow

    def fail():
        raise ValueError("no")

    @workflow
    def flow(ctx):
        return Sequence(
            Parallel(*(Task(f"p{n}", lambda: ctx.run_id) for n in range(3))),
            Loop("again", Task("turn", lambda: ctx.iteration), until=ctx.iteration_count("turn") >= 3),
            Task("may-fail", fail, continue_on_fail=True),
            Approval("ask", title="Go on?"),
            Task("last", lambda: "done"),
        )
"""


@pytest.fixture
async def worlds(
    database: str, postgres_server: str, database_template: str, tmp_path: Path
) -> AsyncIterator[tuple[World, World]]:
    async with two_worlds(database, postgres_server, database_template, tmp_path) as both:
        yield both


@pytest.fixture
async def mirror(worlds: tuple[World, World]) -> AsyncIterator[MirrorStore]:
    home, own = worlds
    async with open_mirror(own.dsn, home.dsn, NAME) as store:
        yield store


@pytest.fixture
async def pool(worlds: tuple[World, World]) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(worlds[0].dsn, min_size=0, max_size=2) as pool:
        yield pool


def a_start(run_id: str, **changes: object) -> RunStart:
    fields = {
        "run_id": RunId(run_id), "workflow_name": "flow", "workflow_path": "flow.py", "workflow_export": None,
        "source_hash": SourceHash("hash"), "input": '{"a":1}', "config": "{}", "auth": None, "trace_context": None,
        "parent_run_id": None, "queue": "q", "priority": 0, "head": "", "tail": "", **changes,
    }  # fmt: skip
    return RunStart(**fields)  # type: ignore[arg-type]  # its fields, by name


async def reserve(
    pool: asyncpg.Pool,
    run_id: str,
    *,
    database: str = NAME,
    key: IdempotencyKey | None = None,
    is_there: bool = False,
) -> RunId | None:
    return await reserve_run(pool, a_start(run_id), database=database, key=key, is_there=is_there)


def settings_of(home: World, own: World) -> PoolSettings:
    return PoolSettings(
        dsn=own.dsn,
        direct_dsn=own.dsn,
        root_dir=str(own.root),
        worker_count=0,
        mirror_name=NAME,
        mirror_dsn=home.dsn,
    )


async def until_waiting(world: World, run_id: str) -> None:
    await world.until_status(run_id, "waiting-approval")


async def test_what_workers_do_in_an_own_database_stands_in_the_servers(
    worlds: tuple[World, World],
) -> None:
    home, own = worlds
    own.write("flow.py", FLOW)
    own.start_pool(workers=1, mirror_name=NAME, mirror_dsn=home.dsn)
    for number in range(5):
        await own.start(f"r{number}", "flow.py")
    for number in range(5):
        await until_waiting(own, f"r{number}")
    await until_mirrored(home, own)
    await own.decide("r0", "ask", is_approved=True)
    await own.decide("r1", "ask", is_approved=False)
    await own.until_status("r0", "finished")
    await own.until_status("r1", "failed")
    await until_mirrored(home, own)
    assert (
        await home.sql.fetchval("SELECT count(*) FROM smithers.runs WHERE owner_id IS NOT NULL")
        == 0
    )
    assert await home.outputs("r0") == await own.outputs("r0")


async def test_after_a_resume_the_mirror_has_the_nodes_that_no_event_named(
    worlds: tuple[World, World], mirror: MirrorStore
) -> None:
    home, own = worlds
    rows = Rows(own.sql, own.root)
    await rows.add_run("r", status="failed")
    await rows.add_node("r", "broken", "failed")
    await mirror.copy([RunId("r")])
    assert await own.resume("r") == "resumed"
    await mirror.copy([RunId("r")])
    assert await home.states("r") == {"broken": "pending"}
    await assert_equal(home.sql, own.sql)


async def test_a_mirror_outlives_what_nobody_foresaw(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    copy = MirrorStore.copy
    failed: list[Sequence[RunId]] = []

    async def fail_once(store: MirrorStore, run_ids: Sequence[RunId]) -> Copied:
        if not failed:
            failed.append(run_ids)
            raise KeyError("nobody foresaw this")
        return await copy(store, run_ids)

    monkeypatch.setattr(MirrorStore, "copy", fail_once)
    monkeypatch.setattr(service_loops, "PAUSE_S", 0)
    await Rows(own.sql, own.root).add_run("r", events=3)
    async with mirroring(settings_of(home, own)):
        await until_mirrored(home, own)
    assert failed == [["r"]]


async def test_a_long_history_is_copied_a_page_at_a_time_and_has_not_ended_before_its_last(
    worlds: tuple[World, World], mirror: MirrorStore
) -> None:
    home, own = worlds
    await Rows(own.sql, own.root).add_run("r", status="finished", events=2 * PAGE_EVENTS + 1)
    for _ in range(2):
        assert (await mirror.copy([RunId("r")])).unfinished == {"r"}
        assert await home.status("r") == "running"
    assert not (await mirror.copy([RunId("r")])).unfinished
    assert (await mirror.copy([RunId("r")])).event_count == 0
    await assert_equal(home.sql, own.sql)


async def test_a_copy_holds_a_page_however_much_a_run_has(
    worlds: tuple[World, World], mirror: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    page_bytes, page_keys = 2_000, 7
    monkeypatch.setattr("smithers.store.mirror.PAGE_BYTES", page_bytes)
    monkeypatch.setattr("smithers.store.mirror.PAGE_KEYS", page_keys)
    rows = Rows(own.sql, own.root)
    for run_id, node_count in (("whole", 40), ("named", 20)):
        await rows.add_run(run_id, status="running")
        await mirror.copy([RunId(run_id)])
        await rows.add_events(run_id, 20, size=300)
        await own.sql.execute(
            """INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, created_at, output)
            SELECT $1, 'n' || n / 3, n % 3, 'task', 'finished', smithers.clock(), to_json(repeat('x', n * 20))::text
            FROM generate_series(1, $2::integer) AS n""",
            run_id,
            node_count,
        )
    await own.sql.execute(
        """UPDATE smithers.events SET
            payload = left(payload, -1) || format(',"nodeId":"n%s","iteration":%s}', seq / 3, seq % 3)
        WHERE run_id = 'named' AND seq > 0"""
    )
    await own.sql.execute("UPDATE smithers.runs SET era = 1 WHERE run_id = 'whole'")
    execute, held = asyncpg.Connection.execute, []

    async def weigh(connection: asyncpg.Connection, query: str, *values: object) -> str:
        if "INSERT" in query:
            held.append(sum(len(value) for value in values[-1]))  # type: ignore[attr-defined, misc]  # its rows
        return await execute(connection, query, *values)

    monkeypatch.setattr(asyncpg.Connection, "execute", weigh)
    while (await mirror.copy([RunId("whole"), RunId("named")])).unfinished:
        pass
    monkeypatch.undo()
    assert len(held) > 20
    # Beside its output a row has the names of its columns.
    assert max(held) < page_bytes + page_keys * 400
    await assert_equal(home.sql, own.sql)


async def add_nodes(own: World, run_id: str, count: int) -> None:
    await own.sql.execute(
        """INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, created_at)
        SELECT $1, 'n' || n, 0, 'task', 'finished', smithers.clock() FROM generate_series(1, $2::integer) AS n""",
        run_id,
        count,
    )


async def end(own: World, run_id: str) -> None:
    await Rows(own.sql, own.root).add_events(run_id, 1)
    await own.sql.execute("UPDATE smithers.runs SET status = 'finished' WHERE run_id = $1", run_id)
    await own.sql.execute(
        "UPDATE smithers.runs SET finished_at = smithers.clock() WHERE run_id = $1", run_id
    )


async def test_the_rows_of_a_large_run_are_copied_in_turns_with_those_of_others(
    worlds: tuple[World, World], mirror: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    monkeypatch.setattr("smithers.store.mirror.TURN_S", 0.0)
    monkeypatch.setattr("smithers.store.mirror.PAGE_KEYS", 10)
    for run_id, node_count in (("large", 35), ("larger", 45), ("small", 3)):
        await Rows(own.sql, own.root).add_run(run_id, status="running")
        await mirror.copy([RunId(run_id)])
        await add_nodes(own, run_id, node_count)
        await end(own, run_id)
    all_runs = [RunId("large"), RunId("larger"), RunId("small")]
    for _ in range(2):  # each of the large ones has a page
        assert (await mirror.copy(all_runs)).unfinished == {"large", "larger", "small"}
    assert (await mirror.copy(all_runs)).unfinished == {"large", "larger"}
    assert [await home.status(run_id) for run_id in all_runs] == ["running", "running", "finished"]
    turns = 4
    while (await mirror.copy(all_runs)).unfinished:
        turns += 1
    assert turns > 7
    await assert_equal(home.sql, own.sql)


async def test_a_copy_in_turns_begins_anew_after_one_that_failed_and_in_another_era(
    worlds: tuple[World, World], mirror: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    monkeypatch.setattr("smithers.store.mirror.TURN_S", 0.0)
    monkeypatch.setattr("smithers.store.mirror.PAGE_KEYS", 10)
    await Rows(own.sql, own.root).add_run("r", status="running")
    await mirror.copy([RunId("r")])
    await add_nodes(own, "r", 35)
    await end(own, "r")
    assert (await mirror.copy([RunId("r")])).unfinished == {"r"}
    with monkeypatch.context() as broken:
        broken.setattr("smithers.store.mirror.NODES.insert", "SELECT 1 / 0, $1::text[]")
        with pytest.raises(StoreError):
            await mirror.copy([RunId("r")])
    assert (await mirror.copy([RunId("r")])).unfinished == {"r"}
    # As a resume does, which names no nodes.
    await own.sql.execute("UPDATE smithers.nodes SET state = 'pending' WHERE node_id = 'n1'")
    await own.sql.execute(
        "UPDATE smithers.runs SET status = 'running', finished_at = NULL, era = 1, last_seq = last_seq + 1"
    )
    await own.sql.execute(
        """INSERT INTO smithers.events (run_id, seq, epoch, payload)
        SELECT run_id, seq + 1, epoch, payload FROM smithers.events ORDER BY seq DESC LIMIT 1"""
    )
    while (await mirror.copy([RunId("r")])).unfinished:
        pass
    await assert_equal(home.sql, own.sql)


async def test_runs_that_take_too_long_to_copy_hold_up_nobody_else(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    copy, tries = MirrorStore.copy, []

    async def take_too_long(store: MirrorStore, run_ids: Sequence[RunId]) -> Copied:
        tries.append(run_ids)
        if len(run_ids) > 2 or "stuck" in run_ids:
            raise CallTooLong("the database aborted a call that took too long")
        return await copy(store, run_ids)

    monkeypatch.setattr(MirrorStore, "copy", take_too_long)
    monkeypatch.setattr("worker.mirroring.RETRY_S", 0)
    rows = Rows(own.sql, own.root)
    for run_id in ("r0", "r1", "stuck", "z0", "z1"):
        await rows.add_run(run_id, events=3)

    async def are_there() -> bool:
        return await home.sql.fetchval("SELECT count(*) FROM smithers.runs") == 4

    async with mirroring(settings_of(home, own)):
        await until(are_there, "the others are mirrored")
    assert len(tries[0]) == 5


async def test_a_mirror_that_stands_by_remembers_the_newest_hints_only(
    worlds: tuple[World, World], mirror: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    monkeypatch.setattr(mirroring_module, "MAX_REMEMBERED", 100)
    second = Mirror(NAME, own_dsn=own.dsn, own_direct_dsn=own.dsn, home_dsn=home.dsn)
    standing_by = asyncio.create_task(second.run())

    async def has_heard(run_id: str) -> bool:
        await own.sql.execute("SELECT pg_notify('smithers_events', $1)", run_id)
        return run_id in second._moved

    await until(lambda: has_heard("first"), "it listens")
    for number in range(1_000):
        await own.sql.execute("SELECT pg_notify('smithers_events', $1)", f"r{number}")
    await until(lambda: has_heard("last"), "it has heard all")
    assert len(second._moved) <= 100
    assert {"r999", "last"} <= second._moved.keys()
    standing_by.cancel()


async def test_a_run_of_the_servers_own_database_is_never_overwritten(
    worlds: tuple[World, World], mirror: MirrorStore
) -> None:
    home, own = worlds
    await Rows(home.sql, home.root).add_run("same", events=2)
    await Rows(own.sql, own.root).add_run("same", events=9)
    assert await mirror.find_behind(RunId(""), 10) == ([], None)
    assert (await mirror.copy([RunId("same")])).event_count == 0
    assert len(await home.events("same")) == 2


async def test_a_mirror_can_only_be_read(
    worlds: tuple[World, World], mirror: MirrorStore, pool: asyncpg.Pool
) -> None:
    home, own = worlds
    rows = Rows(own.sql, own.root)
    await rows.add_run("r", status="running")
    await rows.ask("r", "ask")
    await rows.add_events("r", 1)
    await mirror.copy([RunId("r")])
    before = await home.sql.fetch("SELECT *, xmin::text FROM smithers.runs")
    with pytest.raises(LivesElsewhere):
        await cancel_run(pool, RunId("r"))
    sent = SignalSent(
        run_id=RunId("r"), signal_name="s", correlation_id=None, data="1", received_by=None, signal_id=None
    )  # fmt: skip
    async with open_outside_lane(home.dsn) as lane:
        with pytest.raises(LivesElsewhere):
            await send_signal(lane, sent)
    assert await home.sql.fetch("SELECT *, xmin::text FROM smithers.runs") == before
    assert await home.sql.fetchval("SELECT count(*) FROM smithers.signals") == 0


async def test_the_copy_of_a_second_mirror_is_refused_as_a_whole(
    worlds: tuple[World, World], mirror: MirrorStore
) -> None:
    home, own = worlds
    await Rows(own.sql, own.root).add_run("r", events=5)
    await mirror.copy([RunId("r")])
    # As a rival would have read it before.
    await home.sql.execute(
        "UPDATE smithers.runs SET mirrored_seq = 1, last_seq = 1 WHERE run_id = 'r'"
    )
    with pytest.raises(StoreError):
        await mirror.copy([RunId("r")])
    assert len(await home.events("r")) == 5


async def test_one_session_is_the_mirror_and_the_next_takes_over_when_it_dies(
    worlds: tuple[World, World], mirror: MirrorStore
) -> None:
    home, _ = worlds
    taken = "SELECT pg_try_advisory_lock(hashtextextended('smithers mirror of ' || $1, 0))"
    assert not await home.sql.fetchval(taken, NAME)
    await home.sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'smithers-mirror'"
        " AND datname = current_database()"
    )

    async def is_free() -> bool:
        return await home.sql.fetchval(taken, NAME)

    await until(is_free, "the lock is free")


async def test_a_mirror_that_says_nothing_any_more_makes_room_for_the_next(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose host is gone, or frozen: nothing tells the server."""
    home, own = worlds
    monkeypatch.setattr("smithers.store.mirror.IDLE_S", 1.0)
    async with open_mirror(own.dsn, home.dsn, NAME) as silent, asyncio.timeout(PATIENCE_S):
        monkeypatch.undo()
        async with open_mirror(own.dsn, home.dsn, NAME) as store:
            assert await store.find_behind(RunId(""), 1) == ([], None)
        with pytest.raises(StoreUnavailable):
            await silent.find_behind(RunId(""), 1)


async def test_a_step_of_a_mirror_ends_in_time(
    worlds: tuple[World, World], mirror: MirrorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, own = worlds
    monkeypatch.setattr("smithers.store.mirror.STEP_S", 0.3)
    async with own.sql.transaction(), asyncio.timeout(PATIENCE_S):
        await own.sql.execute("LOCK TABLE smithers.runs")
        with pytest.raises(StoreUnavailable):
            await mirror.find_behind(RunId(""), 1)


async def test_an_id_is_reserved_once_whatever_the_database(
    worlds: tuple[World, World], pool: asyncpg.Pool
) -> None:
    home, _ = worlds
    for _ in range(2):
        assert await reserve(pool, "r") is None
    with pytest.raises(RunExists):
        await reserve(pool, "r", database="OTHER")
    await Rows(home.sql, home.root).add_run("mine")
    with pytest.raises(RunExists):
        await reserve(pool, "mine")
    with pytest.raises(RunExists):
        await reserve(pool, "theirs", is_there=True)
    homes = [await find_home(pool, RunId(each)) for each in ("r", "mine", "theirs")]
    assert homes == [NAME, None, None]
    assert await count_queued(pool, limit=10) == 1


async def test_a_key_stands_for_one_reservation(
    worlds: tuple[World, World], pool: asyncpg.Pool
) -> None:
    key = IdempotencyKey("key", "request")
    assert await reserve(pool, "first", key=key) is None
    assert await reserve(pool, "second", key=key) == "first"
    assert await reserve(pool, "second", key=key, is_there=True) == "first"
    assert await find_home(pool, RunId("second")) is None
    with pytest.raises(KeyReused):
        await reserve(pool, "third", key=IdempotencyKey("key", "other"))


async def test_a_new_key_is_for_a_new_id_and_is_not_used_up_by_one_that_is_taken(
    worlds: tuple[World, World], pool: asyncpg.Pool
) -> None:
    key = IdempotencyKey("key", "request")
    await reserve(pool, "r")
    with pytest.raises(RunExists):
        await reserve(pool, "r", key=key)
    with pytest.raises(RunExists):
        await reserve(pool, "theirs", key=key, is_there=True)
    assert await reserve(pool, "mine", key=key) is None
    with pytest.raises(RunExists):  # the key's start may be under way: nobody goes before it
        await reserve(pool, "mine")


async def test_a_start_that_stopped_half_way_is_finished_once(
    worlds: tuple[World, World], mirror: MirrorStore, pool: asyncpg.Pool
) -> None:
    home, own = worlds
    await home.sql.execute(
        "INSERT INTO smithers.workflow_sources (source_hash, bundle) VALUES ('hash', '{}')"
    )
    await reserve(pool, "r")
    assert await mirror.finish_starts() == 0  # its gateway may yet come
    await home.sql.execute(
        "UPDATE smithers.runs SET created_at = created_at - interval '61 s' WHERE run_id = 'r'"
    )
    assert await mirror.finish_starts() == 1
    assert await mirror.finish_starts() == 0
    assert await own.sql.fetchval("SELECT queue FROM smithers.runs WHERE due_at IS NOT NULL") == "q"
    await mirror.copy([RunId("r")])
    await assert_equal(home.sql, own.sql)
    assert (await home.events("r"))[0]["type"] == "RunStarted"


async def test_a_database_comes_into_use_once_and_is_heard_of(
    worlds: tuple[World, World], pool: asyncpg.Pool
) -> None:
    home, _ = worlds
    heard: list[object] = []
    await home.sql.add_listener("smithers_databases", lambda *told: heard.append(told[3]))
    for _ in range(2):
        await use_own_database(pool, NAME)

    async def is_heard() -> bool:
        return heard == [NAME]

    await until(is_heard, "the name is heard of")
    assert await list_own_databases(pool) == [NAME]
