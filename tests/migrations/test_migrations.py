"""The history of the schema: up, down, from many processes at once, and equal to what the code believes."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from alembic import command

from smithers.errors import RowsHeld
from smithers.events import Envelope, EventType, event_parts
from smithers.ids import RunId
from smithers.store.migrating import settle_schema
from smithers.store.revisions import migrations_dir, read_revisions
from smithers.store.schema import (
    SchemaMismatch,
    SchemaUnreleased,
    find_revision,
    require_schema,
    run_alembic,
)

UPGRADE = (
    "import sys; from smithers.store.schema import upgrade_schema; upgrade_schema(sys.argv[1])"
)
RIVALS = 5
LOOK_AGAIN_S = 0.02
LIMIT_S = 60

# All characters that JSON escapes, both ways of it, and what only looks as if.
HARD_TEXT = "".join(map(chr, range(1, 0x30))) + "\\\"/\x7f\u0085\u2028\ufeffäß€😀<&>'\\u0041"

# What stands in our schema, whatever its kind.
LIST_SCHEMA = """
    SELECT relname::text AS name FROM pg_class WHERE relnamespace = to_regnamespace('smithers')
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('smithers')
    UNION ALL SELECT typname FROM pg_type WHERE typnamespace = to_regnamespace('smithers') AND typelem = 0"""

# Some of what a database has that was made before the baseline.
EARLIER = """
    CREATE TYPE smithers.run_change_v1 AS (run_id text);
    CREATE FUNCTION smithers.commit_group_v1(smithers.run_change_v1[]) RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE smithers.commit_turns_v1(INOUT a integer) LANGUAGE sql AS 'SELECT 1'"""

LIST_ELSEWHERE = """
    SELECT relname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname <> 'smithers' AND nspname <> 'information_schema' AND NOT starts_with(nspname, 'pg_')"""

COUNT_WAITING = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

# For longer than the test below has anybody wait for a table.
COUNT_WAITED = COUNT_WAITING + " AND waitstart < clock_timestamp() - interval '500 ms'"


@pytest.fixture
async def connection(empty_database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(empty_database)
    yield connection
    await connection.close()


async def upgrade(dsn: str) -> None:
    await run_alembic(dsn, lambda config: command.upgrade(config, "head"))


def migration_lock() -> int:
    text = (migrations_dir() / "env.py").read_text(encoding="utf-8")
    found = re.search(r"MIGRATION_LOCK = ([\d_]+)", text)
    assert found is not None
    return int(found[1])


async def names(connection: asyncpg.Connection, query: str) -> list[str]:
    return [row[0] for row in await connection.fetch(query)]


async def test_up_and_down_again_leaves_nothing_but_the_version_table(empty_database, connection):
    await upgrade(empty_database)
    assert len(await names(connection, LIST_SCHEMA)) > 50
    await run_alembic(empty_database, lambda config: command.downgrade(config, "base"))
    assert set(await names(connection, LIST_SCHEMA)) == {"alembic_version", "alembic_version_pkc"}
    assert await names(connection, LIST_ELSEWHERE) == []


async def test_up_down_and_up_is_as_good_as_up(empty_database, connection):
    await upgrade(empty_database)
    first = sorted(await names(connection, LIST_SCHEMA))
    await run_alembic(empty_database, lambda config: command.downgrade(config, "base"))
    await upgrade(empty_database)
    assert sorted(await names(connection, LIST_SCHEMA)) == first


async def test_head_is_what_the_metadata_says(empty_database):
    await upgrade(empty_database)
    await run_alembic(empty_database, command.check)  # raises where they differ


async def test_processes_that_upgrade_at_once_all_succeed(empty_database, connection):
    # All of them are held back at the lock, so that they meet there for certain.
    await connection.execute("SELECT pg_advisory_lock($1)", migration_lock())
    rivals = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", UPGRADE, empty_database)
        for _ in range(RIVALS)
    ]
    async with asyncio.timeout(LIMIT_S):
        while await connection.fetchval(COUNT_WAITING) < RIVALS:
            await asyncio.sleep(LOOK_AGAIN_S)
        await connection.execute("SELECT pg_advisory_unlock($1)", migration_lock())
        assert [await rival.wait() for rival in rivals] == [0] * RIVALS
    assert await find_revision(connection) == read_revisions().head


async def test_an_upgrade_waits_for_another_for_longer_than_for_a_table(
    empty_database, connection, monkeypatch
):
    monkeypatch.setattr("smithers.store.schema._LOCK_TIMEOUT_S", 0.1)
    await connection.execute("SELECT pg_advisory_lock($1)", migration_lock())
    upgrading = asyncio.create_task(upgrade(empty_database))
    async with asyncio.timeout(LIMIT_S):
        while not upgrading.done() and not await connection.fetchval(COUNT_WAITED):
            await asyncio.sleep(LOOK_AGAIN_S)
        await connection.execute("SELECT pg_advisory_unlock($1)", migration_lock())
        await upgrading
    async with connection.transaction():
        await connection.execute("LOCK TABLE smithers.runs")
        with pytest.raises(RowsHeld):
            await run_alembic(empty_database, lambda config: command.downgrade(config, "base"))


async def test_an_upgrade_at_head_changes_nothing(empty_database, connection):
    await upgrade(empty_database)
    await connection.execute(
        "INSERT INTO smithers.runs (run_id, status, last_seq, created_at) VALUES ('r', 'queued', 0, now())"
    )
    before = (
        await connection.fetch("SELECT *, xmin::text FROM smithers.runs"),
        await names(connection, LIST_SCHEMA),
    )
    await upgrade(empty_database)
    assert before == (
        await connection.fetch("SELECT *, xmin::text FROM smithers.runs"),
        await names(connection, LIST_SCHEMA),
    )
    assert await find_revision(connection) == read_revisions().head


async def test_a_server_refuses_a_database_without_the_schema_and_names_the_command(connection):
    with pytest.raises(SchemaMismatch, match="smithers db upgrade"):
        await require_schema(connection)


async def test_who_has_a_database_from_before_the_first_release_is_told_what_upgrades_it(
    empty_database, connection
):
    await upgrade(empty_database)
    await connection.execute("UPDATE smithers.alembic_version SET version_num = '0010'")
    way = "at schema 0010, from before the first release: upgrade it with the code of commit c20fe5c first"
    with pytest.raises(SchemaUnreleased, match=way):
        await require_schema(connection)
    with pytest.raises(SchemaUnreleased, match=way):
        await settle_schema(empty_database, migrate=True)
    assert await find_revision(connection) == "0010"


async def test_functions_from_before_the_first_release_are_dropped(empty_database, connection):
    await run_alembic(empty_database, lambda config: command.upgrade(config, "0011"))
    at_baseline = sorted(await names(connection, LIST_SCHEMA))
    await connection.execute(EARLIER)
    await run_alembic(empty_database, lambda config: command.upgrade(config, "0012"))
    assert sorted(await names(connection, LIST_SCHEMA)) == at_baseline
    await run_alembic(empty_database, lambda config: command.downgrade(config, "0011"))
    assert sorted(await names(connection, LIST_SCHEMA)) == at_baseline


async def test_a_server_accepts_a_database_at_head(empty_database, connection):
    await upgrade(empty_database)
    await require_schema(connection)


async def test_a_server_accepts_a_schema_from_the_future(empty_database, connection):
    await upgrade(empty_database)
    await connection.execute("UPDATE smithers.alembic_version SET version_num = '9999'")
    await require_schema(connection)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"nodeId": HARD_TEXT, "iteration": 0},
        {"signalName": "x", "seq": 2**53, "correlationId": None},
    ],
    ids=["none", "texts", "numbers"],
)
async def test_sql_writes_the_bytes_of_an_event_as_python_does(empty_database, connection, fields):
    await upgrade(empty_database)
    run_id, workflow_name, now_ms = RunId(f"r-{HARD_TEXT}"), f"w-{HARD_TEXT}", 1_700_000_000_123
    envelope = Envelope.of(run_id, workflow_name)
    head, tail = event_parts(EventType.SIGNAL_RECEIVED, envelope, fields)
    of_sql = await connection.fetchval(
        "SELECT smithers.event_v1('SignalReceived', $1, $2, $3, coalesce("
        " (SELECT string_agg(',' || to_json(key)::text || ':' || value, '') FROM unnest($4::text[], $5::text[])"
        " AS field(key, value)), ''))",
        run_id,
        workflow_name,
        now_ms,
        list(fields),
        [await as_sql_json(connection, value) for value in fields.values()],
    )
    assert of_sql.encode() == f"{head}{now_ms}{tail}".encode()


async def as_sql_json(connection: asyncpg.Connection, value: str | int | None) -> str:
    """Write a value as the functions in migrations/functions do."""
    if isinstance(value, str):
        return await connection.fetchval("SELECT to_json($1::text)::text", value)
    return "null" if value is None else str(value)


def test_a_released_file_of_functions_is_run_by_exactly_one_migration():
    versions = Path(migrations_dir(), "versions").glob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in versions)
    for path in Path(migrations_dir(), "functions").glob("*.sql"):
        assert text.count(f'"{path.name}"') == 1, path.name
