"""Say which leaves of a mounted tree are open: everything before them is settled, and what they wait for is there.

Pure, and incremental: settling a node costs the places above it and those that waited for it, whatever the size of the
tree. Building a schedule from all the facts at once gives the same open leaves as settling them one by one; a property
test holds the two together.
"""

from smithers.engine.facts import Facts, NodeKey
from smithers.engine.mount import GroupPlace, LeafPlace, LoopPlace, Mounted


class Schedule:
    """The cursors on one mounted tree."""

    def __init__(self, mounted: Mounted, facts: Facts) -> None:
        """Open what is open by these facts."""
        self.mounted = mounted
        self._facts = facts
        self._waiting_on: dict[NodeKey | str, list[LeafPlace]] = {}
        self._opened: list[LeafPlace] = []
        self._ended_loops: list[LoopPlace] = []
        self._advance(mounted.root)

    @property
    def is_done(self) -> bool:
        """Everything in the tree is settled."""
        return self.mounted.root.is_closed

    @property
    def has_news(self) -> bool:
        """Something was opened or has ended that nobody has taken yet."""
        return bool(self._opened or self._ended_loops)

    def take_opened(self) -> list[LeafPlace]:
        """Hand over the leaves that have become open since the last call, in tree order."""
        opened, self._opened = self._opened, []
        opened.sort(key=lambda leaf: leaf.position)
        return opened

    def take_ended_loops(self) -> list[LoopPlace]:
        """Hand over the loops whose iteration has ended since the last call: each needs a render to go on."""
        ended, self._ended_loops = self._ended_loops, []
        return ended

    def blocked(self) -> list[tuple[NodeKey, list[str]]]:
        """List the leaves whose turn has come and that still wait for others, with the others' names."""
        waits: dict[NodeKey, list[str]] = {}
        for wanted, leaves in self._waiting_on.items():
            name = wanted if isinstance(wanted, str) else wanted.node_id
            for leaf in leaves:
                waits.setdefault(leaf.key, []).append(name)
        return sorted(waits.items())

    def settle(self, key: NodeKey) -> None:
        """Take in that a node is settled now; the facts say so already."""
        for waiting in self._waiting_on.pop(key, ()):
            waiting.unmet_count -= 1
            if waiting.unmet_count == 0:
                self._opened.append(waiting)
        leaf = self.mounted.leaves.get(key)
        if leaf is not None and leaf.is_open and not leaf.is_closed:
            leaf.is_closed = True
            self._child_closed(leaf)

    def _child_closed(self, child: LeafPlace | GroupPlace) -> None:
        parent = child.parent
        while parent is not None:
            parent.open_count -= 1
            if not self._advance(parent):
                return
            parent = parent.parent

    def _advance(self, group: GroupPlace) -> bool:
        """Open as many children as the group's limit lets; say whether the whole group has closed."""
        limit = group.limit
        children = group.children
        while group.next_index < len(children) and (limit is None or group.open_count < limit):
            child = children[group.next_index]
            group.next_index += 1
            is_closed = (
                self._open_leaf(child) if isinstance(child, LeafPlace) else self._advance(child)
            )
            if not is_closed:
                group.open_count += 1
        if group.open_count or group.next_index < len(children):
            return False
        if group.loop is not None and not group.loop.fact.is_done:
            # Stays open: whether another iteration follows is said at a render.
            self._ended_loops.append(group.loop)
            return False
        group.is_closed = True
        return True

    def _open_leaf(self, leaf: LeafPlace) -> bool:
        leaf.is_open = True
        if self._is_settled(leaf.key):
            leaf.is_closed = True
            return True
        unmet = [
            wanted
            for wanted in self.mounted.dependencies(leaf.element, self._facts)
            if isinstance(wanted, str) or not self._is_settled(wanted)
        ]
        leaf.unmet_count = len(unmet)
        for wanted in unmet:
            self._waiting_on.setdefault(wanted, []).append(leaf)
        if not unmet:
            self._opened.append(leaf)
        return False

    def _is_settled(self, key: NodeKey) -> bool:
        fact = self._facts.nodes.get(key)
        return fact is not None and fact.state.is_settled
