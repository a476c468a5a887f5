"""Spans and trace contexts as plain values: creating one is the only cost for traced code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from smithers.texts import text_of

Value = str | int | float | bool
ERROR_TYPE: Final = "error.type"
MAX_TEXT_CHARS: Final = 8_192  # of an attribute's value
MAX_NAME_CHARS: Final = 200  # of a span's name, an attribute's key, an error's class

# Of version 00; later versions may append fields, and ff is invalid. Ids of zeros are invalid.
_TRACEPARENT: Final = re.compile(
    r"(?!ff|00.{53}-)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?",
    re.ASCII,
)


def plain(value: object) -> Value:
    """Return a value as an attribute can hold it, or else its text; never raises, even for an author's class.

    A text is cut at MAX_TEXT_CHARS.
    """
    if type(value) is str:
        return value[:MAX_TEXT_CHARS]
    if type(value) is float or type(value) is bool:
        return value
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    return text_of(value)[:MAX_TEXT_CHARS]


def plain_name(value: object) -> str:
    """Return a text usable as a name, cut at MAX_NAME_CHARS; never raises."""
    return text_of(value)[:MAX_NAME_CHARS]


class SpanKind(IntEnum):
    """A span's relation to its parent."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Place(NamedTuple):
    """A position in a trace: below this span."""

    trace_id: bytes
    span_id: bytes
    is_sampled: bool = True

    @property
    def traceparent(self) -> str:
        """Return it as the W3C header."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-0{int(self.is_sampled)}"


def read_traceparent(text: str) -> Place | None:
    """Parse the W3C header; None if it is absent or invalid."""
    if _TRACEPARENT.fullmatch(text) is None:
        return None
    is_sampled = bool(int(text[54], 16) & 1)
    return Place(bytes.fromhex(text[3:35]), bytes.fromhex(text[36:52]), is_sampled)


def read_kept(traceparent: str) -> Place:
    """Parse a stored place."""
    is_sampled = traceparent[54] == "1"
    return Place(bytes.fromhex(traceparent[3:35]), bytes.fromhex(traceparent[36:52]), is_sampled)


@dataclass(slots=True)
class Span:
    """An operation in progress; `attributes` added before its end are emitted with it. No content, no secrets."""

    name: str
    kind: SpanKind
    trace_id: bytes
    span_id: bytes
    parent_id: bytes  # empty: it begins its trace
    is_sampled: bool
    began_ns: int
    attributes: dict[str, Value]
    inherited: Mapping[str, Value]  # attributes that all spans below it have too
    ended_ns: int = 0
    error_type: str | None = None

    @property
    def place(self) -> Place:
        """Return the place for its children."""
        return Place(self.trace_id, self.span_id, self.is_sampled)
