"""What retention removes, what it leaves, and that it is in nobody's way."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Table

from smithers.errors import StoreError
from smithers.ids import RunId, SourceHash
from smithers.retention import pruning
from smithers.store import retention
from smithers.store.connections import open_pool
from smithers.store.descriptions import keep_source
from smithers.store.outside import Resume, ResumeOutcome, resume_run
from smithers.store.refusals import KeyReused, RunExists
from smithers.store.retention import Pruned, count_prunable, prune, prune_batch
from smithers.store.starts import IdempotencyKey, RunStart, open_start_lane, start_with_key
from smithers.store.tables import metadata

MONTH = timedelta(days=30)
OF_ITS_OWN = {  # has a run's id, and outlives the run
    "cached_outputs",  # others read them; they go by age
    "tombstones",
}
REST_TABLES = ("cached_outputs", "workflow_sources", "workflow_descriptions", "workers")
LIMIT_S = 60


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def a_start(run_id: str) -> RunStart:
    return RunStart(
        run_id=RunId(run_id),
        workflow_name="w",
        workflow_path="w.py",
        workflow_export=None,
        source_hash=SourceHash("none"),
        input="{}",
        config="{}",
        auth=None,
        trace_context=None,
        parent_run_id=None,
        queue="default",
        priority=0,
        head='{"timestampMs":',
        tail="}",
    )


def run_tables() -> list[Table]:
    return [
        table
        for table in metadata.sorted_tables
        if "run_id" in table.columns and table.name not in OF_ITS_OWN
    ]


async def add_run(
    sql: asyncpg.Connection,
    run_id: str,
    *,
    status: str = "finished",
    ended_days_ago: float = 31,
    **columns: Any,
) -> None:
    """Write a row in every table that has a run's id."""
    for table in run_tables():
        values = {
            column.name: value
            for column in table.columns
            if (value := _value(column, run_id)) is not None
        }
        if table.name == "runs":
            ended = None if status in {"running", "queued"} else ended_days_ago
            values |= {"status": status, **columns}
            await _insert(sql, table, values)
            await sql.execute(
                "UPDATE smithers.runs SET finished_at = smithers.clock() - make_interval(days => 1) * $2 WHERE run_id = $1",
                run_id,
                ended,
            )
        else:
            await _insert(sql, table, values)


def _value(column: Any, run_id: str) -> Any:
    if column.name in {"run_id", "idempotency_key"}:
        return run_id
    if column.nullable or column.server_default is not None:
        return None
    kind = str(column.type).split("(")[0].split(" ")[0]
    return {"TEXT": "x", "BOOLEAN": False, "TIMESTAMP": "now", "DATETIME": "now"}.get(kind, 0)


async def _insert(sql: asyncpg.Connection, table: Table, values: dict[str, Any]) -> None:
    names = ", ".join(values)
    row = json.dumps(values)
    await sql.execute(
        f"INSERT INTO {table.fullname} ({names}) "
        f"SELECT {names} FROM jsonb_populate_record(NULL::{table.fullname}, $1::jsonb)",
        row,
    )


async def tables_with(sql: asyncpg.Connection, run_id: str) -> set[str]:
    return {
        table.name
        for table in run_tables()
        if await sql.fetchval(
            f"SELECT EXISTS (SELECT FROM {table.fullname} WHERE run_id = $1)", run_id
        )
    }


async def run_ids(sql: asyncpg.Connection) -> set[str]:
    return {row["run_id"] for row in await sql.fetch("SELECT run_id FROM smithers.runs")}


async def test_nothing_of_a_run_is_left_in_any_table_but_its_id(database, sql):
    await add_run(sql, "old")
    assert await tables_with(sql, "old") == {table.name for table in run_tables()}
    pruned = await prune(database, MONTH)
    assert (pruned.run_count, pruned.event_count) == (1, 1)
    assert await tables_with(sql, "old") == set()
    assert await sql.fetchval("SELECT run_id FROM smithers.tombstones") == "old"


