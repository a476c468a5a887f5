"""Parse the text of a setting: a value, or a ValueError whose text says what is allowed."""

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from smithers.settings.options import DEFAULT_URL
from smithers.store.dsn import InvalidDatabaseUrl, check_dsn

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)  # of a variable
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of a whole number within bounds."""

    def read(text: str) -> int:
        problem = f"must be a whole number from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            raise ValueError(problem) from None
        if not low <= value <= high:
            raise ValueError(problem)
        return value

    return read


def seconds(text: str) -> float:
    """Read a number of seconds, at most a day."""
    problem = "must be a number of seconds from 0 to 86400"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(problem) from None
    if not 0 <= value <= 86_400:
        raise ValueError(problem)
    return value


def seconds_above_0(text: str) -> float:
    """Read the seconds of a limit that cannot be 0."""
    problem = "must be a number of seconds above 0, up to 86400"
    try:
        value = seconds(text)
    except ValueError:
        raise ValueError(problem) from None
    if value == 0:
        raise ValueError(problem)
    return value


def age(text: str) -> timedelta:
    """Read a length of time: a whole number and its unit."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 5:
        raise ValueError("must be a whole number with s, m, h, d or w after it, like 30d")
    return timedelta(seconds=int(number) * _UNITS[unit])


def age_or_off(text: str) -> timedelta | None:
    """Read a length of time, or `off`."""
    if text == "off":
        return None
    try:
        return age(text)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None


def one_of(choices: Sequence[str], fold: Callable[[str], str]) -> Callable[[str], str]:
    """Return a parser of one of some words, in any capitalization."""

    def read(text: str) -> str:
        if fold(text) not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return fold(text)

    return read


def word(text: str) -> str:
    """Read a word."""
    if not text or not text.isprintable() or " " in text or len(text) > 300:
        raise ValueError("must be a word without blanks")
    return text


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is a RuntimeError
        raise ValueError("must not lead through too many links") from error


def directory(text: str) -> Path:
    """Read the path of a directory."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ValueError("must be a directory that exists")
    return _resolved(path)


def new_directory(text: str) -> Path:
    """Read the path of a directory that may not exist yet."""
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError("must be a directory, or not exist yet")
    return _resolved(path)


def file(text: str) -> Path:
    """Read the path of a file."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError("must be a file that exists")
    return _resolved(path)


def database_url(text: str) -> str:
    """Read the URL of a Postgres; errors do not quote it."""
    try:
        return check_dsn(text)
    except InvalidDatabaseUrl as error:
        raise ValueError(error.problem) from None


def named_database(text: str) -> tuple[str, str]:
    """Read `NAME=URL` of a workflow's own database; errors do not quote it."""
    name, _, url = text.partition("=")
    if not NAME.fullmatch(name):
        raise ValueError("must be NAME=URL, the name as in @workflow(database=NAME)")
    return name, database_url(url)


def server_url(text: str) -> str:
    """Read the URL of a server."""
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1)
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError(f"must be a URL like {DEFAULT_URL}")
    return text.rstrip("/")


def truth(text: str) -> bool:
    """Read a flag without a value, or a variable that says yes or no."""
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("must be 1 or 0")
    return words[text.lower()]


def switch(text: str) -> bool:
    """Read a flag without a value."""
    return text == "true"
