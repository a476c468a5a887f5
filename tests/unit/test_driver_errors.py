"""Whatever the driver raises is one of our errors once it has left the store, and says whether to try again."""

import asyncpg
import pytest

from smithers.errors import CallTooLong, StoreError, StoreUnavailable
from smithers.store.connections import driver_errors

RAISED = sorted(
    {
        kind
        for kind in vars(asyncpg.exceptions).values()
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and not issubclass(kind, asyncpg.PostgresLogMessage | Warning)  # said, not raised
    },
    key=lambda kind: kind.__name__,
)
PASSING = [
    asyncpg.AdminShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.DeadlockDetectedError,
    asyncpg.DiskFullError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TooManyConnectionsError,
    ConnectionResetError,
    TimeoutError,
]


def told(kind: type[Exception]) -> StoreError:
    with pytest.raises(StoreError) as caught, driver_errors():
        raise kind("it went wrong")
    return caught.value


def test_none_of_the_drivers_errors_gets_through() -> None:
    assert len(RAISED) > 200
    for kind in RAISED:
        assert isinstance(told(kind).__cause__, kind)


@pytest.mark.parametrize("kind", PASSING, ids=lambda kind: kind.__name__)
def test_what_passes_may_be_tried_again(kind: type[Exception]) -> None:
    assert isinstance(told(kind), StoreUnavailable)


def test_a_call_that_the_server_gave_up_for_its_length_is_told_from_a_server_that_is_away() -> None:
    assert isinstance(told(asyncpg.QueryCanceledError), CallTooLong)


@pytest.mark.parametrize("kind", [asyncpg.UniqueViolationError, asyncpg.DataError])
def test_what_the_values_are_to_blame_for_is_not_tried_again(kind: type[Exception]) -> None:
    assert not isinstance(told(kind), StoreUnavailable)
