"""Give every leaf of a rendered tree its place: its key, its order, what it waits for.

Pure. A mounted tree lives until the next render; the schedule keeps its cursors on the places.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from smithers.engine.facts import Facts, LoopFact, NodeKey, place_in_time
from smithers.errors import DuplicateNodeId, InvalidTree
from smithers.ids import NODE_ID_PATTERN, LoopId, NodeId
from smithers.tree import (
    SCOPE_MARK,
    Branch,
    Element,
    Leaf,
    Loop,
    Parallel,
    Sequence,
    Task,
)

MAX_DEPTH: Final = 100
MAX_LEAVES: Final = 100_000

LoopPath = tuple[tuple[str, int], ...]  # (loop's written id, iteration), outermost first


@dataclass(eq=False, slots=True)
class LeafPlace:
    """A leaf of the mounted tree."""

    key: NodeKey
    element: Leaf
    position: int  # depth first, left to right: who goes first when not all may
    parent: "GroupPlace | None" = None
    is_reached: bool = False  # everything before it is settled
    is_open: bool = (
        False  # reached, what it waits for is there, and its groups have room: may begin
    )
    is_closed: bool = False
    unmet_count: int = 0


@dataclass(eq=False, slots=True)
class GroupPlace:
    """A group of the mounted tree. What stands in order is reached one by one, what does not at once."""

    children: "list[LeafPlace | GroupPlace]"
    is_ordered: bool = True
    limit: int | None = None  # how many children may be under way
    parent: "GroupPlace | None" = None
    loop: "LoopPlace | None" = None  # this group is that loop's body
    next_index: int = 0
    unclosed_count: int = 0  # children that are reached and not closed
    open_count: int = 0  # open leaves at any depth
    busy_count: int = 0  # children with open leaves; counted where there is a limit
    # A heap of the children that there is no room for yet, by a leaf's position; and of this child, the leaves.
    held: "list[tuple[int, LeafPlace | GroupPlace]]" = field(default_factory=list)
    held_here: list[LeafPlace] = field(default_factory=list)
    is_closed: bool = False

    def take_held_here(self) -> list[LeafPlace]:
        """Hand over the leaves in this child that wait for room in its parent."""
        held, self.held_here = self.held_here, []
        return held


@dataclass(eq=False, slots=True)
class LoopPlace:
    """A loop of the mounted tree, in its current iteration."""

    loop_id: LoopId
    element: Loop
    fact: LoopFact


@dataclass(slots=True)
class Mounted:
    """A rendered tree with a place for everything."""

    root: GroupPlace
    tree: Element
    leaves: dict[NodeKey, LeafPlace] = field(default_factory=dict)
    unchosen: dict[NodeKey, Leaf] = field(default_factory=dict)  # leaves of branches not taken
    keys: dict[str, NodeKey] = field(default_factory=dict)  # written id → key in this tree
    loop_paths: dict[str, tuple[str, ...]] = field(default_factory=dict)  # written id → its loops
    loops: dict[LoopId, LoopPlace] = field(default_factory=dict)

    def dependencies(self, leaf: Leaf, facts: Facts) -> list[NodeKey | str]:
        """List what a leaf waits for: keys, or written ids that are neither mounted nor known."""
        wanted = [*leaf.depends_on]
        if isinstance(leaf, Task):
            wanted += leaf.needs.values()
        return [self.resolve(node_id, facts) for node_id in wanted]

    def resolve(self, node_id: str, facts: Facts) -> NodeKey | str:
        """Find the node that an author means: the mounted one, else the newest known, else only its id."""
        if (key := self.keys.get(node_id)) is not None:
            return key
        known = facts.keys_of(node_id)
        return max(known, key=place_in_time) if known else node_id


def scoped(written: str, path: LoopPath) -> str:
    """Add a loops' path to an id, as it stands on the wire: `x@@outer=0,middle=1`."""
    if not path:
        return written
    return written + SCOPE_MARK + ",".join(f"{loop}={iteration}" for loop, iteration in path)


