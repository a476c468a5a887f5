"""Open connections to Postgres the way each use wants them, and turn the driver's errors into ours.

Three kinds. A *hot* connection is dedicated and kept; its plans are made once, and may use only what stays right when a table
has grown: see docs/adr/0007-plans-made-once.md. The *pool* is for cold queries, none of which may leave a state behind in
its session (a lock, a setting, a listener): it is given back as it is. A *listening* connection is direct: LISTEN is
silently lost through a pooler in transaction mode.

TCP does not see a peer that stalls: here, and nowhere else, is said how long a connection may take to open, to come
free, to answer, and to be cleaned up. Clean-up never raises: what was answered stands, and so does a cancellation.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Literal

import asyncpg

from smithers.errors import (
    AnswerTooLarge,
    CallTooLong,
    Deadlocked,
    RowsHeld,
    StoreError,
    StoreStarting,
    StoreUnavailable,
)
from smithers.store.dsn import InvalidDatabaseUrl, check_dsn, describe_dsn, statement_cache_size
from smithers.store.refusals import LivesElsewhere, RunExists

# A run's name is asked for that another has, or had until retention removed it (see tombstones_v1.sql).
RUN_ID_CONSTRAINTS: Final = ("runs_pkey", "tombstones_pkey")
COMMAND_TIMEOUT_S: Final = 30.0
# The server gives up first: its answer tells a long call from a peer that stalls.
SERVER_SHARE: Final = 0.8
CONNECT_TIMEOUT_S: Final = 10.0
ACQUIRE_TIMEOUT_S: Final = 15.0  # until one of a pool's is free, and was opened if need be
PROVE_TIMEOUT_S: Final = 2.0  # for a session that is asked for nothing but an answer
END_TIMEOUT_S: Final = 5.0  # for what a pool's connections still do at its end
MAX_QUERIES: Final = 50_000  # then a connection is opened anew
IDLE_S: Final = 300.0
# A rollback, a goodbye: one round trip; then it is dropped.
CLEAN_UP_TIMEOUT_S: Final = 2.0

_GUARDS: Final = {
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "10s",
    "jit": "off",
}

# A plan made while a table was empty must not be a scan of it; planning at each call costs as much as the call.
PLANS_MADE_ONCE: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

# -- name: prove
PROVE: Final = "SELECT 1"

# Nothing that the statement or its values are to blame for: the same call may succeed later, or elsewhere.
_GONE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver's own confusion, when the server ends a session in the midst of a call
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, not up yet, cancelled
    asyncpg.PostgresSystemError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password was changed
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # closed for maintenance
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,  # what was the primary until just now
    asyncpg.IdleInTransactionSessionTimeoutError,
)


@contextmanager
def driver_errors() -> Iterator[None]:
    """Raise StoreUnavailable, or a kind of it, for what a repetition may cure, StoreError for the rest; see also refusals."""
    try:
        yield
    except asyncpg.CannotConnectNowError as error:
        raise StoreStarting("the database is starting, or recovering") from error
    except asyncpg.QueryCanceledError as error:
        raise CallTooLong("the database has given up a call that took too long") from error
    except asyncpg.DeadlockDetectedError as error:
        raise Deadlocked("two calls have waited for each other's rows") from error
    except asyncpg.LockNotAvailableError as error:
        raise RowsHeld("another call has the rows, and keeps them") from error
    except asyncpg.ProtocolViolationError as error:  # a pooler's word for a parameter of ours
        told = (
            f"the connection was refused: {error}; docs/scaling.md says what a pooler must let pass"
        )
        raise StoreUnavailable(told) from error
    except _GONE as error:
        raise StoreUnavailable(f"the database did not answer: {type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        raise _refusal(error) from error


@contextmanager
def opening_errors(dsn: str) -> Iterator[None]:
    """Say of a connection that does not open where it was to lead, and what is in its way; never a user or a password."""
    place = describe_dsn(dsn)
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise InvalidDatabaseUrl(f"must be one that can be used, for {place}: {error}") from error
    except asyncpg.InvalidCatalogNameError as error:
        raise StoreUnavailable(f"the database {place} does not exist") from error
    except asyncpg.InvalidPasswordError as error:
        raise StoreUnavailable(f"the database {place} refuses the password") from error
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        told = f"the database {place} does not let this user in: there is no such role, or no line of pg_hba.conf for it"
        raise StoreUnavailable(told) from error
    except ConnectionRefusedError as error:
        raise StoreUnavailable(f"nobody listens at {place}: connection refused") from error
    except TimeoutError as error:
        raise StoreUnavailable(f"no answer within {CONNECT_TIMEOUT_S:g} s from {place}") from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise StoreUnavailable(f"no connection to {place}: {reason}") from error


def _refusal(error: asyncpg.PostgresError) -> Exception:
    """Say what it means that Postgres does not do what it was told."""
    match error:
        case asyncpg.CheckViolationError():  # the schema has one: that mirrors are read-only
            return LivesElsewhere()
        case asyncpg.UniqueViolationError() if error.constraint_name in RUN_ID_CONSTRAINTS:
            return RunExists()
        case asyncpg.ProgramLimitExceededError() if "NOTIFY queue" in str(error):
            # What is told after a commit that stands: see commit_turns_v3.sql.
            return StoreUnavailable("the database cannot notify: its queue is full")
        case asyncpg.ProgramLimitExceededError():
            return AnswerTooLarge(f"it is more than the database puts into one value: {error}")
        case _:
            return StoreError(f"the database refused: {type(error).__name__}: {error}")


class _PooledConnection(asyncpg.Connection):
    def get_reset_query(self) -> str:
        """Leave out what would undo a session's state, in a round trip before the answer is handed on: nobody leaves any."""
        return ""


