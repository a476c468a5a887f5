"""A server has its schema migrated by another process, which leaves nothing in the server's memory."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from smithers.errors import StoreUnavailable
from smithers.store.connections import open_connection
from smithers.store.migrating import settle_schema, upgrade_elsewhere
from smithers.store.schema import SchemaMismatch, require_schema
from tests.support.postgres import name_database
from tests.support.world import until

MIGRATION_LOCK = 7331_0001  # migrations/env.py
MIGRATING = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'smithers-migration'"
SETTLE = """
import asyncio, sys
from smithers.store.migrating import settle_schema
asyncio.run(settle_schema(sys.argv[1], migrate=True))
print(sorted({"alembic", "sqlalchemy"}.intersection(sys.modules)))
"""


@pytest.fixture
async def blank(postgres_server: str) -> AsyncIterator[str]:
    """The URL of an empty database."""
    name = f"blank_{uuid4().hex}"
    connection = await asyncpg.connect(postgres_server)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield name_database(postgres_server, name)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def test_a_database_is_migrated_only_where_that_is_allowed(blank: str) -> None:
    with pytest.raises(SchemaMismatch, match="has no smithers schema"):
        await settle_schema(blank, migrate=False)
    settled = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", SETTLE, blank], stdout=subprocess.PIPE, check=True
    )
    assert settled.stdout == b"[]\n"
    async with open_connection(blank, role="start") as connection:
        await require_schema(connection)


async def test_a_database_that_is_away_is_named_as_such(postgres_server: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"/nope does not exist"):
        await upgrade_elsewhere(name_database(postgres_server, "nope"))


async def test_a_start_that_is_given_up_takes_its_migration_with_it(
    blank: str, postgres_server: str
) -> None:
    name = blank.partition("?")[0].rpartition("/")[2]
    async with open_connection(postgres_server, role="watch") as watch:

        async def migrating_count() -> int:
            return await watch.fetchval(MIGRATING, name)

        async def is_migrating() -> bool:
            return await migrating_count() == 1

        async def is_gone() -> bool:
            return await migrating_count() == 0

        async with open_connection(blank, role="start") as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            upgrading = asyncio.create_task(upgrade_elsewhere(blank))
            await until(is_migrating, "the migration waits for its turn")
            upgrading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upgrading
        await until(is_gone, "the migration has gone")
    with pytest.raises(SchemaMismatch):
        await settle_schema(blank, migrate=False)
