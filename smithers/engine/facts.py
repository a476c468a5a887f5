"""The facts of a run: its rows of nodes, loops, decisions and signals, as plain values.

A fact is never changed, only replaced. Nodes are found by their exact key, and by the id that the author wrote, for
which there may be many keys: one for each iteration of its loops.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

import orjson

from smithers.errors import InvalidInput, InvalidOutput
from smithers.ids import LoopId, NodeId, RunId, TryId
from smithers.states import ApprovalStatus, NodeState, RunStatus, TryPhase
from smithers.texts import encodable
from smithers.tree import SCOPE_MARK, Spent


class NodeKey(NamedTuple):
    """A node's key in a run: its id with its outer loops' path, and its innermost loop's iteration."""

    node_id: NodeId
    iteration: int


class Problem(NamedTuple):
    """An error as the API shows it; the traceback is for operators, and never on a stream."""

    name: str
    message: str
    code: str | None = None
    details: Any = None
    traceback: str | None = None

    @classmethod
    def of(cls, error: InvalidInput | InvalidOutput) -> Self:
        """Return the problem of a refused value."""
        return cls(type(error).__name__, str(error), error.code, error.details)

    def to_wire(self) -> dict[str, Any]:
        """Return `{name, message, code?, details?}`."""
        message = encodable(self.message)  # file names may contain anything
        wire: dict[str, Any] = {"name": self.name, "message": message}
        if self.code is not None:
            wire["code"] = self.code
        if self.details is not None:
            wire["details"] = self.details
        return wire


class NodeMark(StrEnum):
    """What a node's state alone does not say, about a node that waits for nothing."""

    # Skipped, because its branch was not taken or it left the tree: it may be mounted again.
    UNCHOSEN = "unchosen"
    # Failed, and the run goes on. A failed node without this mark fails its run, even if another process takes it up.
    TOLERATED = "tolerated"
    # A second failure. The run reports the first one, unless that one has been forgotten.
    LATER = "later"
    # Pending again: its attempt stopped before a question to a model for which the budget has no room.
    PARKED = "parked"


# Each as the JSON of its row.
_MARK_JSON: Final = {mark: f'{{"{mark}":true}}' for mark in NodeMark}
_MARKS: Final = {text: mark for mark, text in _MARK_JSON.items()}


class NodeFact(NamedTuple):
    """The state of one node: its row.

    Two columns mean different things at different nodes. `wait` has what the node waits for (`awaited`), or its `mark`;
    `heartbeat` has the newest one of its body, or what a budget has `spent`.
    """

    state: NodeState
    kind: str = "task"
    label: str | None = None
    attempt: int = 0  # the number of the newest attempt; 0: none yet
    failures: int = 0  # failed attempts of this era: what retries count
    output: str | None = None  # JSON text
    error: Problem | None = None
    due_ms: int | None = None  # when a timer fires, a wait expires, a back-off ends
    started_ms: int | None = None  # when its newest attempt, or its wait, was committed
    wait: str | None = None  # JSON text
    heartbeat: str | None = None  # JSON text
    loop: str | None = None  # its innermost loop, whose iteration is in its key

    @property
    def mark(self) -> NodeMark | None:
        """The mark of a node that waits for nothing."""
        return None if self.wait is None else _MARKS.get(self.wait)

    def with_mark(self, mark: NodeMark | None) -> Self:
        """Return the fact with this mark, and without what the node waited for."""
        return self._replace(wait=None if mark is None else _MARK_JSON[mark])

    @property
    def awaited(self) -> dict[str, Any]:
        """What a waiting node waits for, as the API shows it."""
        awaited: dict[str, Any] = {} if self.wait is None else orjson.loads(self.wait)
        return awaited

    def with_awaited(self, awaited: dict[str, Any]) -> Self:
        """Return the fact of a node that waits for this; empty: its state says enough."""
        return self._replace(wait=orjson.dumps(awaited).decode() if awaited else None)

    @property
    def spent(self) -> Spent | None:
        """What a budget's node has counted; None: nothing yet."""
        return None if self.heartbeat is None else Spent.of(orjson.loads(self.heartbeat))

    def with_spent(self, spent: Spent) -> Self:
        """Return the fact of a budget's node that has counted this."""
        return self._replace(heartbeat=orjson.dumps(spent.to_wire()).decode())


