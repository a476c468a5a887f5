"""Read a database URL once, and say it as each driver wants it.

asyncpg and SQLAlchemy disagree on what may stand in the query part; a name or a password never appears in a log.
"""

from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from smithers.errors import StoreError

_SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_CACHE_SIZE: Final = "statement_cache_size"  # how many statements a connection keeps prepared
_DEFAULT_CACHE_SIZE: Final = 100
_QUERY_OF_SQLALCHEMY: Final = frozenset({"host", "port"})


class InvalidDatabaseUrl(StoreError):
    """What was given as a database URL is none."""


def check_dsn(dsn: str) -> str:
    """Return the URL as asyncpg reads it; raise InvalidDatabaseUrl without quoting its secrets."""
    parts = urlsplit(dsn)
    if parts.scheme not in _SCHEMES:
        raise InvalidDatabaseUrl(
            f"a database URL starts with postgresql://, not with {parts.scheme or 'nothing'}://"
        )
    kept = [(key, value) for key, value in parse_qsl(parts.query) if key != _CACHE_SIZE]
    query = urlencode(kept, safe="/:") if _CACHE_SIZE in parts.query else parts.query
    return urlunsplit(parts._replace(scheme="postgresql", query=query))


def statement_cache_size(dsn: str) -> int:
    """Return how many statements a connection is to keep prepared; raises InvalidDatabaseUrl."""
    text = dict(parse_qsl(urlsplit(dsn).query)).get(_CACHE_SIZE, str(_DEFAULT_CACHE_SIZE))
    if not (text.isascii() and text.isdigit()):
        raise InvalidDatabaseUrl(f"{_CACHE_SIZE} in a database URL is a whole number")
    return int(text)


def unprepared(dsn: str) -> str:
    """Return the URL with the word that no statement is kept prepared, unless it says itself how many are."""
    parts = urlsplit(dsn)
    if _CACHE_SIZE in dict(parse_qsl(parts.query)):
        return dsn
    return urlunsplit(
        parts._replace(query="&".join(filter(None, [parts.query, f"{_CACHE_SIZE}=0"])))
    )


def sqlalchemy_url(dsn: str) -> str:
    """Return the URL for SQLAlchemy's asyncpg dialect, without the keys that it chokes on."""
    parts = urlsplit(check_dsn(dsn))
    kept = [(key, value) for key, value in parse_qsl(parts.query) if key in _QUERY_OF_SQLALCHEMY]
    return "postgresql+asyncpg://" + urlunsplit(
        parts._replace(scheme="", query=urlencode(kept, safe="/:"))
    ).removeprefix("//")


def describe_dsn(dsn: str) -> str:
    """Say where a database is, for logs: host, port and name, never a user or a password."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    host = query.get("host") or parts.hostname or "localhost"
    return f"{host}:{query.get('port') or parts.port or 5432}{parts.path}"


def has_password(text: str) -> bool:
    """Say whether a text is a database URL with a password in it; raises ValueError for a URL that cannot be read."""
    if text.partition("://")[0] not in _SCHEMES:
        return False
    parts = urlsplit(text)
    return bool(parts.password) or "password" in dict(parse_qsl(parts.query))
