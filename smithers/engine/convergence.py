"""Fail a run whose builder never comes to rest: each of its trees undoes what the one before did. Pure."""

from typing import Final

from smithers.engine.facts import NodeKey
from smithers.errors import RenderFailed

MAX_IDLE_RENDERS: Final = 50  # renders without any progress between them


class Convergence:
    """Counts the renders since the run last made progress, and refuses the one that is too many."""

    def __init__(self) -> None:
        self._idle_renders = 0
        self._stopped: set[NodeKey] = set()  # since the last progress

    def count_render(self) -> None:
        """Count a call of the builder; raise RenderFailed after too many without progress."""
        self._idle_renders += 1
        if self._idle_renders > MAX_IDLE_RENDERS:
            raise RenderFailed("the tree does not converge: each render undoes the one before")

    def note_progress(self) -> None:
        """Start counting anew: a node has settled, an attempt has failed, a loop or a Try has moved on."""
        self._idle_renders = 0
        self._stopped.clear()

    def note_end(self, key: NodeKey, *, is_settled: bool) -> None:
        """Record that a node is out of the tree's way: it has settled, or its attempt was stopped after it left the tree.

        A stop counts as progress once for each node: many nodes may be stopped one by one, but a node that is stopped a
        second time was mounted again in between, and that may repeat for ever.
        """
        if is_settled:
            self.note_progress()
        elif key not in self._stopped:
            self._stopped.add(key)
            self._idle_renders = 0
