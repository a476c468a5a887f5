"""Check what people send against an author's JSON Schema, without the author's code: a run's input, a form's answer.

The schema is the author's, the value is anybody's: references are never fetched, and patterns run on an engine that
takes linear time. What such an engine cannot read is left to the worker, which validates with the model itself.
"""

from typing import Any, Final

import jsonschema_rs

from gateway.errors import InvalidRequest

MAX_ERRORS: Final = 20
MAX_MESSAGE_CHARS: Final = 300

Validator = jsonschema_rs.Validator


def compile_schema(schema: str | None) -> Validator | None:
    """Make a validator; None where any object will do, or only the model itself can tell."""
    if schema is None:
        return None
    try:
        return jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValueError:  # a ValidationError of theirs is one
        return None


def check_input(validator: Validator | None, value: dict[str, Any]) -> None:
    """Raise InvalidRequest with `details.errors`, a list of {path, message}, where the input does not fit."""
    check_value(validator, value, "The input does not fit the workflow's input model.")


def check_value(validator: Validator | None, value: Any, text: str) -> None:
    """Raise InvalidRequest with this text and `details.errors`, a list of {path, message}, where a value does not fit."""
    if validator is None or validator.is_valid(value):
        return
    found = []
    for error in validator.iter_errors(value):
        path = [part if isinstance(part, int) else str(part) for part in error.instance_path]
        found.append({"path": path, "message": _short(error.message)})
        if len(found) == MAX_ERRORS:
            break
    raise InvalidRequest(text, details={"errors": found})


def _short(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "…"
