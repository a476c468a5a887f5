"""A Postgres for the tests, and a fresh migrated database for each of them.

The server is the one of SMITHERS_TEST_DSN, else an embedded one for each process of a parallel run. A database is copied
from a template that was migrated once: a fraction of what migrating costs.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from smithers.store.embedded import open_embedded_postgres
from smithers.store.revisions import migrations_dir
from smithers.store.schema import upgrade_schema
from tests.support import canary
from tests.support.data_dirs import scratch

# What a test writes need not outlive a crash of the host, and databases are made and dropped for each.
SETTINGS = {"max_connections": "300", "fsync": "off", "full_page_writes": "off"}
TEMPLATE_LOCK = 7331_0002


@contextmanager
def open_server() -> Iterator[str]:
    """Give the DSN of a server on which databases may be made."""
    given = os.environ.get("SMITHERS_TEST_DSN")
    if given:
        yield given
        return
    with (
        scratch() as folder,
        open_embedded_postgres(folder / "state", settings=SETTINGS) as postgres,
    ):
        yield postgres.dsn


def name_database(dsn: str, name: str) -> str:
    """Give the DSN of another database of the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def make_template(server: str) -> str:
    """Have a migrated database to copy from; its name tells which migrations it had."""
    name = f"template_{_hash_migrations()}"
    asyncio.run(_make_template(server, name))
    return name


async def _make_template(server: str, name: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", TEMPLATE_LOCK)
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            return
        draft = f"draft_{uuid4().hex}"
        await connection.execute(f"CREATE DATABASE {draft}")
        await asyncio.to_thread(upgrade_schema, name_database(server, draft))
        await connection.execute(f"ALTER DATABASE {draft} RENAME TO {name}")
    finally:
        await connection.close()


@asynccontextmanager
async def fresh_database(server: str, template: str) -> AsyncIterator[str]:
    """Give the DSN of a migrated database that is this test's alone."""
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name_database(server, name)
            await _look_through_rows(name_database(server, name))
        finally:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def _look_through_rows(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'smithers'"
        )
        each = [
            f"SELECT '{table}' AS place, t::text FROM smithers.{table} t WHERE t::text LIKE $1"
            for (table,) in tables
        ]
        found = (
            await connection.fetch(" UNION ALL ".join(each), f"%{canary.CANARY}%") if each else ()
        )
    finally:
        await connection.close()
    for place, row in found:
        canary.look_through(row, f"a row of {place}")


def _hash_migrations() -> str:
    digest = hashlib.sha256()
    for path in sorted(migrations_dir().rglob("*")):
        if path.suffix in {".py", ".sql"}:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
