"""Make text from outside safe to send, store and show."""

import re
from typing import Final

# Terminal controls (C0 except tab and newline, delete, C1), and bidirectional controls.
_ORDERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def text_of(value: object) -> str:
    """Return the text of an exception, or of any value, fit to be sent and stored; an author's class may raise there."""
    try:
        return sound(str(value))
    except BaseException:  # noqa: BLE001 - even a sys.exit() in __str__ is only a text that cannot be had
        return "(its text cannot be had)"


def sound(text: str) -> str:
    """Return a text without what databases refuse: NUL, and unpaired surrogates."""
    return encodable(text).replace("\x00", "")


def encodable(text: str) -> str:
    """Return a text without unpaired surrogates, which UTF-8 cannot encode."""
    # Not text.encode(): an author's subclass of str may override it.
    return str.encode(text, "utf-8", "replace").decode()


def printable(text: str) -> str:
    """Return a text that cannot control a terminal: its control characters are JSON escapes."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
