"""Detect a pooler in front of Postgres, and whether it keeps sessions.

A pooler in transaction mode gives each transaction any free connection. Session state is lost there:
LISTEN, the locks that show that a pool is alive, and prepared statements.
"""

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import asyncpg

from smithers.store.connections import driver_errors, open_connection, transaction
from smithers.store.dsn import unprepared

LOOKS: Final = 3  # of two sessions in turn; others may take connections between them
NO_DIRECT_URL: Final = (
    "DATABASE_URL leads through a pooler in transaction mode, and nothing leads past it: notifications do not arrive, "
    "so that everything waits for the next look, and a host that dies is given up after 30 s. "
    "Set DATABASE_DIRECT_URL to the address of Postgres itself"
)

# -- name: read_pid
READ_PID: Final = "SELECT pg_backend_pid()"

# -- name: take_mark
# An advisory lock belongs to one database, and is visible over every connection to it; a pooler keeps one connection until
# the end of the transaction. A database's name and system identifier do not identify it: a restored copy has the same.
TAKE_MARK: Final = "SELECT pg_advisory_xact_lock($1)"

# -- name: is_unmarked
IS_UNMARKED: Final = "SELECT pg_try_advisory_xact_lock($1)"


class Way(StrEnum):
    """The kind of connection to Postgres."""

    DIRECT = "direct"
    SESSION = "session"  # through a pooler; a session has one connection for as long as it lives
    TRANSACTION = "transaction"  # a session has whichever is free, for a transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A server's URLs to its Postgres."""

    dsn: str = field(repr=False)
    direct_dsn: str = field(repr=False)
    way: Way
    has_sessions: bool  # the direct one; a pooler in transaction mode keeps none
    warning: str | None  # what does not work over it, for people


async def find_route(dsn: str, direct_dsn: str) -> Route:
    """Try both URLs, and return them as they should be used; raises StoreError."""
    way = await find_way(dsn)
    direct_way = way if direct_dsn == dsn else await find_way(direct_dsn)
    has_sessions = direct_way is not Way.TRANSACTION
    return Route(
        dsn=unprepared(dsn) if way is Way.TRANSACTION else dsn,
        direct_dsn=direct_dsn if has_sessions else unprepared(direct_dsn),
        way=way,
        has_sessions=has_sessions,
        warning=None if has_sessions else NO_DIRECT_URL,
    )


async def find_way(dsn: str) -> Way:
    """Determine what is in front of Postgres; raises StoreError.

    A pooler invents the backend pid it reports. In transaction mode the real pid changes within a session, or two sessions
    share one.
    """
    async with open_connection(unprepared(dsn), role="way") as first:
        with driver_errors():
            firsts = {await first.fetchval(READ_PID)}
            if firsts == {first.get_server_pid()}:
                return Way.DIRECT
            async with open_connection(unprepared(dsn), role="way") as second:
                seconds = set()
                for _ in range(LOOKS):
                    seconds.add(await second.fetchval(READ_PID))
                    firsts.add(await first.fetchval(READ_PID))
    is_kept = len(firsts) == len(seconds) == 1 and firsts.isdisjoint(seconds)
    return Way.SESSION if is_kept else Way.TRANSACTION


async def leads_to(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy, dsn: str
) -> bool:
    """Say whether a URL leads to the database of a connection, which must have no transaction; raises StoreError."""
    mark = secrets.randbits(62)
    async with open_connection(unprepared(dsn), role="way") as other:
        with driver_errors():
            async with transaction(connection):
                await connection.execute(TAKE_MARK, mark)
                return not await other.fetchval(IS_UNMARKED, mark)
