"""Detect a builder whose tree does not converge: each render undoes the one before. Pure."""

from typing import Final

from smithers.engine.facts import NodeKey
from smithers.errors import RenderFailed

MAX_IDLE_RENDERS: Final = 50  # renders without any progress between them


class Rest:
    """The number of renders since the run last made progress."""

    def __init__(self) -> None:
        self._idle_renders = 0
        self._stopped: set[NodeKey] = set()

    def count_render(self) -> None:
        """Count a call of the builder; raise RenderFailed after too many without progress."""
        self._idle_renders += 1
        if self._idle_renders > MAX_IDLE_RENDERS:
            raise RenderFailed("the tree does not converge: each render undoes the one before")

    def go_on(self) -> None:
        """Record progress: a node has settled, an attempt has failed, a loop or a Try has turned."""
        self._idle_renders = 0
        self._stopped.clear()

    def leave(self, key: NodeKey, *, is_settled: bool) -> None:
        """Record that the tree goes on after a node: it has settled, or its attempt was stopped because it left the tree.

        Many may be stopped one by one. One that is stopped again was mounted again, which may repeat for ever.
        """
        if is_settled:
            self.go_on()
        elif key not in self._stopped:
            self._stopped.add(key)
            self._idle_renders = 0
