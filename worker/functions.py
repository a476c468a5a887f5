"""What an author's function says of itself before it is called."""

import inspect
from functools import partial
from typing import Any

from smithers.outputs import find_adapter


def is_async(do: Any) -> bool:
    """Say whether it is to be awaited rather than called in a thread."""
    while isinstance(do, partial):
        do = do.func
    return inspect.iscoroutinefunction(do) or inspect.iscoroutinefunction(type(do).__call__)


def returned_model(do: Any) -> Any:
    """Return what a body is annotated to return, where pydantic can check it."""
    while isinstance(do, partial):
        do = do.func
    annotation = getattr(do, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        try:
            annotation = inspect.get_annotations(do, eval_str=True).get("return")
        except Exception:  # noqa: BLE001 - an annotation that names what is not there says nothing
            return None
    if annotation is None or find_adapter(annotation) is None:
        return None
    return annotation
