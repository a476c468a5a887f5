"""Know which databases workflows have of their own, and reserve the names of the runs that are to live there.

The server's database is the arbiter of run ids: a start in another database first takes the id here, by a row that says
where the run lives, and then starts the run there, where the constraint decides between starts of one id. A crash between
the two leaves a reservation that holds everything that was asked: the same start again goes on from it, and so does the
mirror, after a while, if nobody comes (see smithers.store.mirror).
"""

from typing import Final

import asyncpg

from smithers.ids import RunId
from smithers.store.connections import driver_errors, open_connection, transaction
from smithers.store.hints import Channel
from smithers.store.refusals import RunExists
from smithers.store.starts import IdempotencyKey, RunStart, take_key

# -- name: list_own_databases
LIST_OWN_DATABASES: Final = "SELECT name FROM smithers.own_databases"

# -- name: use_own_database
# The hint goes out with the commit, which is otherwise not done: it happens once in the life of a database, and a hint
# that got lost would leave gateways and pools without it until their next connection.
USE_OWN_DATABASE: Final = """
    WITH new AS (INSERT INTO smithers.own_databases (name) VALUES ($1) ON CONFLICT DO NOTHING RETURNING name)
    SELECT pg_notify($2, name) FROM new"""

# -- name: find_home
FIND_HOME: Final = "SELECT database FROM smithers.runs WHERE run_id = $1"

# -- name: reserve_run
# No event, and due for nobody. A rival with the same id waits here until this one has committed.
RESERVE_RUN: Final = """
    WITH new AS (
        INSERT INTO smithers.runs (
            run_id, database, mirrored_seq, last_seq, status, queue, priority, is_solo, created_at)
        VALUES ($1, $2, -1, -1, 'queued', $3, $4, $5, smithers.clock())
        ON CONFLICT DO NOTHING RETURNING run_id, created_at)
    INSERT INTO smithers.run_requests (
        run_id, workflow_name, workflow_path, workflow_export, source_hash, input, config, auth, trace_context,
        parent_run_id, created_at)
    SELECT run_id, $6, $7, $8, $9, $10, $11, $12, $13, $14, created_at FROM new
    RETURNING run_id"""


# -- name: identify_database
IDENTIFY_DATABASE: Final = """
    SELECT system_identifier::text || ' ' || current_database() FROM pg_control_system()"""


async def list_own_databases(pool: asyncpg.Pool | asyncpg.Connection) -> list[str]:
    """Name the databases that runs were ever started in, beside the server's own."""
    with driver_errors():
        rows = await pool.fetch(LIST_OWN_DATABASES)
    return [row["name"] for row in rows]


async def use_own_database(pool: asyncpg.Pool, name: str) -> None:
    """Write down that runs are started in a database, and have every gateway and pool hear of it."""
    with driver_errors():
        await pool.execute(USE_OWN_DATABASE, name, Channel.DATABASES)


async def is_same_database(pool: asyncpg.Pool, dsn: str) -> bool:
    """Say whether a URL leads to the database of the pool."""
    async with open_connection(dsn, role="start") as connection:
        with driver_errors():
            there = await connection.fetchval(IDENTIFY_DATABASE)
            return bool(there == await pool.fetchval(IDENTIFY_DATABASE))


async def find_home(pool: asyncpg.Pool, run_id: RunId) -> str | None:
    """Name the database that a run lives in; None: the server's, or there is no such run."""
    with driver_errors():
        name: str | None = await pool.fetchval(FIND_HOME, run_id)
    return name


async def reserve_run(
    pool: asyncpg.Pool, start: RunStart, *, database: str, key: IdempotencyKey | None
) -> RunId:
    """Take a run's id for another database; return it, or the one that the key stands for already.

    Again for the same database is no error: which of several starts is the one is decided there. Raises RunExists where
    the id is taken in another database, KeyReused where the key came with another request.
    """
    with driver_errors():
        async with pool.acquire() as connection, transaction(connection):
            if key is not None:
                first = await take_key(connection, start.run_id, key)
                if first is not None:
                    return first
            is_new = await connection.fetchval(
                RESERVE_RUN,
                start.run_id,
                database,
                start.queue,
                start.priority,
                start.is_solo,
                start.workflow_name,
                start.workflow_path,
                start.workflow_export,
                start.source_hash,
                start.input,
                start.config,
                start.auth,
                start.trace_context,
                start.parent_run_id,
            )
            if not is_new and await connection.fetchval(FIND_HOME, start.run_id) != database:
                raise RunExists
    return start.run_id
