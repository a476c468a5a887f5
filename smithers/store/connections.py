"""Open connections to Postgres for each kind of use, and translate the driver's errors.

There are three kinds. A *hot* connection is dedicated and kept; its plans are made once, and must stay good when a table
has grown: see docs/adr/0007-plans-made-once.md. The *pool* is for cold queries, none of which may leave state behind in
its session (a lock, a setting, a listener): connections are not reset. A child's pool makes its plans once, too. A
*listening* connection is direct: LISTEN is silently lost through a pooler in transaction mode.

The driver looks up types that it does not know, on every connection anew, which takes the backend 6 ms and 2 MiB. Of arrays
it knows text[]: a frequent statement takes others as that, and casts them.

TCP does not detect a stalled peer: only this module sets how long a connection may take to open, to become
free, to answer, and to be cleaned up. Clean-up never raises: an answer stands, and so does a cancellation.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Literal

import asyncpg

from smithers.errors import (
    AnswerTooLarge,
    CallTooLong,
    Deadlocked,
    DiskFull,
    ReadOnly,
    RowsHeld,
    StoreError,
    StoreStarting,
    StoreUnavailable,
)
from smithers.store.dsn import InvalidDatabaseUrl, describe_dsn, driver_dsn, statement_cache_size
from smithers.store.refusals import LivesElsewhere, RunExists

# The requested run id belongs to another run, or did until retention removed it (see refuse_tombstones_v1.sql).
RUN_ID_CONSTRAINTS: Final = ("runs_pkey", "tombstones_pkey")
COMMAND_TIMEOUT_S: Final = 30.0
# The server times out first: its answer distinguishes a long call from a stalled peer.
SERVER_SHARE: Final = 0.8
CONNECT_TIMEOUT_S: Final = 10.0
ACQUIRE_TIMEOUT_S: Final = 15.0  # until a connection of a pool is free, or was opened
PROVE_TIMEOUT_S: Final = 2.0  # for a session that only has to answer
PROMPT_TIMEOUT_S: Final = 3.0  # for a short call by which others see that this process lives
END_TIMEOUT_S: Final = 5.0  # for the remaining calls of a pool's connections at its end
MAX_QUERIES: Final = 50_000  # then a connection is replaced
IDLE_S: Final = 300.0
# A rollback, or closing: one round trip; then it is dropped.
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

# Not caused by the statement or its values: the same call may succeed later, or elsewhere.
_GONE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver's inconsistent state after the server ended a session during a call
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, not up yet, cancelled
    asyncpg.PostgresSystemError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password was changed
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # closed for maintenance
    asyncpg.TransactionRollbackError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


# By the first that fits.
_OURS: Final = (
    (asyncpg.CannotConnectNowError, StoreStarting, "the database is starting, or recovering"),
    (asyncpg.QueryCanceledError, CallTooLong, "the database aborted a call that took too long"),
    (asyncpg.DeadlockDetectedError, Deadlocked, "two calls waited for each other's rows"),
    (asyncpg.LockNotAvailableError, RowsHeld, "another transaction holds the rows"),
    (asyncpg.DiskFullError, DiskFull, "the database has no room on its disk: {kind}"),
    # The former primary.
    (asyncpg.ReadOnlySQLTransactionError, ReadOnly, "the database takes no writes: {kind}"),
    # A pooler's error for a parameter of ours.
    (
        asyncpg.ProtocolViolationError,
        StoreUnavailable,
        "the connection was refused: {error}; docs/scaling.md says what a pooler must let pass",
    ),
    (_GONE, StoreUnavailable, "the database did not answer: {kind}"),
)


class _DriverErrors:
    """A block of driver_errors. No generator: each call to the database is in one or two such blocks."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and (ours := _translate(error)) is not None:
            raise ours from error


_DRIVER_ERRORS: Final = _DriverErrors()


def driver_errors() -> AbstractContextManager[None]:
    """Raise StoreUnavailable, or a subclass, if a repetition may succeed, StoreError otherwise; see also refusals."""
    return _DRIVER_ERRORS


def _translate(error: BaseException) -> Exception | None:
    for theirs, ours, told in _OURS:
        if isinstance(error, theirs):
            return ours(told.format(kind=type(error).__name__, error=error))
    return _refusal(error) if isinstance(error, asyncpg.PostgresError) else None


