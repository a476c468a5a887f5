"""Give every leaf of a rendered tree its place: its key, its order, its dependencies.

Pure. A mounted tree lives until the next render; the schedule keeps its cursors on the places.
"""

from dataclasses import dataclass, field
from enum import Enum
from operator import itemgetter
from typing import Final, NamedTuple

from smithers.engine.facts import Facts, LoopFact, NodeKey, TryFact, place_in_time
from smithers.errors import DuplicateNodeId, InvalidTree
from smithers.ids import NODE_ID_PATTERN, LoopId, NodeId, TryId
from smithers.states import NodeState, TryPhase
from smithers.tree import (
    SCOPE_MARK,
    Branch,
    Budget,
    Element,
    Leaf,
    Loop,
    Parallel,
    Saga,
    Sequence,
    Task,
    Try,
)
from smithers.tree.groups import LEAVES

MAX_DEPTH: Final = 100
MAX_LEAVES: Final = 100_000


class Fate(Enum):
    """What happens to the nodes at a place."""

    LIVE = "live"
    LATER = "later"  # whether its turn comes is not known yet
    UNCHOSEN = "unchosen"  # the other branch was taken
    DEAD = "dead"  # its Try has left this part: running nodes are stopped
    STOPPED = "stopped"  # the run is ending


class TryPart(Enum):
    """The role of a part of a Try or a Saga."""

    BODY = "body"
    CATCH = "catch"
    END = "end"  # finally, and a saga's undoing


_CLEANING: Final = frozenset({TryPhase.AFTER, TryPhase.CAUGHT, TryPhase.FAILED, TryPhase.UNDO})

# By phase: the fates of a Try's body, catch and finally, and of a Saga's actions and undoing.
_TRY_FATES: Final = {
    TryPhase.BODY: (Fate.LIVE, Fate.LATER, Fate.LATER),
    TryPhase.CATCH: (Fate.DEAD, Fate.LIVE, Fate.LATER),
    TryPhase.AFTER: (Fate.LIVE, Fate.DEAD, Fate.LIVE),
    TryPhase.CAUGHT: (Fate.DEAD, Fate.LIVE, Fate.LIVE),
    TryPhase.FAILED: (Fate.DEAD, Fate.DEAD, Fate.LIVE),
    TryPhase.RAISED: (Fate.DEAD, Fate.DEAD, Fate.LIVE),
    TryPhase.UNDO: (Fate.DEAD, Fate.DEAD, Fate.LIVE),  # it was a Saga before an edit
    TryPhase.BROKEN: (Fate.DEAD, Fate.DEAD, Fate.LIVE),
}
_SAGA_FATES: Final = dict.fromkeys(TryPhase, (Fate.DEAD, Fate.LIVE)) | {
    TryPhase.BODY: (Fate.LIVE, Fate.LATER),
    TryPhase.AFTER: (Fate.LIVE, Fate.DEAD),
}

LoopPath = tuple[tuple[str, int], ...]  # (loop's written id, iteration), outermost first
_LOOP_OF: Final = itemgetter(0)


@dataclass(eq=False, slots=True)
class LeafPlace:
    """A leaf of the mounted tree."""

    key: NodeKey
    element: Leaf
    position: int  # depth first, left to right: who goes first when not all may
    parent: "GroupPlace | None" = None
    is_reached: bool = False  # everything before it is settled
    # Reached, its dependencies are settled, and its groups have room: it may begin.
    is_open: bool = False
    is_closed: bool = False
    unmet_count: int = 0  # its dependencies that are not settled