async def test_what_ended_lately_or_has_not_ended_stays_whole(database, sql):
    await add_run(sql, "young", ended_days_ago=29)
    await add_run(sql, "parked", status="waiting-approval")
    await sql.execute("UPDATE smithers.runs SET finished_at = NULL WHERE run_id = 'parked'")
    await add_run(sql, "going", status="running")
    assert (await count_prunable(database, MONTH)).run_count == 0
    assert (await prune(database, MONTH)).run_count == 0
    for run_id in ("young", "parked", "going"):
        assert await tables_with(sql, run_id) == {table.name for table in run_tables()}


async def test_a_dry_run_counts_what_a_real_one_removes(database, sql):
    for number in range(7):
        await add_run(sql, f"old-{number}", status=("finished", "failed", "cancelled")[number % 3])
    await add_run(sql, "child", parent_run_id="old-0")
    counted = await count_prunable(database, MONTH)
    assert await run_ids(sql) == {*(f"old-{number}" for number in range(7)), "child"}
    pruned = await prune(database, MONTH)
    assert (
        (counted.run_count, counted.event_count) == (pruned.run_count, pruned.event_count) == (8, 8)
    )


async def test_a_pruned_id_is_never_given_again(database, sql):
    await add_run(sql, "old")
    await prune(database, MONTH)
    async with (
        open_start_lane(database) as lane,
        open_pool(database, role="test", max_size=1) as pool,
    ):
        outcomes = await asyncio.gather(
            *(lane.submit(a_start(run_id)) for run_id in ("a", "old", "b")), return_exceptions=True
        )
        assert [outcomes[0], outcomes[2]] == [True, True], "its neighbours in the batch are started"
        assert isinstance(outcomes[1], RunExists)
        with pytest.raises(RunExists):
            await start_with_key(pool, a_start("old"), IdempotencyKey("k", "h"))
    assert await run_ids(sql) == {"a", "b"}
    assert (
        await sql.fetchval("SELECT count(*) FROM smithers.run_requests WHERE run_id = 'old'") == 0
    )


async def test_a_start_that_waits_for_the_pruning_of_its_id_is_refused(database, sql):
    await add_run(sql, "old")
    async with open_start_lane(database) as lane:
        async with asyncio.timeout(LIMIT_S):
            transaction = sql.transaction()
            await transaction.start()
            await sql.execute(retention.PRUNE_RUNS, ["old"])
            starting = asyncio.create_task(lane.submit(a_start("old")))
            beside = await asyncpg.connect(database)
            while not await beside.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ):
                await asyncio.sleep(0.01)
            await beside.close()
            await transaction.commit()
            with pytest.raises(RunExists):
                await starting


async def test_an_idempotency_key_lives_as_long_as_its_run(database, sql):
    async with open_pool(database, role="test", max_size=1) as pool:
        first = await start_with_key(pool, a_start("one"), IdempotencyKey("k", "h"))
        assert first == ("one", True)
        await prune(database, MONTH)
        again = await start_with_key(pool, a_start("two"), IdempotencyKey("k", "h"))
        assert again == ("one", False)
        with pytest.raises(KeyReused):
            await start_with_key(pool, a_start("two"), IdempotencyKey("k", "other"))
        await sql.execute(
            "UPDATE smithers.runs SET status = 'finished', finished_at = smithers.clock() - interval '31 days'"
        )
        await prune(database, MONTH)
        fresh = await start_with_key(pool, a_start("two"), IdempotencyKey("k", "h"))
        assert fresh == ("two", True)


async def test_a_run_that_somebody_resumes_right_now_is_passed_by(database, sql):
    await add_run(sql, "failed", status="failed")
    await add_run(sql, "other")
    async with sql.transaction():
        await sql.execute("SELECT FROM smithers.runs WHERE run_id = 'failed' FOR NO KEY UPDATE")
        async with asyncio.timeout(LIMIT_S):
            assert (await prune(database, MONTH)).run_count == 1
    assert await run_ids(sql) == {"failed"}
    async with open_pool(database, role="test", max_size=1) as pool:
        resume = Resume(
            run_id=RunId("failed"),
            source_hash=None,
            workflow_path=None,
            workflow_export=None,
            config=None,
            changed_files=None,
        )
        outcome, _queue = await resume_run(pool, resume)
    assert outcome is ResumeOutcome.RESUMED
    assert (await prune(database, MONTH)).run_count == 0
    assert await tables_with(sql, "failed") == {table.name for table in run_tables()}


