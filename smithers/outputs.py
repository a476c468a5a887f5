"""Outputs as JSON text: made once when a task returns, read back when somebody asks.

What is stored is JSON in the strict sense: no NaN, no infinity, text that is text. Whatever does not fit is
InvalidOutput, and says where.
"""

from functools import lru_cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from smithers.errors import InvalidOutput

MAX_OUTPUT_BYTES: Final = 1_048_576


@lru_cache(maxsize=1024)
def adapter_for(model: Any) -> TypeAdapter[Any]:
    """Return pydantic's adapter of a type; making one is slow, and authors name the same few types again and again."""
    return TypeAdapter(model)


def find_adapter(model: Any) -> TypeAdapter[Any] | None:
    """Return the adapter of a hashable type that pydantic knows, None for anything else."""
    try:
        return adapter_for(model)
    except Exception:  # noqa: BLE001 - a foreign annotation may raise anything; then any JSON is accepted
        return None


def encode_output(value: Any, model: Any = None, *, max_bytes: int = MAX_OUTPUT_BYTES) -> str:
    """Return a task's result as JSON text; raise InvalidOutput where it does not fit `model` or is no JSON."""
    try:
        if model is not None:
            adapter = adapter_for(model)
            value = adapter.validate_python(value)
            text = adapter.dump_json(value)
        else:
            text = to_json(value, inf_nan_mode="constants")
        from_json(text, allow_inf_nan=False)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidOutput(
            f"the output does not fit {_name(model)}: {error.error_count()} errors", details=details
        ) from error
    except (ValueError, RecursionError) as error:  # pydantic's serialization errors are ValueErrors
        raise InvalidOutput(f"the output is no JSON: {str(error)[:500]}") from error
    if len(text) > max_bytes:
        raise InvalidOutput(
            f"the output has {len(text)} bytes, more than the {max_bytes} that are kept: store it elsewhere, and put out "
            "where it is",
            details={"bytes": len(text), "maxBytes": max_bytes},
        )
    return text.decode()


def decode_output(text: str, model: Any = None) -> Any:
    """Return an output as plain JSON values, or as `model`."""
    if model is None:
        return from_json(text)
    return adapter_for(model).validate_json(text)


def _name(model: Any) -> str:
    return getattr(model, "__name__", str(model))