@dataclass(eq=False, slots=True)
class GroupPlace:
    """A group of the mounted tree. Ordered children are reached one by one, others at once."""

    children: "list[LeafPlace | GroupPlace]"
    is_ordered: bool = True
    limit: int | None = None  # how many children may have open leaves
    parent: "GroupPlace | None" = None
    loop: "LoopPlace | None" = None  # this group is that loop's body
    try_place: "TryPlace | None" = None  # this group is that Try, whose parts are its children
    part: "Part | None" = None  # this group is that part of a Try
    next_index: int = 0
    unclosed_count: int = 0  # children that are reached and not closed
    open_count: int = 0  # open leaves at any depth
    busy_count: int = 0  # children with open leaves
    # A heap of children that wait for room in this group, each by the position of a leaf in it.
    held: "list[tuple[int, LeafPlace | GroupPlace]]" = field(default_factory=list)
    held_here: list[LeafPlace] = field(default_factory=list)  # leaves of it, held by one around it
    is_closed: bool = False

    def take_held_here(self) -> list[LeafPlace]:
        """Remove and return the leaves in this group that wait for it to get room in the group around it."""
        held, self.held_here = self.held_here, []
        return held


@dataclass(eq=False, slots=True)
class LoopPlace:
    """A loop of the mounted tree, in its current iteration."""

    loop_id: LoopId
    element: Loop
    fact: LoopFact
    group: GroupPlace


@dataclass(eq=False, slots=True)
class TryPlace:
    """A Try or a Saga of the mounted tree, in its current phase."""

    try_id: TryId
    element: Try | Saga
    fact: TryFact
    group: GroupPlace

    @property
    def has_cleanup(self) -> bool:
        """Whether it has a finally, or steps to undo."""
        if isinstance(self.element, Try):
            return bool(self.element.finally_)
        return any(step.undo for step in self.element.steps)


class Part(NamedTuple):
    """A part of a Try or a Saga, and whose."""

    place: TryPlace
    name: TryPart


@dataclass(slots=True)
class Mounted:
    """A rendered tree with a place for everything."""

    root: GroupPlace
    tree: Sequence
    leaves: dict[NodeKey, LeafPlace] = field(default_factory=dict)
    unchosen: dict[NodeKey, Leaf] = field(default_factory=dict)  # leaves of branches not taken
    keys: dict[str, NodeKey] = field(default_factory=dict)  # written id → key in this tree
    loop_paths: dict[str, tuple[str, ...]] = field(default_factory=dict)  # written id → its loops
    loops: dict[LoopId, LoopPlace] = field(default_factory=dict)
    tries: dict[TryId, TryPlace] = field(default_factory=dict)
    budget: LeafPlace | None = None  # where the run has one
    # Running leaves that must be stopped: what follows them waits until they are.
    dying: dict[NodeKey, LeafPlace] = field(default_factory=dict)
    stopped: dict[NodeKey, Leaf] = field(default_factory=dict)  # leaves of a run that is ending

    def has(self, key: NodeKey) -> bool:
        """Say whether a node has a place in the tree, whatever its fate."""
        return (
            key in self.leaves or key in self.unchosen or key in self.dying or key in self.stopped
        )

    def find_element(self, key: NodeKey) -> Leaf | None:
        """Find the author's element for a node with a place in the tree, whatever its fate."""
        place = self.leaves.get(key) or self.dying.get(key)
        return self.unchosen.get(key) or self.stopped.get(key) if place is None else place.element

    def dependencies(self, leaf: Leaf, facts: Facts) -> list[NodeKey | str]:
        """List a leaf's dependencies: keys, or written ids that are neither mounted nor known."""
        wanted = [*leaf.depends_on]
        if isinstance(leaf, Task):
            wanted += leaf.needs.values()
        return [self.resolve(node_id, facts) for node_id in wanted]

    def resolve(self, node_id: str, facts: Facts) -> NodeKey | str:
        """Resolve an id that an author wrote: the mounted node, else the newest known, else only the id."""
        if (key := self.keys.get(node_id)) is not None:
            return key
        known = facts.keys_of(node_id)
        return max(known, key=place_in_time) if known else node_id


def is_cleaning(fact: TryFact) -> bool:
    """Say whether a Try is cleaning up, which goes on even where everything around it is stopped."""
    return not fact.is_done and fact.phase in _CLEANING


def scoped(written: str, path: LoopPath) -> str:
    """Add a loops' path to an id, as in the API: `x@@outer=0,middle=1`."""
    if not path:
        return written
    return written + SCOPE_MARK + ",".join(f"{loop}={iteration}" for loop, iteration in path)


