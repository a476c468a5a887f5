"""Texts of others' making, as they can be sent, stored and shown."""

import re
from typing import Final

# What a terminal obeys (C0 but tab and newline, delete, C1), and what makes a line read otherwise than it is written.
_ORDERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def text_of(value: object) -> str:
    """Return a text of an exception, or of any value, as it can be sent and stored; an author's class may raise there."""
    try:
        return sound(str(value))
    except BaseException:  # noqa: BLE001 - even a sys.exit() in __str__ is only a text that cannot be had
        return "(its text cannot be had)"


def sound(text: str) -> str:
    """Return a text without what no database takes: NUL, and halves of surrogate pairs."""
    return encodable(text).replace("\x00", "")


def encodable(text: str) -> str:
    """Return a text without halves of surrogate pairs, for which UTF-8 has no bytes."""
    # Not text.encode(): an author's class of texts may have its own.
    return str.encode(text, "utf-8", "replace").decode()


def printable(text: str) -> str:
    """Return a text that a terminal shows and does not obey: its control characters as JSON writes them."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
