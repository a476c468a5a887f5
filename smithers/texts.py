"""Make text from outside safe to send, store, show and paste."""

import re
import shlex
from collections.abc import Sequence
from typing import Final

# Terminal controls (C0 except tab and newline, delete, C1), and bidirectional controls.
_ORDERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def text_of(value: object) -> str:
    """Return the text of an exception, or of any value, fit to be sent and stored; an author's class may raise there."""
    try:
        return sound(str(value))
    except BaseException:  # noqa: BLE001 - even a sys.exit() in __str__ is only a text that is not available
        return "(its text is not available)"


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


def command_line(verb: str, *operands: str, flags: Sequence[str] = ()) -> str:
    """Return a `smithers` command for a shell; `flags`: options and their values.

    An operand that begins with a hyphen comes after `--`, and so after all options.
    """
    is_like_option = any(operand.startswith("-") for operand in operands)
    words = [*flags, "--", *operands] if is_like_option else [*operands, *flags]
    return shlex.join(["smithers", verb, *words])


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
