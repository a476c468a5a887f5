"""Measure a database as a server would use it: for diagnosis, never on a hot path."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.errors import StoreUnavailable
from smithers.store.connections import (
    connect_listening,
    driver_errors,
    open_connection,
    transaction,
)
from smithers.store.schema import find_revision

HINT_LIMIT_S: Final = 2.0
CHANNEL: Final = "smithers_doctor"

# -- name: read_server
READ_SERVER: Final = """
    SELECT current_setting('server_version') AS version, extract(epoch FROM clock_timestamp())::float8 AS now_s,
           current_setting('max_connections')::int AS max_connections,
           current_setting('transaction_read_only')::boolean AS is_read_only,
           has_database_privilege(current_database(), 'TEMP') AS may_write_page,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS connections"""

# -- name: read_room
READ_ROOM: Final = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS allowed,
           (SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS taken"""

# -- name: write_page
# A page of new room on the disk, and a transaction whose commit waits for the log to be flushed; nothing of it is left.
# A transaction that only takes an id is not waited for, and a row in an old page needs no room.
WRITE_PAGE: Final = "CREATE TEMP TABLE smithers_doctor ON COMMIT DROP AS SELECT 1 AS written"

# -- name: write_log
# The same commit, where this role may create no temporary table: it shows nothing of the room on the disk.
WRITE_LOG: Final = "SELECT pg_logical_emit_message(true, 'smithers_doctor', '')"

# -- name: send_hint
SEND_HINT: Final = "SELECT pg_notify($1, '')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many connections a Postgres allows, and how many others use."""

    allowed: int
    taken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCheck:
    """The results."""

    version: str
    revision: str | None  # of the schema; None: there is none
    connections: int
    max_connections: int
    skew_s: float  # how far the database's clock is ahead of this host's
    commit_s: float
    hint_s: float | None  # from a notification to its arrival; None: it did not arrive


async def check_database(dsn: str, direct_dsn: str) -> DatabaseCheck:
    """Measure a database once; raises StoreError."""
    async with open_connection(dsn, role="doctor") as connection:
        with driver_errors():
            began_s = time.time()
            server = await connection.fetchrow(READ_SERVER)
            middle_s = (began_s + time.time()) / 2
            assert server is not None
            if server["is_read_only"]:
                raise StoreUnavailable(
                    "the database takes no writes: it is a standby, or set to be read-only"
                )
            revision = await find_revision(connection)
            writing = WRITE_PAGE if server["may_write_page"] else WRITE_LOG
            commit_s = await _time_commit(connection, writing)
            hint_s = await _time_hint(direct_dsn)
    return DatabaseCheck(
        version=server["version"],
        revision=revision,
        connections=server["connections"],
        max_connections=server["max_connections"],
        skew_s=server["now_s"] - middle_s,
        commit_s=commit_s,
        hint_s=hint_s,
    )


async def read_room(dsn: str) -> Room:
    """Count a Postgres' connections; raises StoreError. `dsn` must be direct."""
    async with open_connection(dsn, role="start") as connection:
        with driver_errors():
            row = await connection.fetchrow(READ_ROOM)
    assert row is not None
    return Room(allowed=row["allowed"], taken=row["taken"])


async def _time_commit(connection: asyncpg.Connection, writing: str) -> float:
    """Write, and time the commit alone."""
    async with transaction(connection):
        await connection.execute(writing)
        began_s = time.perf_counter()
    return time.perf_counter() - began_s


async def _time_hint(direct_dsn: str) -> float | None:
    """Listen, notify, and wait for the notification."""
    connection = await connect_listening(direct_dsn, role="doctor")
    try:
        heard = asyncio.Event()
        await connection.add_listener(CHANNEL, lambda *_: heard.set())
        began_s = time.perf_counter()
        await connection.execute(SEND_HINT, CHANNEL)
        try:
            async with asyncio.timeout(HINT_LIMIT_S):
                await heard.wait()
        except TimeoutError:
            return None
        return time.perf_counter() - began_s
    finally:
        connection.terminate()
