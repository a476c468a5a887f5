"""A server has its schema migrated by another process, which leaves nothing in the server's memory."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

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


async def test_a_database_is_migrated_only_where_that_is_allowed(empty_database: str) -> None:
    with pytest.raises(SchemaMismatch, match="has no smithers schema"):
        await settle_schema(empty_database, migrate=False)
    settled = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", SETTLE, empty_database],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert settled.stdout == b"[]\n"
    async with open_connection(empty_database, role="start") as connection:
        await require_schema(connection)


async def test_a_database_that_does_not_exist_is_named(postgres_server: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"/nope does not exist"):
        await upgrade_elsewhere(name_database(postgres_server, "nope"))


@asynccontextmanager
async def delayed(dsn: str, postgres_server: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Let a migration begin in the block, and wait at its beginning: say whether it does. After the block none is left."""
    name = dsn.partition("?")[0].rpartition("/")[2]
    async with open_connection(postgres_server, role="watch") as watch:

        async def is_waiting() -> bool:
            return await watch.fetchval(MIGRATING, name) == 1

        async def is_gone() -> bool:
            return await watch.fetchval(MIGRATING, name) == 0

        async with open_connection(dsn, role="start") as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            yield is_waiting
        await until(is_gone, "the migration has gone")


async def test_a_start_that_is_given_up_takes_its_migration_with_it(
    empty_database: str, postgres_server: str
) -> None:
    async with delayed(empty_database, postgres_server) as is_waiting:
        upgrading = asyncio.create_task(upgrade_elsewhere(empty_database))
        await until(is_waiting, "the migration waits for its turn")
        upgrading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upgrading
    with pytest.raises(SchemaMismatch):
        await settle_schema(empty_database, migrate=False)


async def test_a_server_that_is_killed_takes_its_migration_with_it(
    empty_database: str, postgres_server: str
) -> None:
    async with delayed(empty_database, postgres_server) as is_waiting:
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", SETTLE, empty_database)
        await until(is_waiting, "the migration waits for its turn")
        server.kill()
        await server.wait()
    with pytest.raises(SchemaMismatch):
        await settle_schema(empty_database, migrate=False)