async def test_a_child_stays_until_its_parent_is_gone(database, sql):
    await add_run(sql, "parent", status="failed", ended_days_ago=1)
    await add_run(sql, "child", parent_run_id="parent")
    await add_run(sql, "grandchild", parent_run_id="child")
    assert (await prune(database, MONTH)).run_count == 0
    await sql.execute(
        "UPDATE smithers.runs SET finished_at = smithers.clock() - interval '31 days' WHERE run_id = 'parent'"
    )
    assert (await prune(database, MONTH)).run_count == 3


async def test_one_process_prunes_at_a_time(database, sql):
    await add_run(sql, "old")
    async with sql.transaction():
        await sql.execute("SELECT pg_advisory_xact_lock($1)", retention.RETENTION_LOCK)
        assert (await prune(database, MONTH)).is_elsewhere
        assert await run_ids(sql) == {"old"}
    pruned = await asyncio.gather(*(prune(database, MONTH) for _ in range(4)))
    assert sum(one.run_count for one in pruned) == 1


async def test_a_batch_is_bounded_by_events_and_takes_the_oldest_end_first(database, sql):
    for number, size in enumerate([6_000, 3_000, 9_000, 50_000, 10]):
        await add_run(sql, f"r{number}", ended_days_ago=50 - number)
        await sql.execute(
            "UPDATE smithers.runs SET last_seq = $2 WHERE run_id = $1", f"r{number}", size - 1
        )
    sizes = []
    while (batch := await prune_batch(sql, MONTH)) is not None and batch.run_count:
        sizes.append((batch.run_count, batch.event_count))
    assert sizes == [(2, 9_000), (1, 9_000), (1, 50_000), (1, 10)]


async def test_a_walk_looks_once_at_children_whose_parents_live(database, sql, monkeypatch):
    monkeypatch.setattr(retention, "BATCH_RUNS", 1)
    await add_run(sql, "parent", status="running")
    for number in range(20):
        await add_run(sql, f"child-{number}", ended_days_ago=50, parent_run_id="parent")
    for number in range(5):
        await add_run(sql, f"old-{number}", ended_days_ago=40)
    fetch, places = asyncpg.Connection.fetch, []

    async def note_place(connection: asyncpg.Connection, query: str, *values: Any) -> Any:
        if query == retention.LOCK_PRUNABLE:
            places.append(values[2])
        return await fetch(connection, query, *values)

    monkeypatch.setattr(asyncpg.Connection, "fetch", note_place)
    assert (await prune(database, MONTH)).run_count == 5
    assert places[0] == places[-1] == retention.FIRST.finished_at
    assert places[1:6] == sorted(set(places[1:6]))


async def test_a_source_goes_when_no_run_has_it_and_nobody_wants_it(database, sql):
    await sql.execute(
        """INSERT INTO smithers.workflow_sources (source_hash, bundle, created_at)
        SELECT name, '{}', smithers.clock() - interval '2 days' FROM unnest('{x,unused,wanted}'::text[]) AS name"""
    )
    await sql.execute(
        """INSERT INTO smithers.workflow_descriptions (source_hash, workflow_export, created_at)
        SELECT source_hash, '', created_at FROM smithers.workflow_sources"""
    )
    await add_run(sql, "living", status="running")  # its source is x
    async with open_pool(database, role="test", max_size=1) as pool:
        await keep_source(pool, SourceHash("wanted"), "{}")
        await keep_source(pool, SourceHash("new"), "{}")
    assert (await prune(database, MONTH)).source_count == 1
    kept = [
        row[0]
        for row in await sql.fetch("SELECT source_hash FROM smithers.workflow_sources ORDER BY 1")
    ]
    assert kept == ["new", "wanted", "x"]
    described = [
        row[0]
        for row in await sql.fetch(
            "SELECT source_hash FROM smithers.workflow_descriptions ORDER BY 1"
        )
    ]
    assert described == ["wanted", "x"]


