"""Migrate a database's schema to this version's head, and read its version.

The migrations travel inside the wheel as `smithers/migrations`; in a checkout they are the top folder `migrations/`.
Any number of processes may upgrade at once: an advisory lock lets one do it; the others wait and find it done. Alembic and
SQLAlchemy, half a second and 28 MiB, are imported by what needs them: a server does not, see migrating.py.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import asyncpg

from smithers.errors import StoreError
from smithers.store.connections import connect, driver_errors
from smithers.store.revisions import FROM_BEFORE, migrations_dir, read_revisions

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

_LOCK_TIMEOUT_S: Final = 60.0  # for a table lock: later requests wait behind it, too
_STATEMENT_TIMEOUT_S: Final = 3600.0  # one may go over all of a large table

# -- name: find_revision
# Without a schema the table does not exist, and after a downgrade to the beginning it is empty.
FIND_REVISION: Final = "SELECT version_num FROM smithers.alembic_version"


class SchemaMismatch(StoreError):
    """The database's schema is not the one that this version needs."""

    code = "UNAVAILABLE"


class SchemaUnreleased(SchemaMismatch):
    """The database's schema is from before the first release: no migration of this version leads on from it."""


def alembic_config(connection: "Connection | None" = None) -> "Config":
    """Build Alembic's configuration; there is no alembic.ini."""
    from alembic.config import Config

    config = Config(stdout=sys.stdout)  # its default is what stdout was when it was imported
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def find_revision(connection: asyncpg.Connection | asyncpg.Pool) -> str | None:
    """Read the database's migration; None if there is no schema. Not inside a transaction."""
    with driver_errors():
        try:
            revision: str | None = await connection.fetchval(FIND_REVISION)
        except asyncpg.UndefinedTableError:
            return None
    return revision


async def run_alembic(dsn: str, action: "Callable[[Config], None]") -> None:
    """Run one Alembic command on a connection of its own, in one transaction; raises StoreError."""
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import NullPool

    # SQLAlchemy reads other things from a URL than the driver does, and drops what it says of TLS.
    engine: AsyncEngine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        # What `async_creator` does, and names for statements: of the driver's own, 1, 2, 3 in each process, a pooler's
        # connection may have one already.
        creator=lambda: engine.dialect.loaded_dbapi.connect(
            async_creator_fn=lambda: connect(
                dsn,
                role="migration",
                settings={"lock_timeout": f"{_LOCK_TIMEOUT_S:g}s"},
                limit_s=_STATEMENT_TIMEOUT_S,
            ),
            prepared_statement_name_func=lambda: f"migration_{uuid4().hex}",
        ),
    )
    try:
        with driver_errors():
            async with engine.begin() as connection:
                await connection.run_sync(lambda sync: action(alembic_config(sync)))
    except DBAPIError as error:
        with driver_errors():
            raise error.driver_exception from error
    finally:
        await engine.dispose()


def upgrade_schema(dsn: str) -> None:
    """Migrate the schema to head; blocking and idempotent."""
    from alembic import command

    asyncio.run(run_alembic(dsn, lambda config: command.upgrade(config, "head")))


async def require_schema(connection: asyncpg.Connection | asyncpg.Pool) -> None:
    """Raise SchemaMismatch, saying what to do, unless the schema is at head or newer."""
    revision = await find_revision(connection)
    known = read_revisions()
    if revision in known.unreleased:
        raise SchemaUnreleased(f"the database is at schema {revision}, {FROM_BEFORE}")
    if revision is None or revision in known.older:
        found = "has no smithers schema" if revision is None else f"is at schema {revision}"
        raise SchemaMismatch(
            f"the database {found}, and this version needs {known.head}: run `smithers db upgrade`, "
            "or start with --migrate"
        )
