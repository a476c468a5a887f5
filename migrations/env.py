"""Alembic's entry: runs the migrations on the connection that smithers.store.schema hands over."""

import sqlalchemy as sa
from alembic import context

from smithers.store.tables import SCHEMA, metadata

MIGRATION_LOCK = 7331_0001  # any number, the same for all: one migration at a time in a database


def run_migrations(connection: sa.Connection) -> None:
    """Run what is due in one transaction, behind one lock, so that any number may start at once."""
    # Another's migration may take an hour. The limit is for tables: while one waits for a table, others wait behind it.
    connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
    connection.execute(sa.text("SET LOCAL lock_timeout TO DEFAULT"))
    connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run_migrations(context.config.attributes["connection"])
