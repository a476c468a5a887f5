"""Notice a builder whose tree does not come to rest: each render undoes the one before. Pure."""

from typing import Final

from smithers.engine.facts import NodeKey
from smithers.errors import RenderFailed

MAX_IDLE_RENDERS: Final = 50  # with nothing that any of them has brought about


class Rest:
    """The renders since the run last came further."""

    def __init__(self) -> None:
        self._idle_renders = 0
        self._stopped: set[NodeKey] = set()

    def count_render(self) -> None:
        """Take in that the builder is called once more; raise RenderFailed where nothing comes of that."""
        self._idle_renders += 1
        if self._idle_renders > MAX_IDLE_RENDERS:
            raise RenderFailed("the tree does not come to rest: each render undoes the one before")

    def go_on(self) -> None:
        """Take in that the run has come further: a node has settled, an attempt has failed, a loop or a Try has turned."""
        self._idle_renders = 0
        self._stopped.clear()

    def leave(self, key: NodeKey, *, is_settled: bool) -> None:
        """Take in that the tree moves on past a node: it has settled, or its attempt was stopped because it left the tree.

        Many may be stopped one by one. One that is stopped again was mounted again, and that may go on for ever.
        """
        if is_settled:
            self.go_on()
        elif key not in self._stopped:
            self._stopped.add(key)
            self._idle_renders = 0