@contextmanager
def opening_errors(dsn: str) -> Iterator[None]:
    """Describe a connection that does not open: its destination and the reason; never a user or a password."""
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
    """Return the error for a statement that Postgres refuses."""
    match error:
        case asyncpg.CheckViolationError():  # the schema has one: that mirrors are read-only
            return LivesElsewhere()
        case asyncpg.UniqueViolationError() if error.constraint_name in RUN_ID_CONSTRAINTS:
            return RunExists()
        case asyncpg.ProgramLimitExceededError() if "NOTIFY queue" in str(error):
            # An error after a commit that stands: see commit_turns_v5.sql.
            return StoreUnavailable("the database cannot notify: its queue is full")
        case asyncpg.ProgramLimitExceededError():
            return AnswerTooLarge(f"it is more than the database puts into one value: {error}")
        case _:
            return StoreError(f"the database refused: {type(error).__name__}: {error}")


class _PooledConnection(asyncpg.Connection):
    def get_reset_query(self) -> str:
        """Return no reset query, which would cost a round trip: no query leaves state in a session."""
        return ""


class _Acquiring(asyncpg.pool.PoolAcquireContext):
    """Reports how long a call waited for its connection, whether it got one or not."""

    def __init__(self, pool: "Pool", timeout: float) -> None:
        super().__init__(pool, timeout)
        self._on_wait = pool.on_wait

    async def __aenter__(self) -> Any:
        began = time.perf_counter()
        try:
            return await super().__aenter__()
        finally:
            if self._on_wait is not None:
                self._on_wait(time.perf_counter() - began)


class Pool(asyncpg.Pool):  # a subclass: the driver takes no defaults for these two
    """Connections for cold queries; a call waits for one, and gives it back, within a time."""

    on_wait: Callable[[float], None] | None = None  # called with every wait, in seconds

    def acquire(self, *, timeout: float | None = None) -> Any:
        """Acquire a connection, as soon as one is free."""
        return _Acquiring(self, timeout or ACQUIRE_TIMEOUT_S)

    async def release(
        self,
        connection: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the driver's
    ) -> None:
        """Release a connection; the driver drops one that cannot be reset."""
        with suppress(*_GONE):
            await super().release(connection, timeout=timeout or CLEAN_UP_TIMEOUT_S)


class PromptCalls:
    """Short calls of one kind, made again and again through a pool: one without an answer is soon made over a new connection.

    What is in between may drop connections without a word; new ones would work. A slow database looks the same: so the
    calls after that may take as long as any, until one is answered promptly again. Otherwise each would be
    given up before its answer, and a server that is busy would also have to open connections.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._is_patient = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection for one call; raises StoreUnavailable if it takes too long."""
        with driver_errors():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                began = time.monotonic()
                try:
                    async with asyncio.timeout(None if self._is_patient else PROMPT_TIMEOUT_S):
                        yield connection
                except TimeoutError:
                    # Its server may still be at it, which harms nobody. The pool's others may be lost, too.
                    connection.terminate()
                    await self._pool.expire_connections()
                    self._is_patient = True
                    raise
                if time.monotonic() - began < PROMPT_TIMEOUT_S:
                    self._is_patient = False


@asynccontextmanager
async def transaction(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy,
    *,
    isolation: Literal["read_committed", "repeatable_read"] = "read_committed",
    readonly: bool = False,
) -> AsyncIterator[None]:
    """Commit at the end of the block, or roll back; a connection that cannot be rolled back is dropped."""
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
    """Open one connection; `role` is its name in pg_stat_activity, `limit_s` how long a call may take."""
    limit_s = limit_s or COMMAND_TIMEOUT_S
    checked = driver_dsn(dsn)
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
    """Open one connection for the duration of the block."""
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
    """Probe a rarely used session; raises StoreUnavailable if it has ended.

    A lost connection is not always reported: if a middlebox has dropped it, neither FIN nor RST arrives.
    """
    with driver_errors():
        async with asyncio.timeout(PROVE_TIMEOUT_S):
            await connection.execute(PROVE)


@asynccontextmanager
async def open_pool(
    dsn: str, *, role: str, max_size: int, settings: dict[str, str] | None = None
) -> AsyncIterator[Pool]:
    """Open a pool for cold queries."""
    pool = Pool(
        driver_dsn(dsn),
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
        server_settings={**_told(role, COMMAND_TIMEOUT_S), **(settings or {})},
    )
    with driver_errors():
        await pool
    try:
        yield pool
    finally:
        # A hanging query must not delay the end of the process.
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()
