"""Durations as authors write them: seconds or a timedelta."""

from datetime import timedelta

from smithers.errors import InvalidTree

Duration = float | int | timedelta


def seconds(duration: object, where: str) -> float:
    """Return a duration in seconds; raise InvalidTree, which names `where`, for one that is negative or infinite.

    A string or a boolean is not a duration, although float() accepts it.
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        value = float(duration)
    else:
        raise InvalidTree(f"{where} takes seconds or a timedelta, not {duration!r:.200}")
    if not 0 <= value < float("inf"):
        raise InvalidTree(f"{where} must be finite and not negative, not {duration!r}")
    return value
