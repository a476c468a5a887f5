"""Paging of lists: a page's `Link` header leads to the next one, by an opaque cursor."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import orjson
from aiohttp import web

from gateway.errors import InvalidRequest
from gateway.fields import MAX_INTEGER

MAX_PAGE_BYTES: Final = 4 * 1024 * 1024

Items = TypeVar("Items")


@dataclass(frozen=True, slots=True)
class Page(Generic[Items]):
    """The answer of a list's handler: a JSON value, and the link to the next page, if there is one."""

    value: Items
    link: str | None


def write_cursor(*parts: str | int | datetime) -> str:
    """Encode a place in a list as an opaque cursor."""
    return urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def read_cursor(text: str, *kinds: type) -> list[Any]:
    """Decode a cursor of write_cursor into values of these types that Postgres accepts; raises InvalidRequest."""
    try:
        return [_READERS[kind](part) for kind, part in zip(kinds, _read_parts(text), strict=True)]
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest("cursor must be one from a Link header.") from error


def next_link(request: web.BaseRequest, **changes: str | int) -> str:
    """Return the Link header's value for the next page."""
    url = request.rel_url.update_query({name: str(value) for name, value in changes.items()})
    return f'<{url}>; rel="next"'


def _read_parts(text: str) -> list[Any]:
    parts = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if not isinstance(parts, list):
        raise TypeError("not a list")
    return parts


def _read_text(part: Any) -> str:
    if type(part) is not str or "\0" in part:
        raise ValueError("not a text")
    return part


def _read_number(part: Any) -> int:
    if type(part) is not int or not 0 <= part <= MAX_INTEGER:
        raise ValueError("not a number that a row can have")
    return part


def _read_moment(part: Any) -> datetime:
    moment = datetime.fromisoformat(_read_text(part))
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return moment.astimezone(UTC)  # OverflowError: a year out of range


_READERS: Final[Mapping[type, Callable[[Any], Any]]] = MappingProxyType(
    {str: _read_text, int: _read_number, datetime: _read_moment}
)
