"""Take fields out of bodies and parameters out of queries; what is not what it must be is InvalidRequest.

A NUL is refused in every text that becomes a value in SQL: Postgres has none.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.errors import InvalidRequest

MAX_INTEGER: Final = 2**31 - 1
MAX_BIGINT: Final = 2**63 - 1
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)


def take_text(body: dict[str, Any], name: str, *, max_chars: int = 10_000) -> str | None:
    """Take an optional text."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string.")
    if "\0" in value or len(value) > max_chars:
        raise InvalidRequest(f"{name} must have at most {max_chars} characters, none of them NUL.")
    return value


def take_object(body: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Take an optional object."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object.")
    return value


def take_bool(body: dict[str, Any], name: str) -> bool:
    """Take an optional true or false; false if it is not there."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false.")
    return bool(value)


def take_whole(body: dict[str, Any], name: str, *, low: int, high: int = MAX_INTEGER) -> int | None:
    """Take an optional whole number."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}.")
    return value


def query_text(request: web.Request, name: str) -> str | None:
    """Read a parameter that may be there once."""
    values = request.query.getall(name, [])
    if len(values) > 1:
        raise InvalidRequest(f"{name} may be given once.")
    if values and "\0" in values[0]:
        raise InvalidRequest(f"{name} may hold no NUL.")
    return values[0] if values else None


def query_whole(request: web.Request, name: str, *, low: int, high: int, default: int) -> int:
    """Read a whole number from a parameter."""
    text = query_text(request, name)
    return default if text is None else parse_whole(text, name, low=low, high=high)


def parse_whole(text: str, name: str, *, low: int, high: int) -> int:
    """Read digits, with a minus at most: no spaces, signs, exponents or other scripts' digits."""
    if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}.")
    return int(text)


def write_cursor(*parts: str | int) -> str:
    """Write a place in a list so that nobody is tempted to build one."""
    return urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def read_cursor(text: str, *kinds: type) -> list[Any]:
    """Read what write_cursor wrote, as values of these types."""
    try:
        parts = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError as error:
        raise InvalidRequest("cursor must be one that a Link header carried.") from error
    fits = isinstance(parts, list) and [type(part) for part in parts] == list(kinds)
    if not fits or any(isinstance(part, str) and "\0" in part for part in parts):
        raise InvalidRequest("cursor must be one that a Link header carried.")
    return parts  # type: ignore[no-any-return]  # a list: checked above


def next_link(request: web.Request, **changes: str | int) -> str:
    """Write the Link header's value that leads to the next page."""
    url = request.rel_url.update_query({name: str(value) for name, value in changes.items()})
    return f'<{url}>; rel="next"'