async def test_rows_of_the_long_dead_and_expired_outputs_go(database, sql):
    await sql.execute(
        """INSERT INTO smithers.workers (worker_id, pool_id, boot_id, pid_namespace, pid, process_start, queues,
            started_at, heartbeat_at, dead_at)
        SELECT gen_random_uuid(), gen_random_uuid(), 'b', 'n', 1, 's', '{}', smithers.clock(), smithers.clock(), dead_at
        FROM (VALUES (smithers.clock() - interval '2 days'), (smithers.clock()), (NULL)) AS d (dead_at)"""
    )
    await sql.execute(
        """INSERT INTO smithers.cached_outputs (cache_key, output, run_id, node_id, created_at, expires_at) VALUES
        ('expired', '1', 'r', 'n', smithers.clock(), smithers.clock() - interval '1 s'),
        ('old', '1', 'r', 'n', smithers.clock() - interval '31 days', NULL),
        ('good', '1', 'r', 'n', smithers.clock() - interval '29 days', NULL)"""
    )
    await prune(database, MONTH)
    assert await sql.fetchval("SELECT count(*) FROM smithers.workers") == 2
    assert [row[0] for row in await sql.fetch("SELECT cache_key FROM smithers.cached_outputs")] == [
        "good"
    ]


async def add_old_rows(sql: asyncpg.Connection, count: int) -> None:
    """Write so many rows of each kind that retention removes besides runs; of outputs twice as many."""
    await sql.execute(
        """INSERT INTO smithers.cached_outputs (cache_key, output, run_id, node_id, created_at, expires_at)
        SELECT kind || n, '1', 'r', 'n', smithers.clock() - age, smithers.clock() - left_for
        FROM generate_series(1, $1::int) AS n,
            (VALUES ('aged', interval '31 days', NULL), ('expired', '1 s', interval '1 s')) AS k (kind, age, left_for)""",
        count,
    )
    await sql.execute(
        """INSERT INTO smithers.workflow_sources (source_hash, bundle, created_at)
        SELECT 'source' || n, '{}', smithers.clock() - interval '2 days' FROM generate_series(1, $1::int) AS n""",
        count,
    )
    await sql.execute(
        """INSERT INTO smithers.workflow_descriptions (source_hash, workflow_export, created_at)
        SELECT source_hash, '', created_at FROM smithers.workflow_sources"""
    )
    await sql.execute(
        """INSERT INTO smithers.workers (worker_id, pool_id, boot_id, pid_namespace, pid, process_start, queues,
            started_at, heartbeat_at, dead_at)
        SELECT gen_random_uuid(), gen_random_uuid(), 'b', 'n', 1, 's', '{}', smithers.clock(), smithers.clock(),
            smithers.clock() - interval '2 days' FROM generate_series(1, $1::int)""",
        count,
    )


async def count_rest(sql: asyncpg.Connection) -> dict[str, int]:
    return {
        table: await sql.fetchval(f"SELECT count(*) FROM smithers.{table}") for table in REST_TABLES
    }


async def test_what_goes_besides_runs_goes_a_few_rows_at_a_time(database, sql, monkeypatch):
    monkeypatch.setattr(retention, "BATCH_ROWS", 2)
    monkeypatch.setattr(retention, "REST_S", 0.0)
    await add_old_rows(sql, 5)
    await sql.execute(
        """CREATE FUNCTION count_gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM gone) > 2 THEN RAISE 'too many at a time'; END IF; RETURN NULL; END $$"""
    )
    for table in REST_TABLES:
        await sql.execute(
            f"CREATE TRIGGER bounded AFTER DELETE ON smithers.{table} REFERENCING OLD TABLE AS gone "
            "FOR EACH STATEMENT EXECUTE FUNCTION count_gone()"
        )
    assert (await prune(database, MONTH)).source_count == 5
    assert await count_rest(sql) == dict.fromkeys(REST_TABLES, 0)