class Pool(asyncpg.Pool):  # a subclass: the driver takes no defaults for these two
    """Connections for cold queries; a call waits for one, and gives it back, within a time."""

    def acquire(self, *, timeout: float | None = None) -> Any:
        """Take a connection, now or as soon as one is free."""
        return super().acquire(timeout=timeout or ACQUIRE_TIMEOUT_S)

    async def release(
        self,
        connection: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the driver's
    ) -> None:
        """Give a connection back; the driver drops one that does not let itself be reset."""
        with suppress(*_GONE):
            await super().release(connection, timeout=timeout or CLEAN_UP_TIMEOUT_S)


@asynccontextmanager
async def transaction(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy,
    *,
    isolation: Literal["read_committed", "repeatable_read"] = "read_committed",
    readonly: bool = False,
) -> AsyncIterator[None]:
    """Commit at the end of the block, or roll back; a connection that does not let itself be rolled back is dropped."""
    begun = connection.transaction(isolation=isolation, readonly=readonly)
    await begun.start()
    try:
        yield
    except BaseException:
        try:
            async with asyncio.timeout(CLEAN_UP_TIMEOUT_S):
                await begun.rollback()
        except _GONE:
            connection.terminate()
        raise
    await begun.commit()


def _told(role: str, limit_s: float) -> dict[str, str]:
    return {
        "application_name": f"smithers-{role}",
        "statement_timeout": f"{limit_s * SERVER_SHARE * 1000:.0f}ms",
        **_GUARDS,
    }


async def connect(
    dsn: str,
    *,
    role: str,
    settings: dict[str, str] | None = None,
    limit_s: float | None = None,
) -> asyncpg.Connection:
    """Open one connection; `role` is what pg_stat_activity shows it for, `limit_s` how long a call may take."""
    limit_s = limit_s or COMMAND_TIMEOUT_S
    checked = check_dsn(dsn)
    with driver_errors(), opening_errors(checked):
        return await asyncpg.connect(
            checked,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=limit_s,
            statement_cache_size=statement_cache_size(dsn),
            server_settings={**_told(role, limit_s), **(settings or {})},
        )


@asynccontextmanager
async def open_connection(dsn: str, *, role: str) -> AsyncIterator[asyncpg.Connection]:
    """Open one connection for as long as the block takes."""
    connection = await connect(dsn, role=role)
    try:
        yield connection
    finally:
        with suppress(*_GONE):
            await connection.close(timeout=CLEAN_UP_TIMEOUT_S)


async def connect_hot(
    dsn: str, *, role: str, settings: dict[str, str] | None = None, limit_s: float | None = None
) -> asyncpg.Connection:
    """Open a connection for one hot statement."""
    told = {**PLANS_MADE_ONCE, **(settings or {})}
    return await connect(dsn, role=role, settings=told, limit_s=limit_s)


async def connect_listening(dsn: str, *, role: str) -> asyncpg.Connection:
    """Open a direct connection for LISTEN and NOTIFY."""
    return await connect(dsn, role=role)


async def prove(connection: asyncpg.Connection) -> None:
    """Have the server answer over a session that is seldom used; raises StoreUnavailable where the session has ended.

    An end is not always heard of: where what lies between has lost the connection, neither FIN nor RST comes.
    """
    with driver_errors():
        async with asyncio.timeout(PROVE_TIMEOUT_S):
            await connection.execute(PROVE)


@asynccontextmanager
async def open_pool(dsn: str, *, role: str, max_size: int) -> AsyncIterator[Pool]:
    """Open a pool for cold queries."""
    pool = Pool(
        check_dsn(dsn),
        min_size=0,
        max_size=max_size,
        max_queries=MAX_QUERIES,
        max_inactive_connection_lifetime=IDLE_S,
        loop=None,
        connection_class=_PooledConnection,
        record_class=asyncpg.Record,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        statement_cache_size=statement_cache_size(dsn),
        server_settings=_told(role, COMMAND_TIMEOUT_S),
    )
    with driver_errors():
        await pool
    try:
        yield pool
    finally:
        # A query that hangs must not hold up the end of the process.
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()
