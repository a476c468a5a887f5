"""One database URL, as each of its readers wants it; and what is said of one that leads nowhere."""

import asyncpg
import pytest

from smithers.errors import StoreUnavailable
from smithers.store.connections import opening_errors
from smithers.store.dsn import (
    InvalidDatabaseUrl,
    check_dsn,
    describe_dsn,
    driver_dsn,
    statement_cache_size,
    unprepared,
)

PLAIN = "postgresql://somebody:p%40ss@host:5432/name"
SOCKET = "postgresql://postgres@/name?host=/run/place&port=5433"
SEVERAL = "postgresql://me:hush@one:5433,two/name?target_session_attrs=primary"


@pytest.mark.parametrize("url", [PLAIN, SOCKET, SEVERAL, f"{PLAIN}?sslmode=disable"])
def test_what_is_said_of_prepared_statements_is_for_us_and_nobody_else(url: str) -> None:
    told = unprepared(url)
    assert (statement_cache_size(url), statement_cache_size(told)) == (100, 0)
    assert driver_dsn(told) == driver_dsn(url) == url


def test_who_says_how_many_statements_are_kept_prepared_is_believed() -> None:
    url = f"{PLAIN}?statement_cache_size=50"
    assert check_dsn(url) == url  # what is checked is read again by others
    assert unprepared(url) == url
    assert statement_cache_size(url) == 50


@pytest.mark.parametrize("text", ["many", "-1", "1.5"])
def test_a_number_of_statements_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidDatabaseUrl, match="statement_cache_size"):
        check_dsn(f"{PLAIN}?statement_cache_size={text}")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql://me:hush@there/name", "starts with postgresql://"),
        ("postgresql://me:hush/hush@there/name", "%40"),
        ("postgresql://me:12/hush@there/name", "%40"),
        ("postgresql://me:hush@hush@there/name", "%40"),
        ("postgresql://me:hush#hush@there/name", "%40"),
        ("postgresql://me:12?hush@there/name", "%40"),
        ("postgresql://me:hush℀@there/name", "%40"),  # NFKC makes "a/c" of it
        ("postgresql://me:[hush@there/name", "%40"),
        ("postgresql://me:hush@there:99999/name", "65535"),
        ("postgresql://me:hush@there:0/name", "65535"),
        ("postgresql://me:hush@there:port/name", "65535"),
        ("postgresql://me:hush@one,/name", "65535"),
        ("postgresql://me:hush@/name?host=/run&port=x", "65535"),
        ("postgresql://me:hush@there/name?sslmode=bogus", "verify-full"),
        ("postgresql://me:hush@there/name?sslmode=parse", "verify-full"),
    ],
)
def test_a_url_that_is_none_is_refused_with_what_would_be_right_and_not_quoted(
    url: str, told: str
) -> None:
    with pytest.raises(InvalidDatabaseUrl) as caught:
        check_dsn(url)
    assert told in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (PLAIN, "host:5432/name"),
        (SOCKET, "/run/place:5433/name"),
        (SEVERAL, "one:5433,two:5432/name"),
        ("postgresql://me:hush@[::1]/name", "[::1]:5432/name"),
        ("postgresql://me:hush@there/name?host=elsewhere&port=1", "there:1/name"),
        ("postgresql:///name?host=one,two&port=5433,5434", "one:5433,two:5434/name"),
        ("postgresql:///name", "localhost:5432/name"),
    ],
)
def test_a_database_is_described_without_its_user(url: str, place: str) -> None:
    assert describe_dsn(check_dsn(url)) == place


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (asyncpg.InvalidCatalogNameError('database "x"'), StoreUnavailable, "does not exist"),
        (asyncpg.InvalidPasswordError('user "me"'), StoreUnavailable, "refuses the password"),
        (
            asyncpg.InvalidAuthorizationSpecificationError('role "me"'),
            StoreUnavailable,
            "pg_hba.conf",
        ),
        (ConnectionRefusedError(111, "refused ('there', 1)"), StoreUnavailable, "nobody listens"),
        (TimeoutError(), StoreUnavailable, "no answer within 10 s"),
        (ConnectionError("rejected SSL upgrade"), StoreUnavailable, "rejected SSL upgrade"),
        (OSError(113, "No route to host"), StoreUnavailable, "No route to host"),
        (asyncpg.ClientConfigurationError("root.crt"), InvalidDatabaseUrl, "root.crt"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_connection_that_does_not_open_says_where_to_and_why_but_not_who_asked(
    error: Exception, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind) as caught, opening_errors("postgresql://me:hush@there:1/name"):
        raise error
    said = str(caught.value)
    assert told in said
    assert "there:1/name" in said
    assert "me" not in said.replace("name", "")
    assert "hush" not in said