@dataclass(frozen=True, slots=True)
class LoopFact:
    """The state of a loop."""

    iteration: int = 0
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class TryFact:
    """The state of a Try or a Saga, from when its turn has come."""

    phase: TryPhase = TryPhase.BODY
    is_done: bool = False
    problem: Problem | None = None  # the error that it caught


@dataclass(frozen=True, slots=True)
class EndFact:
    """How a node's child ended."""

    run_id: RunId
    status: RunStatus
    output: str | None  # JSON text
    error: Problem | None
    cancel_asked_ms: int | None = None  # when its cancel was requested; known for a cancelled one


@dataclass(frozen=True, slots=True)
class ApprovalFact:
    """The outcome of a question."""

    status: ApprovalStatus
    note: str | None = None
    decided_by: str | None = None
    decided_ms: int | None = None
    decision: str | None = None  # JSON text


@dataclass(frozen=True, slots=True)
class SignalFact:
    """A received signal that no node has taken yet."""

    seq: int
    name: str
    correlation_id: str | None
    data: str  # JSON text


@dataclass(slots=True)
class Facts:
    """The state of a run, at one point of its history."""

    nodes: dict[NodeKey, NodeFact] = field(default_factory=dict)
    loops: dict[LoopId, LoopFact] = field(default_factory=dict)
    approvals: dict[NodeKey, ApprovalFact] = field(default_factory=dict)
    signals: list[SignalFact] = field(default_factory=list)
    tries: dict[TryId, TryFact] = field(default_factory=dict)
    ends: dict[NodeKey, EndFact] = field(default_factory=dict)  # of children that nodes wait for
    # Nodes whose attempts died with their process, and that have not begun again.
    lost: set[NodeKey] = field(default_factory=set)
    _keys: dict[str, list[NodeKey]] = field(default_factory=dict)

    def put(self, key: NodeKey, fact: NodeFact) -> None:
        """Set a node's fact."""
        if key not in self.nodes:
            self._keys.setdefault(written_id(key.node_id), []).append(key)
        self.nodes[key] = fact

    def forget(self, key: NodeKey) -> None:
        """Remove a fact that was never committed."""
        if self.nodes.pop(key, None) is not None:
            self._keys[written_id(key.node_id)].remove(key)

    def copy(self) -> "Facts":
        """Return an independent copy."""
        keys = {written: [*known] for written, known in self._keys.items()}
        return Facts(
            {**self.nodes},
            {**self.loops},
            {**self.approvals},
            [*self.signals],
            {**self.tries},
            {**self.ends},
            {*self.lost},
            keys,
        )

    def loop_paths(self) -> dict[str, tuple[str, ...]]:
        """Map each id inside a loop, as an author wrote it, to its loops, outermost first."""
        of_tries = {written_id(try_id): tuple(loops_around(try_id)) for try_id in self.tries}
        return of_tries | {
            written: (*loops_around(key.node_id), loop)
            for written, keys in self._keys.items()
            for key in keys
            if (loop := self.nodes[key].loop) is not None
        }

    def keys_of(self, node_id: str) -> list[NodeKey]:
        """List the keys of the id that an author wrote, oldest iteration first."""
        return sorted(self._keys.get(node_id, ()), key=place_in_time)


def written_id(node_id: NodeId | TryId) -> str:
    """Return the id as its author wrote it, without its loops' path."""
    return node_id.partition(SCOPE_MARK)[0]


def loops_around(node_id: NodeId | TryId) -> list[str]:
    """List the loops in an id's path, outermost first."""
    scope = node_id.partition(SCOPE_MARK)[2]
    return [part.rpartition("=")[0] for part in scope.split(",")] if scope else []


def place_in_time(key: NodeKey) -> tuple[int, ...]:
    """Sort key for the keys of one id: the iterations of its loops, outermost first."""
    _, _, scope = key.node_id.partition(SCOPE_MARK)
    outer = (int(part.rpartition("=")[2]) for part in scope.split(",")) if scope else ()
    return (*outer, key.iteration)
