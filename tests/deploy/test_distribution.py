"""What distributing the tables by run_id needs of them, held against the tables themselves and deploy/citus.sql."""

import re
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Table

from smithers.store import commits, starts, tails
from smithers.store.connections import RUN_ID_CONSTRAINTS
from smithers.store.tables import metadata
from tests.support.balancers import DEPLOY

# Of no run, or found by something else than a run's id.
REFERENCES = {
    "cached_outputs",
    "idempotency_keys",
    "own_databases",
    "stream_keys",
    "workers",
    "workflow_descriptions",
    "workflow_sources",
}
CALL = re.compile(
    r"^SELECT create_(distributed|reference)_table\('smithers\.(\w+)'(.*)\);$", re.MULTILINE
)
# In each of these, what is joined is joined by the run.
HOT = {"commit_turns": commits.COMMIT_TURNS, "start_runs": starts.START_AND_TELL}
FUNCTIONS = Path(__file__).resolve().parents[2] / "migrations" / "functions"


def distributed() -> dict[str, Table]:
    return {table.name: table for table in metadata.sorted_tables if table.name not in REFERENCES}


def test_a_runs_id_leads_every_primary_key():
    for table in distributed().values():
        assert next(iter(table.primary_key.columns)).name == "run_id", table.name
        assert not table.foreign_keys, table.name


async def partition(connection: asyncpg.Connection, table: str) -> None:
    """Make another table like this one that is parted by run_id, with all of its constraints and indexes."""
    await connection.execute(
        f"CREATE TABLE parted.{table} (LIKE smithers.{table} INCLUDING ALL) PARTITION BY HASH (run_id)"
    )


async def test_what_must_be_unique_is_unique_within_a_run(database: str):
    """Postgres has the rule that Citus has: what is unique holds the column that a table is parted by."""
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("CREATE SCHEMA parted")
        found = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'smithers'"
        )
        names = {row["tablename"] for row in found} - REFERENCES - {"alembic_version"}
        assert names == distributed().keys()
        for name in names:
            await partition(connection, name)
        await connection.execute("CREATE UNIQUE INDEX ON smithers.nodes (state)")
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await connection.execute(
                "CREATE TABLE parted.bad (LIKE smithers.nodes INCLUDING ALL) PARTITION BY HASH (run_id)"
            )
    finally:
        await connection.close()


def test_the_ddl_names_every_table_once_and_keeps_a_runs_rows_together():
    calls = CALL.findall((DEPLOY / "citus.sql").read_text(encoding="utf-8"))
    named = [name for _kind, name, _rest in calls]
    assert sorted(named) == sorted(table.name for table in metadata.sorted_tables)
    for kind, name, rest in calls:
        assert (kind == "reference") == (name in REFERENCES), name
        if kind == "distributed":
            assert rest.startswith(", 'run_id'"), name
            assert ("colocate_with => 'smithers.runs'" in rest) == (name != "runs"), name


async def test_what_is_no_call_of_citus_leaves_a_database_that_refuses_tombstones(database: str):
    ddl = CALL.sub("", (DEPLOY / "citus.sql").read_text(encoding="utf-8"))
    connection = await asyncpg.connect(database)
    insert = "INSERT INTO smithers.runs (run_id, status, last_seq, created_at) VALUES ($1, 'queued', 0, now())"
    try:
        await connection.execute(ddl)
        await connection.execute("INSERT INTO smithers.tombstones VALUES ('gone', now())")
        await connection.execute(insert, "new")
        with pytest.raises(asyncpg.UniqueViolationError) as caught:
            await connection.execute(insert, "gone")
        assert caught.value.constraint_name in RUN_ID_CONSTRAINTS
        statement_level = await connection.fetch(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'smithers.runs'::regclass AND tgtype & 1 = 0"
        )
        assert statement_level == []
    finally:
        await connection.close()


def functions() -> dict[str, str]:
    """Read the texts of all functions and procedures."""
    begins = re.compile(r"(?=^CREATE (?:FUNCTION|PROCEDURE) )", re.MULTILINE)
    parts = [
        part
        for file in sorted(FUNCTIONS.glob("*.sql"))
        for part in begins.split(file.read_text(encoding="utf-8"))[1:]
    ]
    return {part.partition("smithers.")[2].partition("(")[0]: part for part in parts}


def texts_of(query: str) -> str:
    """Read all that a statement calls, and what that calls."""
    known, found, left = functions(), dict[str, str](), [query]
    while left:
        for name in re.findall(r"smithers\.(\w+)\(", left.pop()):
            if name in known and name not in found:
                found[name] = known[name]
                left.append(known[name])
    return "\n".join(found.values())


def statements_of(text: str) -> list[str]:
    """Part what is said to the database into statements that touch a distributed table."""
    told = re.sub(r"--[^\n]*", "", text)
    names = "|".join(distributed())
    touches = re.compile(rf"(?:FROM|JOIN|UPDATE|INTO) smithers\.(?:{names})\b")
    return [each for each in told.split(";") if touches.search(each)]


def hot_texts() -> dict[str, str]:
    texts = {name: texts_of(query) for name, query in HOT.items()}
    return texts | {
        name: value
        for name, value in vars(tails).items()
        if name.isupper() and isinstance(value, str) and "smithers." in value
    }


def test_hot_statements_are_told_which_runs_they_are_about():
    found = {name: statements_of(text) for name, text in hot_texts().items()}
    assert all(found.values()), found
    for name, statements in found.items():
        for statement in statements:
            assert "run_id" in statement, (name, statement)


def test_hot_statements_join_by_the_run_alone():
    texts = hot_texts()
    joins = {
        name: re.findall(r"JOIN smithers\.(\w+) AS \w+\s+ON\s+([^\n]+)", text)
        for name, text in texts.items()
    }
    assert joins["commit_turns"], "the lock joins what is to be committed to the runs"
    for name, found in joins.items():
        for table, condition in found:
            assert table in REFERENCES or "run_id" in condition, (name, table, condition)
