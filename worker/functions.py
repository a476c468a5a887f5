"""Inspect an author's task and its function before anything is called."""

import inspect
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import Any, Final

from smithers.outputs import adapter_for
from smithers.tree import Task

# Where a function keeps its annotations that were written as texts, evaluated once: it takes longer than the rest of an
# attempt's beginning. In a table they would keep it for ever: they lead back to it, by their methods and its module.
_EVALUATED: Final = "__smithers_annotations__"


def is_async(do: Any) -> bool:
    """Say whether to await it rather than call it in a thread."""
    do = _unwrapped(do)
    return inspect.iscoroutinefunction(do) or inspect.iscoroutinefunction(type(do).__call__)


def model_of(task: Task[Any]) -> Any:
    """Return the model that a task's output must fit: its `output`, else its function's return annotation; None: any JSON."""
    return task.output or _annotated(_unwrapped(task.do), "return")


def taken_model(task: Task[Any], argument: str) -> Any:
    """Return the annotation of an argument of a task's function, or of its prompt's; None: any JSON."""
    do = _unwrapped(task.do if task.ask is None else task.ask.prompt)
    # The annotations of an object are those of its attributes.
    is_object = not (isinstance(do, type) or inspect.isroutine(do))
    return _annotated(type(do).__call__ if is_object else do, argument)


def _unwrapped(do: Any) -> Any:
    while isinstance(do, partial):
        do = do.func
    return do


def _annotated(do: Any, name: str) -> Any:
    """Return the annotation of a function's argument, or of its `return`, if pydantic can validate it."""
    try:
        annotation = getattr(do, "__annotations__", {}).get(name)
        if isinstance(annotation, str):
            annotation = _evaluated(do).get(name)
        if annotation is not None:
            adapter_for(annotation)
    except BaseException:  # noqa: BLE001 - an annotation that cannot be evaluated, or that pydantic does not know, is none
        return None
    return annotation


def _evaluated(do: Any) -> Mapping[str, Any]:
    if not isinstance(do, FunctionType):
        return inspect.get_annotations(do, eval_str=True)
    kept = vars(do)
    if _EVALUATED not in kept:
        kept[_EVALUATED] = inspect.get_annotations(do, eval_str=True)
    found: Mapping[str, Any] = kept[_EVALUATED]
    return found
