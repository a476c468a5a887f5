"""Durations as authors write them: seconds or a timedelta."""

from datetime import timedelta

Duration = float | int | timedelta


def seconds(duration: Duration) -> float:
    """Return a duration in seconds; raise ValueError for what is no span of time."""
    value = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not 0 <= value < float("inf"):
        raise ValueError(f"a duration is not negative and ends: {duration!r} is none")
    return value
