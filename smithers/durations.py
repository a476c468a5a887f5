"""Durations as authors write them: seconds or a timedelta."""

from datetime import timedelta

from smithers.errors import InvalidTree

Duration = float | int | timedelta


def seconds(duration: Duration) -> float:
    """Return a duration in seconds; raise InvalidTree for one that is negative or has no end."""
    value = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not 0 <= value < float("inf"):
        raise InvalidTree(f"a duration must be finite and not negative, not {duration!r}")
    return value
