"""One database URL, as each of its readers wants it."""

import pytest

from smithers.store.dsn import (
    InvalidDatabaseUrl,
    check_dsn,
    sqlalchemy_url,
    statement_cache_size,
    unprepared,
)

PLAIN = "postgresql://somebody:p%40ss@host:5432/name"
SOCKET = "postgresql://postgres@/name?host=/run/place&port=5433"


@pytest.mark.parametrize("url", [PLAIN, SOCKET, f"{PLAIN}?sslmode=disable"])
def test_what_is_said_of_prepared_statements_is_for_us_and_nobody_else(url: str) -> None:
    told = unprepared(url)
    assert (statement_cache_size(url), statement_cache_size(told)) == (100, 0)
    assert check_dsn(told) == check_dsn(url) == url
    assert sqlalchemy_url(told) == sqlalchemy_url(url)


def test_who_says_how_many_statements_are_kept_prepared_is_believed() -> None:
    url = f"{PLAIN}?statement_cache_size=50"
    assert unprepared(url) == url
    assert statement_cache_size(url) == 50


@pytest.mark.parametrize("text", ["many", "-1", "1.5"])
def test_a_number_of_statements_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidDatabaseUrl, match="statement_cache_size"):
        statement_cache_size(f"{PLAIN}?statement_cache_size={text}")
