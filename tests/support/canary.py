"""A secret that all servers of the suite are given and nobody is to see: `tests.support.gate` fails a test that shows it.

It is in every token that lets somebody in, and in the environment of every server, as a key for a model would be. Whatever
a test hears of them is looked through: log lines, what commands print, rows, metrics, spans, pytest's captured output.
"""

from typing import Final

CANARY: Final = "canary-of-the-suite-4e1d"
TOKEN: Final = f"{CANARY}-token"
ENVIRONMENT: Final = {"SUITE_API_KEY": f"{CANARY}-key"}

_seen: list[str] = []


def look_through(text: str, where: str) -> None:
    """Take note of it where the secret is in a text."""
    at = text.find(CANARY)
    if at >= 0:
        _seen.append(f"{where}: …{text[max(0, at - 200) : at + 100]}…")


def take_seen() -> list[str]:
    """Return where it was seen since this was last asked."""
    seen = _seen.copy()
    _seen.clear()
    return seen
