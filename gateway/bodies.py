"""Read a request's body as strict JSON: anything that two parsers could read differently is refused.

Refused: other encodings than UTF-8, byte order marks, NaN and Infinity and what overflows to them, duplicate keys, lone
surrogates, nesting deeper than 32, whole numbers beyond the largest double. Nesting is measured before the
text is parsed, because a parser recurses.
"""

import json
import re
from collections.abc import Callable
from math import isinf
from typing import Any, Final

import orjson
from aiohttp import HttpVersion11, web

from gateway.errors import InvalidJson, InvalidRequest, PayloadTooLarge

MAX_DEPTH: Final = 32  # the root is level 1, and scalars count

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_HUGE_NUMBER: Final = re.compile(rb"[0-9]{309}")  # beyond the largest double


async def read_object(
    request: web.BaseRequest, *, max_bytes: int, grow: Callable[[int], None]
) -> dict[str, Any]:
    """Read the body as a JSON object; no body counts as an empty one.

    `grow` is called with the length before anything is read, or with that of every chunk of a body of unknown length.
    Raises PayloadTooLarge (before anything is read, if the length says so), InvalidJson, InvalidRequest, and what `grow`
    raises.
    """
    length_bytes = request.content_length
    if (length_bytes or 0) > max_bytes:
        raise PayloadTooLarge(max_bytes)
    if not request.body_exists:
        return {}
    grow(length_bytes or 0)
    if request.headers.get("Expect") and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # otherwise aiohttp considers the answer begun
    body, content = bytearray(), request.content
    while not content.at_eof():
        chunk = await content.readany()
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLarge(max_bytes)
        if length_bytes is None:
            grow(len(chunk))
    return parse_object(bytes(body)) if body else {}


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a body that must be an object; raises InvalidJson, InvalidRequest."""
    depth = bracket_depth(body)
    if depth > MAX_DEPTH:
        raise _too_deep()
    value = parse_json(body)
    # Only at the limit itself can a scalar exceed it.
    if depth == MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def parse_json(body: bytes) -> Any:
    """Parse strict JSON of checked nesting depth; raises InvalidJson."""
    decoder = _CAREFUL_DECODER if _HUGE_NUMBER.search(body) else _DECODER
    try:
        value = decoder.decode(body.decode("utf-8"))
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidJson from error
    return value


def write_json(value: Any) -> str:
    """Encode a parsed value as JSON text for the store."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a whole number of more than 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def bracket_depth(body: bytes) -> int:
    """Measure how deep brackets nest, at most MAX_DEPTH + 1.

    Everything but brackets is removed, then pairs, innermost first: each round is one pass in C over the rest.
    For text that is not JSON the result is any number up to the limit.
    """
    if body.count(b"[") + body.count(b"{") < MAX_DEPTH:
        return 0
    left = _STRING.sub(b"", body).translate(_ONE_KIND, _NOT_BRACKETS)
    rounds = 0
    while b"[]" in left and rounds <= MAX_DEPTH:
        left = left.replace(b"[]", b"")
        rounds += 1
    return min(rounds + left.count(b"["), MAX_DEPTH + 1)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 1


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"The body nests deeper than {MAX_DEPTH} levels.", details={"maxDepth": MAX_DEPTH}
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError("a number is too large")
    return number


def _finite_int(text: str) -> int:
    _finite(text)
    return int(text)


def _no_constant(_name: str) -> Any:
    raise ValueError("NaN and Infinity are not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=_finite, parse_constant=_no_constant
)
_CAREFUL_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_float=_finite,
    parse_int=_finite_int,
    parse_constant=_no_constant,
)
