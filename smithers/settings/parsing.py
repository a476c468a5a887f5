"""Read what a person wrote for a setting: a value, or a ValueError whose text says what would be right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from smithers.settings.options import DEFAULT_URL
from smithers.store.dsn import InvalidDatabaseUrl, check_dsn


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number within bounds."""

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
    """Read a number of seconds, a day at the most."""
    problem = "must be a number of seconds from 0 to 86400"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(problem) from None
    if not 0 <= value <= 86_400:
        raise ValueError(problem)
    return value


def one_of(choices: Sequence[str], fold: Callable[[str], str]) -> Callable[[str], str]:
    """Return what reads one of some words, however they are capitalised."""

    def read(text: str) -> str:
        if fold(text) not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return fold(text)

    return read


def word(text: str) -> str:
    """Read a word."""
    if not text.isprintable() or " " in text or len(text) > 300:
        raise ValueError("must be a word without blanks")
    return text


def directory(text: str) -> Path:
    """Read the path of a directory."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ValueError("must be a directory that exists")
    return path.resolve()


def new_directory(text: str) -> Path:
    """Read the path of a directory that may not exist yet."""
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError("must be a directory, or not exist yet")
    return path.resolve()


def file(text: str) -> Path:
    """Read the path of a file."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError("must be a file that exists")
    return path.resolve()


def database_url(text: str) -> str:
    """Read the URL of a Postgres; it is not quoted."""
    try:
        return check_dsn(text)
    except (InvalidDatabaseUrl, ValueError):
        raise ValueError("must be a URL that starts with postgresql://") from None


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


def switch(text: str) -> bool:
    """Read a flag without a value."""
    return text == "true"
