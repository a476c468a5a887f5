"""Lists come in pages: a page's `Link` header leads to the next one, by a cursor that only we write."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson
from aiohttp import web

from gateway.errors import InvalidRequest

Items = TypeVar("Items")


@dataclass(frozen=True, slots=True)
class Page(Generic[Items]):
    """What a handler of a list answers: a JSON value, and where the next page is, if there is one."""

    value: Items
    link: str | None


def write_cursor(*parts: str | int) -> str:
    """Write a place in a list so that nobody is tempted to build one."""
    return urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def read_cursor(text: str, *kinds: type) -> list[Any]:
    """Read what write_cursor wrote, as values of these types; raises InvalidRequest."""
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
