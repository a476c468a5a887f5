"""How elements show themselves in a traceback or a debugger, in short."""

from typing import Any


def show_id(element: Any) -> str:
    """Return a `__repr__` of what has an id: `Task('a')`."""
    return f"{type(element).__name__}({element.id!r})"


def show_children(element: Any) -> str:
    """Return a `__repr__` of what is only its children: `Sequence(Task('a'), Timer('t'))`."""
    return f"{type(element).__name__}({', '.join(map(repr, element.children))})"