@pytest.mark.parametrize("stuck", ["runs", *REST_TABLES])
async def test_a_kind_that_cannot_be_removed_keeps_no_other(database, sql, stuck):
    await add_run(sql, "old")
    await add_old_rows(sql, 1)
    before = await count_rest(sql)
    await sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'stuck'; END $$"
    )
    await sql.execute(
        f"CREATE TRIGGER stuck BEFORE DELETE ON smithers.{stuck} FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(StoreError, match="stuck"):
        await prune(database, MONTH)
    # The description of a source that is still there is kept with it.
    kept = {stuck, "workflow_descriptions"} if stuck == "workflow_sources" else {stuck}
    assert await count_rest(sql) == {
        table: before[table] if table in kept else 0 for table in REST_TABLES
    }
    assert await run_ids(sql) == ({"old"} if stuck == "runs" else set())


async def test_an_output_that_somebody_writes_right_now_is_passed_by(database, sql):
    await add_old_rows(sql, 2)
    async with sql.transaction():
        await sql.execute(
            "UPDATE smithers.cached_outputs SET created_at = smithers.clock() WHERE cache_key = 'aged1'"
        )
        async with asyncio.timeout(LIMIT_S):
            await prune(database, MONTH)
    await prune(database, MONTH)
    assert [row[0] for row in await sql.fetch("SELECT cache_key FROM smithers.cached_outputs")] == [
        "aged1"
    ]


async def test_the_oldest_ends_are_found_by_their_index(sql):
    statement = retention.LOCK_PRUNABLE
    for number, value in enumerate(("'30 days'", "100", "'-infinity'", "''"), 1):
        statement = statement.replace(f"${number}", value)
    plan = "\n".join(row[0] for row in await sql.fetch(f"EXPLAIN {statement}"))
    assert "runs_finished_at_idx" in plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (retention.PRUNE_EXPIRED, "cached_outputs_expires_at_idx"),
        (retention.PRUNE_OUTPUTS, "cached_outputs_created_at_idx"),
    ],
)
async def test_an_output_that_is_to_go_is_found_by_its_index(sql, query, index):
    await sql.execute("SET enable_seqscan = off")
    statement = query.replace("$1", "'0 s'").replace("$2", "100")
    plan = "\n".join(row[0] for row in await sql.fetch(f"EXPLAIN {statement}"))
    assert index in plan


async def test_a_server_prunes_by_itself_and_goes_on_after_an_outage(database, sql, monkeypatch):
    await add_run(sql, "old")
    failures: list[str] = []

    async def failing_once(dsn: str, older_than: timedelta) -> retention.Pruned:
        if not failures:
            failures.append(dsn)
            raise StoreError("the database is away")
        return await prune(dsn, older_than)

    monkeypatch.setattr("smithers.retention.prune", failing_once)
    async with pruning(database, MONTH, first_s=0.01, every_s=0.05), asyncio.timeout(LIMIT_S):
        while await run_ids(sql):
            await asyncio.sleep(0.01)
    assert failures


async def test_a_server_that_is_to_keep_all_asks_nothing(database, sql):
    await add_run(sql, "old")
    async with pruning(database, None, first_s=0, every_s=0):
        assert "prune" not in {task.get_name() for task in asyncio.all_tasks()}
    assert await run_ids(sql) == {"old"}


async def test_a_server_prunes_soon_and_then_seldom(monkeypatch):
    asked, paused, enough = [], [], asyncio.Event()

    async def ask(dsn, limit):
        asked.append((dsn, limit))
        return Pruned(run_count=0, event_count=0)

    async def pause(seconds):
        paused.append(seconds)
        if len(paused) == 3:
            enough.set()
            await asyncio.Event().wait()

    monkeypatch.setattr("smithers.retention.prune", ask)
    monkeypatch.setattr("smithers.retention.asyncio.sleep", pause)
    async with pruning("dsn", timedelta(days=30), first_s=10, every_s=3600), asyncio.timeout(60):
        await enough.wait()
    assert asked == [("dsn", timedelta(days=30))] * 2
    assert 10 <= paused[0] <= 15
    assert all(3600 <= pause_s <= 5400 for pause_s in paused[1:])
