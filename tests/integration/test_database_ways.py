"""The ways to a database: migrations go the way that everything goes, and two URLs of a server lead to one database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from smithers.errors import StoreError, StoreUnavailable
from smithers.foundation import find_database
from smithers.settings import InvalidSettings, ServerOptions
from smithers.store.connections import open_connection, open_pool, transaction
from smithers.store.dsn import describe_dsn
from smithers.store.migrating import settle_schema
from smithers.store.poolers import leads_to
from smithers.store.schema import upgrade_schema
from tests.support.postgres import name_database

SSL_REQUEST = b"\x04\xd2\x16\x2f"


@dataclass
class WithoutTls:
    """A server that refuses TLS, and keeps what it is told nevertheless."""

    dsn: str = ""
    requests: int = 0
    heard: list[bytes] = field(default_factory=list)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if first[4:8] == SSL_REQUEST:
            self.requests += 1
            writer.write(b"N")
            first = await reader.read(4096)
        if first:
            self.heard.append(first)
        writer.close()


@asynccontextmanager
async def refusing_tls() -> AsyncIterator[WithoutTls]:
    place = WithoutTls()
    async with await asyncio.start_server(place.take, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        place.dsn = f"postgresql://127.0.0.1:{port}/app?user=app&password=hush&sslmode=require"
        yield place


async def test_a_migration_says_nothing_in_clear_where_the_url_wants_tls() -> None:
    async with refusing_tls() as place:
        with pytest.raises(StoreUnavailable) as caught:
            await asyncio.to_thread(upgrade_schema, place.dsn)
        assert (place.requests, place.heard) == (1, [])
    assert "hush" not in str(caught.value)


@pytest.fixture
async def made(postgres_server: str) -> AsyncIterator[list[str]]:
    """Statements that take away what a test made; the last first."""
    undoing: list[str] = []
    yield undoing
    connection = await asyncpg.connect(postgres_server)
    try:
        for statement in reversed(undoing):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_role_that_may_not_migrate_is_told_so_in_one_sentence(
    postgres_server: str, made: list[str]
) -> None:
    name = f"plain_{uuid4().hex}"
    connection = await asyncpg.connect(postgres_server)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        made.append(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.execute(f"CREATE ROLE {name} LOGIN")
        made.append(f"DROP ROLE {name}")
    finally:
        await connection.close()
    dsn = name_database(postgres_server, name)
    theirs = dsn.replace("//postgres@", f"//{name}@")
    assert theirs != dsn
    with pytest.raises(StoreError) as caught:
        await settle_schema(theirs, migrate=True)
    assert str(caught.value).endswith(f"permission denied for database {name}")


async def test_a_database_that_does_not_exist_is_named(postgres_server: str) -> None:
    dsn = name_database(postgres_server, "nope")
    with pytest.raises(StoreUnavailable, match=r"/nope does not exist"):
        async with open_connection(dsn, role="start"):
            pass


async def test_two_databases_of_one_postgres_are_two(database: str, postgres_server: str) -> None:
    async with open_connection(database, role="start") as connection:
        assert await leads_to(connection, database)
        assert not await leads_to(connection, postgres_server)


async def test_the_two_urls_of_a_server_must_lead_to_one_database(
    database: str, postgres_server: str
) -> None:
    direct = f"{database}&sslmode=disable"
    options = ServerOptions(root_dir=Path(), database_url=database, database_direct_url=direct)
    async with find_database(options, {}) as found:
        assert found.direct_dsn == direct
    crossed = replace(options, database_direct_url=postgres_server)
    with pytest.raises(InvalidSettings) as caught:
        async with find_database(crossed, {}):
            pass
    (said,) = caught.value.problems
    assert said.startswith("DATABASE_DIRECT_URL: ")
    assert describe_dsn(database) in said
    assert describe_dsn(postgres_server) in said


async def test_a_pooled_connection_is_given_back_without_a_round_trip(database: str) -> None:
    async with open_pool(database, role="test", max_size=1) as pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        async with open_connection(database, role="test-watch") as watching:
            last = await watching.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", pid)
    assert last == "SELECT pg_backend_pid()"


async def test_a_pooled_connection_is_given_back_without_its_transaction(database: str) -> None:
    async with open_pool(database, role="test", max_size=1) as pool:
        with suppress(ZeroDivisionError):
            async with pool.acquire() as connection, transaction(connection, readonly=True):
                raise ZeroDivisionError
        async with pool.acquire() as connection:
            assert not connection.is_in_transaction()
            assert (
                await connection.fetchval("SELECT current_setting('transaction_read_only')")
                == "off"
            )
