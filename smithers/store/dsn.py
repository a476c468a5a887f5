"""Parse a database URL once, and say where it leads; a user or a password never appears in a log or an error."""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from smithers.errors import StoreError

_SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_CACHE_SIZE: Final = "statement_cache_size"  # how many statements a connection keeps prepared
_DEFAULT_CACHE_SIZE: Final = 100
_DEFAULT_PORT: Final = "5432"
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_ADDRESS: Final = re.compile(rf"(?:\[[^\[\]]+\]|[^:\[\]]+)(?::(?P<port>{_PORT.pattern}))?")
_ESCAPED: Final = (
    "what is special in a user, a password or a name is written as %XX, like %40 for @"
)


class InvalidDatabaseUrl(StoreError):
    """A database URL is invalid; `problem` says why, without a subject and without quoting it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"a database URL {problem}")
        self.problem = problem


def check_dsn(dsn: str) -> str:
    """Return the URL with the driver's scheme; raise InvalidDatabaseUrl without quoting its secrets.

    The driver's own errors quote what it could not read, which may be a piece of a password.
    """
    try:
        parts = urlsplit(dsn)
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise InvalidDatabaseUrl(f"must be well-formed: {_ESCAPED}") from None
    if parts.scheme not in _SCHEMES:
        raise InvalidDatabaseUrl("must be one that starts with postgresql://")
    if parts.netloc.count("@") > 1 or "@" in parts.path or "#" in dsn:
        raise InvalidDatabaseUrl(f"must be well-formed: {_ESCAPED}")
    ports = query.get("port", _DEFAULT_PORT).split(",")
    if not all(map(_is_address, _hosts(parts, query))) or not all(map(_is_port, ports)):
        raise InvalidDatabaseUrl(
            f"must name a host, and a port from 1 to 65535 or none; {_ESCAPED}"
        )
    if query.get("sslmode", "prefer").replace("_", "-") not in _SSL_MODES:
        raise InvalidDatabaseUrl(f"must have an sslmode of {', '.join(_SSL_MODES)}, or none")
    statement_cache_size(dsn)
    return urlunsplit(parts._replace(scheme="postgresql"))


def driver_dsn(dsn: str) -> str:
    """Return the URL as the driver takes it, without what is ours in it; raises InvalidDatabaseUrl."""
    parts = urlsplit(check_dsn(dsn))
    kept = [(key, value) for key, value in parse_qsl(parts.query) if key != _CACHE_SIZE]
    text = urlencode(kept, safe="/:") if _CACHE_SIZE in parts.query else parts.query
    return urlunsplit(parts._replace(query=text))


def _hosts(parts: SplitResult, query: Mapping[str, str]) -> list[str]:
    """Return the hosts, each as it was written; the driver uses the first part of the URL that names any."""
    named = parts.netloc.rpartition("@")[2] or query.get("host")
    return named.split(",") if named else []


def _is_address(text: str) -> bool:
    found = _ADDRESS.fullmatch(text)
    return found is not None and _is_port(found["port"] or _DEFAULT_PORT)


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 1 <= int(text) <= 65_535


def statement_cache_size(dsn: str) -> int:
    """Return how many statements a connection keeps prepared; raises InvalidDatabaseUrl."""
    text = dict(parse_qsl(urlsplit(dsn).query)).get(_CACHE_SIZE, str(_DEFAULT_CACHE_SIZE))
    if not (text.isascii() and text.isdigit()):
        raise InvalidDatabaseUrl(f"must have a whole number as its {_CACHE_SIZE}")
    return int(text)


def unprepared(dsn: str) -> str:
    """Return the URL with a statement cache of 0, unless it sets one itself."""
    parts = urlsplit(dsn)
    if _CACHE_SIZE in dict(parse_qsl(parts.query)):
        return dsn
    return urlunsplit(
        parts._replace(query="&".join(filter(None, [parts.query, f"{_CACHE_SIZE}=0"])))
    )


def describe_dsn(dsn: str) -> str:
    """Say where a database is, for people: hosts, ports and name, never a user or a password."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    hosts = _hosts(parts, query) or ["localhost"]
    ports = query.get("port", _DEFAULT_PORT).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    places = (
        host if (address := _ADDRESS.fullmatch(host)) and address["port"] else f"{host}:{port}"
        for host, port in zip(hosts, ports, strict=False)
    )
    return ",".join(places) + parts.path


def has_password(text: str) -> bool:
    """Say whether a text is a database URL with a password in it; raises ValueError for a URL that cannot be read."""
    if text.partition("://")[0] not in _SCHEMES:
        return False
    parts = urlsplit(text)
    return bool(parts.password) or "password" in dict(parse_qsl(parts.query))