def key_in(written: str, path: LoopPath) -> NodeKey:
    """Return a leaf's key within these loops: the innermost gives the iteration, the others the path."""
    if not path:
        return NodeKey(NodeId(written), 0)
    return NodeKey(NodeId(scoped(written, path[:-1])), path[-1][1])


def mount(
    tree: Sequence, facts: Facts, *, budget: Budget | None = None, is_stopped: bool = False
) -> Mounted:
    """Place a whole tree; raise DuplicateNodeId, or InvalidTree for one too deep or too large.

    `budget`: the run's, which is outside the tree. `is_stopped`: the run is ending, and only clean-up may go on.
    """
    mounted = Mounted(root=GroupPlace([]), tree=tree)
    fate = Fate.STOPPED if is_stopped else Fate.LIVE
    mounting = _Mounting(mounted, facts, fate)
    for child in tree.children:
        mounting.place(child, mounted.root, (), 1)
    if budget is not None:
        mounting.place_budget(budget)
    return mounted


@dataclass(slots=True)
class _Mounting:
    """One walk over one tree."""

    mounted: Mounted
    facts: Facts
    fate: Fate
    try_names: set[str] = field(default_factory=set)
    order: list[NodeKey] = field(default_factory=list)  # all leaves, in tree order

    def place(self, element: Element, parent: GroupPlace, path: LoopPath, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidTree(f"the tree is nested deeper than {MAX_DEPTH}")
        if isinstance(element, LEAVES):  # first: most are
            self._place_leaf(element, parent, path)
            return
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
            case Try() | Saga():
                self._place_try(element, parent, path, depth)
            case Budget():
                raise AssertionError("a budget stands beside the tree")

    def place_budget(self, budget: Budget) -> None:
        """Place a budget outside any order: nothing waits for it, and each grant is an iteration of it."""
        mounted = self.mounted
        if budget.id in mounted.keys or budget.id in self.try_names:
            raise DuplicateNodeId(f"a node of the tree has the budget's id {budget.id!r}")
        known = self.facts.keys_of(budget.id)
        granted = sum(self._state(key) is NodeState.FINISHED for key in known)
        key = mounted.keys[budget.id] = NodeKey(NodeId(budget.id), granted)
        mounted.loop_paths[budget.id] = ()
        mounted.budget = LeafPlace(key, budget, len(mounted.keys), mounted.root)
        if self.fate is Fate.LIVE:
            mounted.leaves[key] = mounted.budget
        else:
            mounted.stopped[key] = budget

    def _place_group(
        self,
        children: tuple[Element, ...],
        group: GroupPlace,
        parent: GroupPlace,
        path: LoopPath,
        depth: int,
    ) -> None:
        group.parent = parent
        parent.children.append(group)
        for child in children:
            self.place(child, group, path, depth + 1)

    def _place_unchosen(self, children: tuple[Element, ...], path: LoopPath, depth: int) -> None:
        before = self.fate
        self.fate = before if before in (Fate.LATER, Fate.STOPPED) else Fate.UNCHOSEN
        self._place_group(children, GroupPlace([]), GroupPlace([]), path, depth)
        self.fate = before

    def _place_loop(self, element: Loop, parent: GroupPlace, path: LoopPath, depth: int) -> None:
        loop_id = LoopId(scoped(element.id, path))
        if loop_id in self.mounted.loops:
            raise DuplicateNodeId(f"two loops have the id {element.id!r}")
        group = GroupPlace([])
        place = LoopPlace(loop_id, element, self.facts.loops.get(loop_id, LoopFact()), group)
        if self.fate is Fate.LIVE:  # else no iteration follows
            group.loop = place
        self.mounted.loops[loop_id] = place
        inner = (*path, (element.id, place.fact.iteration))
        self._place_group(element.children, group, parent, inner, depth)

    def _place_try(
        self, element: Try | Saga, parent: GroupPlace, path: LoopPath, depth: int
    ) -> None:
        mounted, before = self.mounted, self.fate
        if element.id in mounted.keys or element.id in self.try_names:
            raise DuplicateNodeId(f"two nodes of one tree have the id {element.id!r}")
        self.try_names.add(element.id)
        try_id = TryId(scoped(element.id, path))
        fact = self.facts.tries.get(try_id, TryFact())
        place = TryPlace(try_id, element, fact, GroupPlace([], parent=parent))
        mounted.tries[try_id] = place
        mounted.loop_paths[element.id] = tuple(map(_LOOP_OF, path))
        parent.children.append(place.group)
        if before is Fate.LIVE or (before in (Fate.DEAD, Fate.STOPPED) and is_cleaning(place.fact)):
            place.group.try_place = place
        if isinstance(element, Try):
            body, catch, end = _TRY_FATES[fact.phase]
            self._place_part(place, TryPart.BODY, element.body, path, depth, before, body)
            self._place_part(place, TryPart.CATCH, element.catch, path, depth, before, catch)
            self._place_part(place, TryPart.END, element.finally_, path, depth, before, end)
        else:
            self._place_steps(place, element, path, depth, before)
        self.fate = before

    def _place_steps(
        self, place: TryPlace, saga: Saga, path: LoopPath, depth: int, around: Fate
    ) -> None:
        action, undo = _SAGA_FATES[place.fact.phase]
        done: list[bool] = []
        for step in saga.steps:
            known = len(self.order)
            self._place_part(place, TryPart.BODY, step.action, path, depth, around, action)
            done.append(any(self._state(key) is NodeState.FINISHED for key in self.order[known:]))
        for step, is_done in reversed([*zip(saga.steps, done, strict=True)]):
            fate = Fate.DEAD if undo is Fate.LIVE and not is_done else undo
            self._place_part(place, TryPart.END, step.undo, path, depth, around, fate)

    def _place_part(  # noqa: PLR0917 - its place in the tree, and two fates
        self,
        place: TryPlace,
        name: TryPart,
        children: tuple[Element, ...],
        path: LoopPath,
        depth: int,
        around: Fate,
        fate: Fate,
    ) -> None:
        """Place a part. `fate`: its own, by its Try's phase, which counts where everything around the Try is live.

        Elsewhere it has the fate `around` it, but clean-up that has begun goes on, and what is not due yet stays LATER.
        """
        if around in (Fate.UNCHOSEN, Fate.LATER):
            fate = around
        elif around is not Fate.LIVE and fate is not Fate.LATER:
            is_kept = name is TryPart.END and fate is Fate.LIVE and is_cleaning(place.fact)
            fate = Fate.LIVE if is_kept else around
        self.fate = fate
        part = GroupPlace([], part=Part(place, name))
        self._place_group(children, part, place.group, path, depth + 1)

    def _place_leaf(self, leaf: Leaf, parent: GroupPlace, path: LoopPath) -> None:
        mounted = self.mounted
        if leaf.id in mounted.keys or leaf.id in self.try_names:
            raise DuplicateNodeId(f"two nodes of one tree have the id {leaf.id!r}")
        if len(mounted.keys) >= MAX_LEAVES:
            raise InvalidTree(f"the tree has more than {MAX_LEAVES} leaves")
        key = key_in(leaf.id, path)
        if NODE_ID_PATTERN.fullmatch(key.node_id) is None:
            raise InvalidTree(f"the id {key.node_id!r} is too long with its loops' path")
        mounted.keys[leaf.id] = key
        self.order.append(key)
        mounted.loop_paths[leaf.id] = tuple(map(_LOOP_OF, path))
        match self.fate:
            case Fate.LIVE:
                place = LeafPlace(key, leaf, len(mounted.keys), parent)
                mounted.leaves[key] = place
                parent.children.append(place)
            case Fate.DEAD | Fate.STOPPED if self._state(key) is NodeState.IN_PROGRESS:
                place = LeafPlace(key, leaf, len(mounted.keys), parent)
                mounted.dying[key] = place
                parent.children.append(place)
            case Fate.STOPPED:
                mounted.stopped[key] = leaf
            case Fate.DEAD | Fate.UNCHOSEN:
                mounted.unchosen[key] = leaf
            case Fate.LATER:
                pass

    def _state(self, key: NodeKey) -> NodeState | None:
        fact = self.facts.nodes.get(key)
        return None if fact is None else fact.state
