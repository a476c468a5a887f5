"""What an author's task and its function say of themselves before anything is called."""

import inspect
from functools import partial
from typing import Any

from smithers.outputs import adapter_for
from smithers.tree import Task


def is_async(do: Any) -> bool:
    """Say whether it is to be awaited rather than called in a thread."""
    while isinstance(do, partial):
        do = do.func
    return inspect.iscoroutinefunction(do) or inspect.iscoroutinefunction(type(do).__call__)


def model_of(task: Task[Any]) -> Any:
    """Return the model that a task's output must fit: its `output`, else what its function returns; None: any JSON."""
    return task.output or _returned_model(task.do)


def _returned_model(do: Any) -> Any:
    """Return what a body is annotated to return, where pydantic can check it."""
    while isinstance(do, partial):
        do = do.func
    try:
        annotation = getattr(do, "__annotations__", {}).get("return")
        if isinstance(annotation, str):
            annotation = inspect.get_annotations(do, eval_str=True).get("return")
        if annotation is not None:
            adapter_for(annotation)
    except BaseException:  # noqa: BLE001 - what names nothing that is there, or is foreign to pydantic, says nothing
        return None
    return annotation
