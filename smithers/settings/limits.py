"""The limits of one HTTP process: a request beyond them is refused before it is accepted."""

from dataclasses import dataclass, field, fields
from typing import Final

MAX_LIMIT: Final = 1 << 40


def _limit(default: int, told: str) -> int:
    value: int = field(default=default, metadata={"told": told})
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits by name; the names that people write have dashes."""

    connections: int = _limit(10_000, "Connections; further ones are answered once and closed.")
    requests: int = _limit(2_000, "Requests in progress, except streams.")
    streams: int = _limit(8_000, "Open event streams.")
    streams_per_run: int = _limit(5_000, "Open event streams of one run.")
    streams_per_credential: int = _limit(5_000, "Open event streams of one token.")
    body_bytes: int = _limit(64 * 1024 * 1024, "Bytes of request bodies in progress.")
    queued_runs: int = _limit(50_000, "Runs in the database that no worker has claimed yet.")


def name_of_limit(field_name: str) -> str:
    """Return a limit's name as people write it."""
    return field_name.replace("_", "-")


NAMES: Final = {name_of_limit(one.name): one.name for one in fields(Limits)}


def limits(text: str) -> tuple[tuple[str, int], ...]:
    """Read `NAME=N,…`: the fields of Limits that are set."""
    return tuple(_read(part) for part in text.split(","))


def _read(text: str) -> tuple[str, int]:
    name, _, number = text.strip().partition("=")
    if name not in NAMES:
        raise ValueError(f"must be NAME=N with one of the names {', '.join(NAMES)}")
    if not (number.isascii() and number.isdecimal()) or not 1 <= int(number) <= MAX_LIMIT:
        raise ValueError(f"must be NAME=N with a whole number from 1 to {MAX_LIMIT}")
    return NAMES[name], int(number)
