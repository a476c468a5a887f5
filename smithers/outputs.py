"""Outputs, inputs and states as JSON text: encoded once when a task returns, decoded when they are read.

Stored values are strict JSON: no NaN, no infinity, valid Unicode. Anything else is InvalidOutput, which says what and
where.
"""

from functools import lru_cache
from types import UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from smithers.errors import InvalidOutput
from smithers.texts import sound, text_of

MAX_OUTPUT_BYTES: Final = 1_048_576
MAX_QUICK_BYTES: Final = 65_536
MAX_MISFITS: Final = 20  # told of one value
SAID_MISFITS: Final = 3  # of these in a message
MAX_MISFIT_CHARS: Final = 200  # each

# by_alias, round_trip: by field names; by aliases; without computed fields.
_WAYS: Final = ((False, False), (True, False), (True, True))


@lru_cache(maxsize=1024)
def adapter_for(model: Any) -> TypeAdapter[Any]:
    """Return pydantic's adapter of a type; making one is slow, and authors use the same few types repeatedly."""
    return TypeAdapter(model)


def encode_output(
    value: Any, model: Any = None, *, what: str = "the output", max_bytes: int = MAX_OUTPUT_BYTES
) -> str:
    """Return a value as JSON text; raise InvalidOutput, which calls it `what`, if it does not fit `model` or is not JSON.

    The result can be read back: as JSON, and as `model`. A value that is far too large is not even encoded.
    """
    try:
        text = (
            _dump(value, what, max_bytes)
            if model is None
            else _dump_as(model, value, what, max_bytes)
        )
        _check_size(len(text), what, max_bytes)
        _refuse_constants(text, what)
    except ValidationError as error:
        wrong = f"{what} does not fit {name_of(model)}: {say_misfits(error)}"
        raise InvalidOutput(wrong, details=misfits_of(error)) from error
    except InvalidOutput:
        raise
    except Exception as error:  # authors' validators and serializers raise anything
        raise InvalidOutput(f"{what} is not JSON: {text_of(error)[:500]}") from error
    return text.decode()


class Weight(NamedTuple):
    """A lower bound of a value's size as JSON, in bytes, and whether it consists of plain values only."""

    size: int
    is_plain: bool
    iterator: type[Any] | None = None  # the first one found, which ended the weighing


def weigh(value: Any, limit: int) -> Weight:
    """Weigh a value by its texts and the number of its parts, up to `limit`; none of its code is called."""
    size, is_plain, left = 0, True, [value]
    while left and size <= limit:
        one = left.pop()
        kind = type(one)
        size += 1
        if kind is str:
            size += len(one)
        elif kind is int:
            size += one.bit_length() // 4
        elif kind is dict or kind is list or kind is tuple:
            size += len(one)
            if size <= limit:
                left += one
                left += one.values() if kind is dict else ()
        elif one is not None and kind is not bool and kind is not float:
            if _is_iterator(kind):
                return Weight(size, is_plain=False, iterator=kind)
            is_plain = False
    return Weight(size, is_plain)


def is_quick(value: Any, model: Any) -> bool:
    """Say whether validating a value is fast and runs none of the author's code."""
    if not is_plain(model):
        return False
    weight = weigh(value, MAX_QUICK_BYTES)
    return weight.is_plain and weight.size <= MAX_QUICK_BYTES


def is_plain(model: Any) -> bool:
    """Say whether a type is one of Python's own, or composed of such only."""
    if model is None or model is Any:
        return True
    if type(model) is type:
        return model.__module__ == "builtins"
    origin = get_origin(model)
    if origin is None:
        return False
    is_known = origin in (Union, UnionType) or is_plain(origin)
    return is_known and all(is_plain(part) for part in get_args(model))


def _is_iterator(kind: type[Any]) -> bool:
    """Say whether encoding a value of this type would exhaust it, possibly without end."""
    return hasattr(kind, "__next__")


def _refuse_iterator(kind: type[Any], what: str) -> None:
    if _is_iterator(kind):
        raise InvalidOutput(f"{what} is not JSON: a {kind.__name__}; make a list of its items")


def _refuse_constants(text: bytes, what: str) -> None:
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError as error:
        from_json(text)  # raises if the text is wrong in any other way
        raise InvalidOutput(f"{what} is not JSON: it contains NaN or an infinity") from error


def _check_size(size: int, what: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise InvalidOutput(
            f"{what} has {size} bytes or more, and at most {max_bytes} are kept: store it elsewhere, and pass on its place",
            details={"bytes": size, "maxBytes": max_bytes},
        )


def decode_output(text: str, model: Any = None) -> Any:
    """Return an output as plain JSON values, or as `model`."""
    if model is None:
        return from_json(text)
    return adapter_for(model).validator.validate_json(text)


def _dump(plain: Any, what: str, max_bytes: int) -> bytes:
    weight = weigh(plain, max_bytes)
    if weight.iterator is not None:
        _refuse_iterator(weight.iterator, what)
    _check_size(weight.size, what, max_bytes)
    return to_json(plain, inf_nan_mode="constants")


def _dump_as(model: Any, value: Any, what: str, max_bytes: int) -> bytes:
    """Encode a value with its model, in the first way in which the model can read it back."""
    _refuse_iterator(type(value), what)
    adapter = adapter_for(model)
    validator, serializer = adapter.validator, adapter.serializer
    value = validator.validate_python(value)
    for by_alias, round_trip in _WAYS:
        # Not dump_json: it silently writes NaN as null.
        plain = serializer.to_python(
            value, mode="json", by_alias=by_alias, round_trip=round_trip, warnings=False
        )
        text = _dump(plain, what, max_bytes)
        try:
            validator.validate_json(text)
        except ValidationError:
            if (by_alias, round_trip) == _WAYS[-1]:
                raise
            continue
        return text
    raise AssertionError("the last way returns or raises")


def misfits_of(error: ValidationError) -> list[dict[str, Any]]:
    """Return a validation error's places and messages, as sendable text and without the value."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {
            "loc": [part if isinstance(part, int) else sound(str(part)) for part in misfit["loc"]],
            "msg": sound(misfit["msg"]),
            "type": misfit["type"],
        }
        for misfit in found[:MAX_MISFITS]
    ]


def say_misfits(error: ValidationError) -> str:
    """Summarize a validation error in one line: the first places only, without the value."""
    found = misfits_of(error)[:SAID_MISFITS]
    said = [": ".join([*_path_of(misfit), misfit["msg"]])[:MAX_MISFIT_CHARS] for misfit in found]
    more = error.error_count() - len(said)
    return "; ".join([*said, f"and {more} more"] if more else said)


def _path_of(misfit: dict[str, Any]) -> list[str]:
    return [".".join(map(str, misfit["loc"]))] if misfit["loc"] else []


def name_of(model: Any) -> str:
    """Return a type's name."""
    return getattr(model, "__name__", str(model))
