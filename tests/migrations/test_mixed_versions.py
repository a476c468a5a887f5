"""The last release on today's schema: whatever it asks of its database is still there, and means what it did."""

import json
import re
from pathlib import Path

import asyncpg
import pytest

import smithers.store
from smithers.store.revisions import read_revisions
from tests.support.released import SNAPSHOT, Released, collect_statements, find_breaks

NAMED = re.compile(r"^# -- name: \w+\n(?:#.*\n)*(\w+)(?:: Final)? = ", re.MULTILINE)
# A block, which cannot be prepared, and a table of the statement's own.
NOT_ASKED = {"rehearsals.MOVE_CLOCK", "checks.WRITE_PAGE"}

BREAKING = {
    "a column is dropped": "ALTER TABLE smithers.runs DROP COLUMN priority CASCADE",
    "a column is renamed": "ALTER TABLE smithers.nodes RENAME COLUMN label TO title",
    "a column changes its type": "ALTER TABLE smithers.frames ALTER COLUMN frame_no TYPE text",
    "a column is new and must be given": "ALTER TABLE smithers.runs ADD COLUMN region text NOT NULL",
    "a column must be given from now on": "ALTER TABLE smithers.nodes ALTER COLUMN label SET NOT NULL",
    "a table is dropped": "DROP TABLE smithers.tool_calls",
    "a function is dropped": "DROP FUNCTION smithers.bury_worker_v2",
    "a function gives something else": """
        CREATE OR REPLACE FUNCTION smithers.to_ms(p_at timestamptz) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'""",
    "a type has one more field": "ALTER TYPE smithers.run_start_v1 ADD ATTRIBUTE region text",
}
HARMLESS = {
    "a column is new": "ALTER TABLE smithers.runs ADD COLUMN region text",
    "a column is new and has a default": "ALTER TABLE smithers.runs ADD COLUMN region text NOT NULL DEFAULT ''",
    "a table is new": "CREATE TABLE smithers.regions (region text NOT NULL)",
    "a function is new": """
        CREATE FUNCTION smithers.bury_worker_v9(uuid) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'""",
}


@pytest.fixture(scope="module")
def released() -> Released:
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


async def breaks_after(dsn: str, released: Released, change: str = "SELECT 1") -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(change)
        return await find_breaks(connection, released)
    finally:
        await connection.close()


async def test_the_last_release_finds_all_that_it_asks_for(
    database: str, released: Released
) -> None:
    assert await breaks_after(database, released) == []


@pytest.mark.parametrize("change", BREAKING.values(), ids=BREAKING)
async def test_what_would_break_the_last_release_is_seen(
    database: str, released: Released, change: str
) -> None:
    assert await breaks_after(database, released, change) != []


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
async def test_what_the_last_release_need_not_know_is_allowed(
    database: str, released: Released, change: str
) -> None:
    assert await breaks_after(database, released, change) == []


def test_what_was_written_down_is_a_whole_release(released: Released) -> None:
    revisions = read_revisions()
    assert released["revision"] in {*revisions.older, revisions.head}
    assert len(released["statements"]) > 80
    assert {"runs", "events", "nodes"} <= released["tables"].keys()


def test_no_named_statement_is_overlooked() -> None:
    collected = collect_statements()
    texts = set(collected.values())
    named = {
        f"{path.stem}.{name}": getattr(
            __import__(f"smithers.store.{path.stem}", fromlist=["x"]), name
        )
        for path in Path(smithers.store.__path__[0]).glob("*.py")
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if not name.startswith("_")
    }
    assert len(named) > 80
    assert {name for name, text in named.items() if text not in texts} == NOT_ASKED
