"""Encode spans as OTLP, opentelemetry/proto/trace/v1/trace.proto, by hand.

The library builds a message of objects for each span, which takes 60 µs; this takes some three. A test parses the
result with the library's messages.
"""

import struct
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Final

from smithers.telemetry.spans import ERROR_TYPE, MAX_NAME_CHARS, Span, SpanKind, Value

_VARINT, _FIXED64, _BYTES = 0, 1, 2  # wire types
_TIMES: Final = struct.Struct("<BQBQ")
_DOUBLE: Final = struct.Struct("<d")
_MAX_RECURRING: Final = 8  # attributes that are kept together
_ERROR_STATUS: Final = bytes((15 << 3 | _BYTES, 2, 3 << 3 | _VARINT, 2))


def encode_span(span: Span) -> bytes:
    """Return an ended span, encoded as an element of a scope."""
    parent_id, error_type = span.parent_id, span.error_type
    body = b"".join(
        (
            b"\x0a\x10",
            span.trace_id,
            b"\x12\x08",
            span.span_id,
            b"\x22\x08" + parent_id if parent_id else b"",
            _named(span.name, span.kind),
            _TIMES.pack(7 << 3 | _FIXED64, span.began_ns, 8 << 3 | _FIXED64, span.ended_ns),
            _attributes(9, span.inherited),
            _attributes(9, span.attributes),
            b"" if error_type is None else _attributes(9, {ERROR_TYPE: error_type}) + _ERROR_STATUS,
        )
    )
    return encode_field(2, body)


def encode_request(
    resource: Mapping[str, Value], scope: str, version: str, spans: Iterable[bytes]
) -> bytes:
    """Return the request that exports spans."""
    told = _attributes(1, resource)
    scope_body = encode_field(1, scope.encode()) + encode_field(2, version.encode())
    return encode_field(
        1, encode_field(1, told) + encode_field(2, encode_field(1, scope_body) + b"".join(spans))
    )


def _attributes(number: int, attributes: Mapping[str, Value]) -> bytes:
    values = attributes.values()
    write = _recurring_attributes if _may_recur(values) else _write_attributes
    return write(number, *attributes, *values)


def _may_recur(values: Collection[Value]) -> bool:
    """Say whether they are few and short: others would fill the cache with what never comes again."""
    if len(values) > _MAX_RECURRING:
        return False
    for value in values:  # noqa: SIM110 - all() takes twice as long, for every span
        if type(value) is str and len(value) > MAX_NAME_CHARS:
            return False
    return True


def _write_attributes(number: int, *keys_and_values: Value) -> bytes:
    """Write attributes, given as all keys and then all values: in a flat row a cache distinguishes the values' types."""
    count = len(keys_and_values) // 2
    pairs = zip(keys_and_values[:count], keys_and_values[count:], strict=True)
    return b"".join(_attribute(number, str(key), value) for key, value in pairs)


# A run's identity, a node's names and states, a route recur; long texts do not. `typed`, because 1 is not True.
_recurring_attributes = lru_cache(maxsize=512, typed=True)(_write_attributes)


def _attribute(number: int, key: str, value: Value) -> bytes:
    match value:
        case bool():
            coded = bytes((2 << 3 | _VARINT, value))
        case int():
            coded = b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
        case float():
            coded = b"\x21" + _DOUBLE.pack(value)
        case _:
            coded = encode_field(1, _text(value))
    return encode_field(number, _key(key) + encode_field(2, coded))


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    return encode_field(1, _text(key))


@lru_cache(maxsize=256)
def _named(name: str, kind: SpanKind) -> bytes:
    return encode_field(5, _text(name)) + bytes((6 << 3 | _VARINT, kind))


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # authors hand in anything; an error would reach nobody


def encode_field(number: int, value: bytes) -> bytes:
    """Return a field that holds bytes, a text or a message."""
    return bytes((number << 3 | _BYTES,)) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    coded = bytearray()
    while value >= 0x80:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


_SMALL: Final = tuple(bytes((value,)) for value in range(0x80))
