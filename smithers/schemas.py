"""Check what people send against an author's JSON Schema, without the author's code: a run's input, a form's answer.

The schema is the author's, the value is anybody's: references are never fetched, patterns run on an engine that takes
linear time, and the amount of work is known before it begins. A schema that cannot be read here, and a check that would
delay everybody else, are left to the worker, which validates with the model itself.
"""

import json
from typing import Any, Final

import jsonschema_rs

from smithers.visits import Visits, weigh

MAX_ERRORS: Final = 20
MAX_MESSAGE_CHARS: Final = 300
# Compiling one takes a microsecond a character.
MAX_SCHEMA_CHARS: Final = 256 * 1024
# A visit takes some ten nanoseconds.
MAX_VISITS: Final = 20_000_000
# To list errors takes ten microseconds a visit: all are found at once, however few are wanted.
MAX_VISITS_TO_TELL: Final = 30_000
UNTOLD: Final = "It does not fit, and is too large for its errors to be listed."


class Validator:
    """A schema that values are checked against."""

    def __init__(self, compiled: jsonschema_rs.Validator, visits: Visits) -> None:
        self._compiled = compiled
        self._visits = visits

    def find_errors(self, value: Any) -> list[dict[str, Any]]:
        """Return why a value does not fit, as {path, message}: the first errors only; none if it is left to the worker."""
        weight, depth = weigh(value)
        visits = weight * self._visits.count(depth)
        if visits > MAX_VISITS or self._compiled.is_valid(value):
            return []
        if visits > MAX_VISITS_TO_TELL:
            return [{"path": [], "message": UNTOLD}]
        found = []
        for error, _ in zip(self._compiled.iter_errors(value), range(MAX_ERRORS), strict=False):
            path = [part if isinstance(part, int) else str(part) for part in error.instance_path]
            found.append({"path": path, "message": _short(error.message)})
        return found


def compile_schema(schema: str | None) -> Validator | None:
    """Make a validator; None if there is nothing to check, or if only the author's model can check it."""
    if schema is None or len(schema) > MAX_SCHEMA_CHARS:
        return None
    try:
        compiled = jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValueError:  # jsonschema_rs's ValidationError is one
        return None
    return Validator(compiled, Visits(json.loads(schema)))


def _short(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "…"
