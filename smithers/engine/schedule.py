"""Determine which leaves of a mounted tree are open: their turn has come, and their groups have room.

A leaf's turn has come when everything before it is settled and its dependencies are met. Pure, and incremental:
settling a node costs the places above it and those that waited for it, whatever the size of the tree. Building a
schedule from all the facts at once gives the same open leaves as settling them one by one, which a property test
checks. Leaves that had room keep it, the rest is given in tree order; a leaf that waits for others takes none, so
that tasks which depend on each other may be in a parallel in any order.
"""

import heapq
from operator import attrgetter
from typing import Final

from smithers.engine.facts import Facts, NodeKey
from smithers.engine.mount import GroupPlace, LeafPlace, LoopPlace, Mounted, TryPlace
from smithers.states import NodeState

_POSITION: Final = attrgetter("position")


class Schedule:
    """The cursors on one mounted tree.

    Each leaf is opened at most once, and has room in its groups from then until it is settled.
    """

    def __init__(self, mounted: Mounted, facts: Facts) -> None:
        """Open the leaves that these facts make open."""
        self.mounted = mounted
        self._facts = facts
        self._waiting_on: dict[NodeKey | str, list[LeafPlace]] = {}
        self._reached: list[LeafPlace] = []  # they wait for nothing, except perhaps room
        self._freed: list[GroupPlace] = []  # groups whose room was released
        self._ended_loops: list[LoopPlace] = []
        self._reached_tries: list[TryPlace] = []
        self._ended_tries: list[TryPlace] = []
        self._advance(mounted.root)
        # They had room in the tree before, and get it first.
        self._begun = [leaf for leaf in self._reached if self._has_begun(leaf)]

    @property
    def is_done(self) -> bool:
        """Everything in the tree is settled."""
        return self.mounted.root.is_closed

    @property
    def has_news(self) -> bool:
        """Whether there are opened leaves or ended parts that were not taken yet."""
        return bool(self._reached or self._freed or self._ended_loops or self._ended_tries)

    def take_opened(self) -> list[LeafPlace]:
        """Return the leaves that have become open since the last call, in tree order."""
        opened: list[LeafPlace] = []
        queue: list[tuple[int, LeafPlace]] = []
        for leaf in self._begun:
            self._open(leaf, opened, queue)
        _offer(self._reached, queue)
        for group in self._freed:
            _offer_room(group, queue)
        self._begun, self._reached, self._freed = [], [], []
        while queue:
            _, leaf = heapq.heappop(queue)
            self._open(leaf, opened, queue)
            around = leaf.parent
            while around is not None:
                if around.held:  # for the room that this leaf was offered and did not use
                    _offer_room(around, queue)
                around = around.parent
        opened.sort(key=_POSITION)
        return opened

    def take_reached_tries(self) -> list[TryPlace]:
        """Return the Trys and Sagas whose turn has come since the last call."""
        reached, self._reached_tries = self._reached_tries, []
        return reached

    def take_ended(self) -> tuple[list[LoopPlace], list[TryPlace]]:
        """Return the loops whose iteration has ended since the last call, and the Trys and Sagas whose phase has.

        Each needs a render to go on.
        """
        ended = self._ended_loops, self._ended_tries
        self._ended_loops, self._ended_tries = [], []
        return ended

    def blocked(self) -> list[tuple[NodeKey, list[str]]]:
        """List the leaves whose turn has come but that still wait for others, with the others' names."""
        waits: dict[NodeKey, list[str]] = {}
        for wanted, leaves in self._waiting_on.items():
            name = wanted if isinstance(wanted, str) else wanted.node_id
            for leaf in leaves:
                waits.setdefault(leaf.key, []).append(name)
        return sorted(waits.items())

    def settle(self, key: NodeKey) -> None:
        """Record that a node is settled, or gone for good; the facts already say so."""
        for waiting in self._waiting_on.pop(key, ()):
            waiting.unmet_count -= 1
            if waiting.unmet_count == 0 and not waiting.is_closed:
                self._reached.append(waiting)
        leaf = self.mounted.leaves.get(key) or self.mounted.dying.get(key)
        if leaf is None or not leaf.is_reached or leaf.is_closed:
            return
        leaf.is_closed = True
        if leaf.is_open:
            leaf.is_open = False
            self._give_room_back(leaf)
        self._child_closed(leaf)

    # Order: which children are reached, which have closed.

    def _child_closed(self, child: LeafPlace) -> None:
        parent = child.parent
        while parent is not None:
            parent.unclosed_count -= 1
            if not self._advance(parent):
                return
            parent = parent.parent

    def _advance(self, group: GroupPlace) -> bool:
        """Reach as many children as the group's order allows; say whether the whole group has closed."""
        children = group.children
        if group.try_place is not None and not group.next_index:
            self._reached_tries.append(group.try_place)
        while group.next_index < len(children) and not (group.is_ordered and group.unclosed_count):
            child = children[group.next_index]
            group.next_index += 1
            is_closed = self._reach(child) if isinstance(child, LeafPlace) else self._advance(child)
            if not is_closed:
                group.unclosed_count += 1
        if group.unclosed_count or group.next_index < len(children):
            return False
        if group.loop is not None and not group.loop.fact.is_done:
            # Stays open: a render decides whether another iteration follows.
            self._ended_loops.append(group.loop)
            return False
        if group.try_place is not None and not group.try_place.fact.is_done:
            self._ended_tries.append(group.try_place)
            return False
        group.is_closed = True
        return True

    def _reach(self, leaf: LeafPlace) -> bool:
        """Start a leaf's turn; say whether it is already settled."""
        leaf.is_reached = True
        fact = self._facts.nodes.get(leaf.key)
        if fact is not None and fact.state.is_settled:
            leaf.is_closed = True
            return True
        for wanted in self.mounted.dependencies(leaf.element, self._facts):
            if isinstance(wanted, str) or not self._is_out_of_the_way(wanted):
                leaf.unmet_count += 1
                self._waiting_on.setdefault(wanted, []).append(leaf)
        if not leaf.unmet_count:
            self._reached.append(leaf)
        return False

    def _is_out_of_the_way(self, key: NodeKey) -> bool:
        """Say whether a node no longer blocks those that depend on it: it is settled, or was cancelled and left the tree."""
        fact = self._facts.nodes.get(key)
        if fact is None:
            return False
        is_gone = fact.state is NodeState.CANCELLED and key not in self.mounted.leaves
        return is_gone or fact.state.is_settled

    def _has_begun(self, leaf: LeafPlace) -> bool:
        fact = self._facts.nodes.get(leaf.key)
        return fact is not None and (fact.attempt > 0 or fact.state is not NodeState.PENDING)

    # Room: which of the reached leaves may begin.

    def _open(
        self, leaf: LeafPlace, opened: list[LeafPlace], queue: list[tuple[int, LeafPlace]]
    ) -> None:
        """Give a leaf room in all its groups, or in none, and queue it at the innermost group without room."""
        if leaf.is_closed or leaf.is_open:
            return
        child: LeafPlace | GroupPlace = leaf
        is_alone, group = True, leaf.parent  # alone: no other leaf in that child is open
        while group is not None:
            if is_alone and group.limit is not None and group.busy_count >= group.limit:
                _hold(group, child, leaf)
                return
            is_alone, child, group = group.open_count == 0, group, group.parent
        self._take_room(leaf, queue)
        opened.append(leaf)

    def _take_room(self, leaf: LeafPlace, queue: list[tuple[int, LeafPlace]]) -> None:
        leaf.is_open = True
        is_alone, group = True, leaf.parent
        while group is not None:
            was_idle = group.open_count == 0
            group.open_count += 1
            group.busy_count += is_alone
            if group.held_here:
                _offer(group.take_held_here(), queue)  # they need no room of their own now
            is_alone, group = was_idle, group.parent

    def _give_room_back(self, leaf: LeafPlace) -> None:
        is_alone, group = True, leaf.parent
        while group is not None:
            group.open_count -= 1
            group.busy_count -= is_alone
            if is_alone and group.held:
                self._freed.append(group)
            is_alone, group = group.open_count == 0, group.parent


def _hold(group: GroupPlace, child: LeafPlace | GroupPlace, leaf: LeafPlace) -> None:
    """Queue a leaf until the group has room for its child."""
    if isinstance(child, GroupPlace):
        child.held_here.append(leaf)
    heapq.heappush(group.held, (leaf.position, child))


def _offer_room(group: GroupPlace, queue: list[tuple[int, LeafPlace]]) -> None:
    """Let the first queued child of a group try again, if the group has room."""
    while group.held and (group.limit is None or group.busy_count < group.limit):
        _, child = heapq.heappop(group.held)
        leaves = [child] if isinstance(child, LeafPlace) else child.take_held_here()
        _offer(leaves, queue)
        if leaves:  # else they have room already
            return


def _offer(leaves: list[LeafPlace], queue: list[tuple[int, LeafPlace]]) -> None:
    for leaf in leaves:
        heapq.heappush(queue, (leaf.position, leaf))
