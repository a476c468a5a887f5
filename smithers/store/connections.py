"""Open connections to Postgres the way each use wants them, and turn the driver's errors into ours.

Three kinds. A *hot* connection is dedicated, kept, and never goes through a pool (a pool's reset costs a round trip); its
plans are made once, and may use only what stays right when a table has grown: see docs/adr/0007-plans-made-once.md. The
*pool* is for cold queries. A *listening* connection is direct (LISTEN is silently lost through a pooler in transaction
mode) and need not wait for the disk: what it says is only a hint.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import asyncpg

from smithers.errors import StoreError, StoreUnavailable
from smithers.store.dsn import check_dsn
from smithers.store.refusals import LivesElsewhere, RunExists

Pool = asyncpg.Pool  # for those who hand one on and do not speak SQL

TOMBSTONES: Final = "tombstones_pkey"  # the name of a run that retention removed is asked for
COMMAND_TIMEOUT_S: Final = 30.0  # a stalled peer is not seen by TCP
CONNECT_TIMEOUT_S: Final = 10.0

_GUARDS: Final = {
    "statement_timeout": "30s",
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

# Nothing that the statement or its values are to blame for: the same call may succeed later, or elsewhere.
_GONE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, not up yet, cancelled
    asyncpg.PostgresSystemError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password was changed
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # closed for maintenance; a lock that came too late
    asyncpg.TransactionRollbackError,  # a deadlock's victim
    asyncpg.ReadOnlySQLTransactionError,  # what was the primary until just now
    asyncpg.IdleInTransactionSessionTimeoutError,
)


@contextmanager
def driver_errors() -> Iterator[None]:
    """Raise StoreUnavailable for what a repetition may cure, StoreError for the rest; LivesElsewhere: see refusals."""
    try:
        yield
    except _GONE as error:
        raise StoreUnavailable(f"the database did not answer: {type(error).__name__}") from error
    except (
        asyncpg.CheckViolationError
    ) as error:  # the schema has one check: that mirrors are read-only
        raise LivesElsewhere from error
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == TOMBSTONES:  # see tombstones_v1.sql
            raise RunExists from error
        raise StoreError(f"the database refused: {type(error).__name__}: {error}") from error
    except asyncpg.PostgresError as error:
        raise StoreError(f"the database refused: {type(error).__name__}: {error}") from error


async def connect(
    dsn: str, *, role: str, settings: dict[str, str] | None = None
) -> asyncpg.Connection:
    """Open one connection; `role` is what pg_stat_activity shows it for."""
    with driver_errors():
        return await asyncpg.connect(
            check_dsn(dsn),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"application_name": f"smithers-{role}", **_GUARDS, **(settings or {})},
        )


async def connect_hot(dsn: str, *, role: str) -> asyncpg.Connection:
    """Open a connection for one hot statement."""
    return await connect(dsn, role=role, settings=PLANS_MADE_ONCE)


async def connect_listening(dsn: str, *, role: str) -> asyncpg.Connection:
    """Open a direct connection for LISTEN and NOTIFY."""
    return await connect(dsn, role=role, settings={"synchronous_commit": "off"})


@asynccontextmanager
async def open_pool(dsn: str, *, role: str, max_size: int) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool for cold queries."""
    with driver_errors():
        pool = await asyncpg.create_pool(
            check_dsn(dsn),
            min_size=0,
            max_size=max_size,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"application_name": f"smithers-{role}", **_GUARDS},
        )
    try:
        yield pool
    finally:
        # A query that hangs must not hold up the end of the process.
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except TimeoutError:
            pool.terminate()
