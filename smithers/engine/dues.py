"""When time alone makes nodes due: timers, waits' time-outs, back-offs' ends. Pure."""

import heapq

from smithers.engine.facts import Facts, NodeKey


class Dues:
    """Due times of nodes. One that is no longer its node's due time is stale: it is dropped, and never returned."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, NodeKey]] = []
        self._entries: set[tuple[int, NodeKey]] = set()  # each render adds every wait again

    def add(self, due_ms: int, key: NodeKey) -> None:
        """Add a node's due time."""
        if (due_ms, key) not in self._entries:
            self._entries.add((due_ms, key))
            heapq.heappush(self._heap, (due_ms, key))

    def take(self, now_ms: int, facts: Facts) -> list[NodeKey]:
        """Remove and return the nodes that are due, earliest first."""
        taken = []
        while (due_ms := self.next_ms(facts)) is not None and due_ms <= now_ms:
            taken.append(self._pop())
        return taken

    def next_ms(self, facts: Facts) -> int | None:
        """Return the earliest valid due time."""
        while self._heap:
            due_ms, key = self._heap[0]
            fact = facts.nodes.get(key)
            if fact is not None and fact.due_ms == due_ms and not fact.state.is_settled:
                return due_ms
            self._pop()
        return None

    def _pop(self) -> NodeKey:
        entry = heapq.heappop(self._heap)
        self._entries.discard(entry)
        return entry[1]