def key_in(written: str, path: LoopPath) -> NodeKey:
    """Return a leaf's key within these loops: the innermost gives the iteration, the others the path."""
    if not path:
        return NodeKey(NodeId(written), 0)
    return NodeKey(NodeId(scoped(written, path[:-1])), path[-1][1])


def mount(tree: Element, loops: Mapping[LoopId, LoopFact]) -> Mounted:
    """Place a whole tree; raise DuplicateNodeId, or InvalidTree for one too deep or too large."""
    root = GroupPlace(children=[])
    mounted = Mounted(root=root, tree=tree)
    _Mounting(mounted, loops).place(tree, root, (), 0)
    return mounted


@dataclass(slots=True)
class _Mounting:
    """One walk over one tree."""

    mounted: Mounted
    loops: Mapping[LoopId, LoopFact]
    is_chosen: bool = True

    def place(self, element: Element, parent: GroupPlace, path: LoopPath, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidTree(f"the tree is nested deeper than {MAX_DEPTH}")
        match element:
            case Sequence():
                self._place_group(element.children, GroupPlace([]), parent, path, depth)
            case Parallel():
                group = GroupPlace([], is_ordered=False, limit=element.max_concurrency)
                self._place_group(element.children, group, parent, path, depth)
            case Branch():
                taken, other = element.then, element.otherwise
                if not element.when:
                    taken, other = other, taken
                self._place_group(taken, GroupPlace([]), parent, path, depth)
                self._place_unchosen(other, path, depth)
            case Loop():
                self._place_loop(element, parent, path, depth)
            case _:
                self._place_leaf(element, parent, path)

    def _place_group(
        self,
        children: tuple[Element, ...],
        group: GroupPlace,
        parent: GroupPlace,
        path: LoopPath,
        depth: int,
    ) -> None:
        group.parent = parent
        if self.is_chosen:
            parent.children.append(group)
        for child in children:
            self.place(child, group, path, depth + 1)

    def _place_unchosen(self, children: tuple[Element, ...], path: LoopPath, depth: int) -> None:
        before, self.is_chosen = self.is_chosen, False
        self._place_group(children, GroupPlace([]), GroupPlace([]), path, depth)
        self.is_chosen = before

    def _place_loop(self, element: Loop, parent: GroupPlace, path: LoopPath, depth: int) -> None:
        loop_id = LoopId(scoped(element.id, path))
        if loop_id in self.mounted.loops:
            raise DuplicateNodeId(f"two loops have the id {element.id!r}")
        place = LoopPlace(loop_id, element, self.loops.get(loop_id, LoopFact()))
        self.mounted.loops[loop_id] = place
        inner = (*path, (element.id, place.fact.iteration))
        self._place_group(element.children, GroupPlace([], loop=place), parent, inner, depth)

    def _place_leaf(self, leaf: Leaf, parent: GroupPlace, path: LoopPath) -> None:
        mounted = self.mounted
        if leaf.id in mounted.keys:
            raise DuplicateNodeId(f"two nodes of one tree have the id {leaf.id!r}")
        if len(mounted.keys) >= MAX_LEAVES:
            raise InvalidTree(f"the tree has more than {MAX_LEAVES} leaves")
        key = key_in(leaf.id, path)
        if NODE_ID_PATTERN.fullmatch(key.node_id) is None:
            raise InvalidTree(f"the id {key.node_id!r} is too long with its loops' path")
        mounted.keys[leaf.id] = key
        mounted.loop_paths[leaf.id] = tuple(loop for loop, _ in path)
        if self.is_chosen:
            place = LeafPlace(key, leaf, len(mounted.leaves), parent)
            mounted.leaves[key] = place
            parent.children.append(place)
        else:
            mounted.unchosen[key] = leaf
