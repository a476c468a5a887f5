"""`smithers db` and `doctor` beside what they are told: which database, which schema, and nothing but data on stdout."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from smithers import foundation
from smithers.cli.main import run
from smithers.errors import StoreStarting
from smithers.store.poolers import Route, find_route
from smithers.store.revisions import read_revisions
from tests.support.data_dirs import scratch
from tests.support.postgres import name_database

SILENT = "postgresql://me:hush@127.0.0.1:1/app"  # nobody listens there


@pytest.fixture(autouse=True)
def _no_settings(own_logs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the outside's settings."""
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL", "SMITHERS_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMITHERS_LOG_FORMAT", "json")


async def ask(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def test_a_flags_database_is_upgraded_whatever_direct_url_the_environment_has(
    database: str,
    postgres_server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", SILENT)
    monkeypatch.setenv("DATABASE_DIRECT_URL", SILENT)
    assert run(["db", "upgrade", "--database-url", database]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(f" is at schema {read_revisions().head}\n")
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DATABASE_DIRECT_URL", postgres_server)
    assert run(["db", "upgrade"]) == 4
    assert "DATABASE_DIRECT_URL: " in capsys.readouterr().err


def test_what_is_logged_while_a_database_starts_is_no_data(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[str] = []

    async def find(dsn: str, direct_dsn: str) -> Route:
        looks.append(dsn)
        if len(looks) == 1:
            raise StoreStarting("the database is starting, stopping or recovering")
        return await find_route(dsn, direct_dsn)

    monkeypatch.setattr(foundation, "find_route", find)
    assert run(["db", "current", "--database-url", database, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["isCurrent"]
    assert json.loads(said.err)["event"] == "database_starting"


def test_a_schema_that_is_newer_is_said_to_be_so_and_left(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(ask(database, "UPDATE smithers.alembic_version SET version_num = '9999'"))
    place = ["--database-url", database]
    assert run(["db", "upgrade", *place]) == 0
    refusal = capsys.readouterr().err
    assert " is at schema 9999, newer than this version" in refusal
    assert run(["db", "current", *place, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "current": "9999",
        "head": read_revisions().head,
        "isCurrent": False,
    }
    assert "newer" in said.err
    run(["doctor", *place, "--server", "http://127.0.0.1:1", "--json"])
    (schema,) = [each for each in json.loads(capsys.readouterr().out) if each["name"] == "schema"]
    assert schema["verdict"] == "ok"
    assert "9999, newer" in schema["told"]


def test_a_schema_from_before_the_first_release_is_said_to_be_so_and_left(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(ask(database, "UPDATE smithers.alembic_version SET version_num = '0010'"))
    place = ["--database-url", database]
    way = "from before the first release: upgrade it with the code of commit c20fe5c first"
    assert run(["db", "upgrade", *place]) != 0
    assert way in " ".join(capsys.readouterr().err.split())
    assert run(["db", "current", *place]) == 1
    assert way in " ".join(capsys.readouterr().err.split())
    run(["doctor", *place, "--server", "http://127.0.0.1:1", "--json"])
    (schema,) = [each for each in json.loads(capsys.readouterr().out) if each["name"] == "schema"]
    assert schema["verdict"] == "failed"
    assert schema["told"] == f"0010, {way}"
    assert asyncio.run(ask(database, "SELECT version_num FROM smithers.alembic_version")) == "0010"


def test_the_doctor_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scratch() as folder:
        place = folder / "data"
        flags = ["--root-dir", str(tmp_path), "--data-dir", str(place), "--json"]
        assert run(["doctor", *flags, "--server", "http://127.0.0.1:1"]) == 0
        assert not place.exists()
    found = json.loads(capsys.readouterr().out)
    (told,) = [each["told"] for each in found if each["name"] == "database"]
    assert told.startswith(f"none in {place} yet")
    assert "schema" not in {each["name"] for each in found}


@pytest.fixture
def bound(database: str) -> Iterator[str]:
    """The database, for a role that may create no table in it, not even a temporary one."""
    name = urlsplit(database).path.removeprefix("/")
    for statement in (
        f"CREATE ROLE {name} LOGIN",
        f"REVOKE TEMP ON DATABASE {name} FROM PUBLIC",
        f"GRANT USAGE ON SCHEMA smithers TO {name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA smithers TO {name}",
    ):
        asyncio.run(ask(database, statement))
    theirs = database.replace("//postgres@", f"//{name}@")
    assert theirs != database
    yield theirs
    for statement in (f"DROP OWNED BY {name}", f"DROP ROLE {name}"):
        asyncio.run(ask(database, statement))


@pytest.mark.parametrize("role", ["database", "bound"])
def test_the_commit_that_the_doctor_times_waits_for_the_log(
    role: str, request: pytest.FixtureRequest, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--database-url", request.getfixturevalue(role)]
    before = asyncio.run(ask(database, "SELECT pg_current_wal_insert_lsn()::text"))
    run(["doctor", *place, "--server", "http://127.0.0.1:1", "--json"])
    flushed = f"SELECT pg_current_wal_flush_lsn() > '{before}'"
    assert asyncio.run(ask(database, flushed))
    (commit,) = [one for one in json.loads(capsys.readouterr().out) if one["name"] == "commit"]
    assert commit["verdict"] == "ok"


def test_a_database_that_takes_no_writes_is_no_good_to_a_server(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a standby that the URL leads to."""
    name = asyncio.run(ask(database, "SELECT current_database()"))
    asyncio.run(ask(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    place = ["--database-url", database, "--server", "http://127.0.0.1:1"]
    assert run(["doctor", *place, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (failed,) = [one["told"] for one in found if one["verdict"] == "failed"]
    assert failed.startswith("the database takes no writes")


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        (SILENT, 1, "error: nobody listens at 127.0.0.1:1/app: connection refused\n"),
        ("postgresql://me:hush/hush@there/app", 4, "%40"),
        ("postgresql://me@127.0.0.1:1/app?sslmode=bogus", 4, "sslmode"),
        ("postgresql://me@127.0.0.1:1/app?sslmode=verify-full&sslrootcert=/no", 1, "127.0.0.1:1"),
    ],
)
def test_a_database_that_cannot_be_had_is_a_sentence_without_a_secret(
    url: str,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert run(["db", "current"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert "hush" not in said.err
    assert len(said.err.splitlines()) == 1


def test_a_database_that_is_not_there_is_named(
    postgres_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["db", "current", "--database-url", name_database(postgres_server, "nope")]) == 1
    assert "/nope does not exist" in capsys.readouterr().err
