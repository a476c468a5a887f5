"""How elements show themselves in a traceback or a debugger, in short."""

from typing import Any


def show_id(element: Any) -> str:
    """Return a `__repr__` for an element with an id: `Task('a')`."""
    return f"{type(element).__name__}({element.id!r})"


def show_children(element: Any) -> str:
    """Return a `__repr__` for an element that is only its children: `Sequence(Task('a'), Timer('t'))`."""
    return f"{type(element).__name__}({', '.join(map(repr, element.children))})"
