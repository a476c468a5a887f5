"""Refuse a start whose input does not fit the workflow's input model, without the workflow's code."""

from typing import Any

from gateway.errors import InvalidRequest
from smithers.schemas import Validator


def check_input(validator: Validator | None, value: dict[str, Any]) -> None:
    """Raise InvalidRequest with `details.errors`, a list of {path, message}, if the input does not fit."""
    if validator is not None and (found := validator.find_errors(value)):
        text = "The input does not fit the workflow's input model."
        raise InvalidRequest(text, details={"errors": found})
