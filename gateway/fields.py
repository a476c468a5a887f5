"""Declare the fields of requests once: the declaration validates the request, and describes it in /openapi.json.

A handler declares what it takes by its parameters: `body: StartBody`, `query: RunsQuery`, `headers: EventsHeaders` (see
routing). Names are camelCase in the API; undeclared fields are ignored. A NUL is refused in every text that
becomes a value in SQL: Postgres cannot store it.
"""

import json
import re
from functools import cache
from typing import Annotated, Any, Final, TypeVar

from multidict import MultiMapping
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from gateway.errors import InvalidRequest
from smithers.ids import SERVERS_OWN

MAX_INTEGER: Final = 2**31 - 1
MAX_BIGINT: Final = 2**63 - 1
MAX_ERRORS: Final = 20
NO_NUL: Final = r"^[^\x00]*$"
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)


def _read_digits(text: Any) -> int:
    # No spaces, plus signs, exponents, underscores or non-ASCII digits.
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise ValueError("a whole number has 1 to 19 digits, and may have a minus sign")
    return int(text)


def _read_whole(value: Any) -> Any:
    # JSON has one kind of number, and to JSON Schema 1.0 is an integer.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse_system(name: str) -> str:
    if name.startswith(SERVERS_OWN):
        raise ValueError(f"names that begin with {SERVERS_OWN!r} are reserved for the server")
    return name


def _refuse_nul(value: Any) -> Any:
    # In JSON text, where each backslash of a value is doubled.
    if "\\u0000" in json.dumps(value).replace("\\\\", ""):
        raise ValueError("it must not contain NUL")
    return value


Name = Annotated[str, StringConstraints(max_length=500, pattern=NO_NUL)]
Person = Annotated[Name, AfterValidator(_refuse_system)]
Text = Annotated[str, StringConstraints(max_length=10_000, pattern=NO_NUL)]
# The parser of a whole number. If null is allowed it follows the bounds: otherwise pydantic does not describe them.
WHOLE: Final = BeforeValidator(_read_whole)  # in a body
DIGITS: Final = BeforeValidator(_read_digits)  # in a query or a header
Digits = Annotated[int, DIGITS]
JsonValue = Annotated[Any, AfterValidator(_refuse_nul)]  # values that SQL inspects
Iteration = Annotated[int, Field(ge=0, le=MAX_INTEGER), WHOLE]
Cursor = Annotated[str, StringConstraints(max_length=2_000, pattern="^[A-Za-z0-9_-]+$")]


class Fields(BaseModel):
    """Fields of a request."""

    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, strict=True, hide_input_in_errors=True
    )


class Body(Fields):
    """Fields of a body, which is a JSON object."""


class Query(Fields):
    """Parameters of a query; each may be given once, and one without a value counts as omitted."""


class Headers(Fields):
    """Headers; each may be given once. Their names are aliases: `Field(alias="Last-Event-ID")`."""


class AnyBody(Body):
    """An object whose contents are ignored."""


Kind = TypeVar("Kind", bound=Fields)


def read_fields(kind: type[Kind], values: dict[str, Any]) -> Kind:
    """Validate values by their declaration; raises InvalidRequest with `details.errors`, a list of {path, message}."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = [
            {"path": list(each["loc"]), "message": _message_of(each)}
            for each in error.errors(include_url=False, include_context=False, include_input=False)[
                :MAX_ERRORS
            ]
        ]
        first = found[0]
        name = ".".join(str(part) for part in first["path"])
        raise InvalidRequest(f"{name}: {first['message']}", details={"errors": found}) from error


def _message_of(error: ErrorDetails) -> str:
    """Return a validation error's message, with no word of Python's or pydantic's."""
    if error["type"] in {"dict_type", "model_type"}:
        return "Input should be an object"
    return error["msg"].removeprefix("Value error, ")


@cache
def _names_of(kind: type[Fields]) -> tuple[str, ...]:
    return tuple(str(field.alias) for field in kind.model_fields.values())


def read_each_once(kind: type[Kind], given: MultiMapping[str]) -> Kind:
    """Validate a query's parameters or a request's headers; raises InvalidRequest."""
    values = {}
    for name in _names_of(kind):
        found = given.getall(name, ())
        if len(found) > 1:
            raise InvalidRequest(f"{name} may be given only once.")
        if found and (found[0] or not issubclass(kind, Query)):
            values[name] = found[0]
    return read_fields(kind, values) if values else _read_none(kind)


@cache
def _read_none(kind: type[Kind]) -> Kind:
    return read_fields(kind, {})  # one for all requests: they are frozen
