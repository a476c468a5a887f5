"""The facts of a run: its rows of nodes, loops, decisions and signals, as plain values.

A fact is never changed, only replaced. Nodes are found by their exact key, and by the id that the author wrote, for
which there may be many keys: one for each iteration of its loops.
"""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from smithers.errors import InvalidInput, InvalidOutput
from smithers.ids import LoopId, NodeId, RunId, TryId
from smithers.states import ApprovalStatus, NodeState, RunStatus, TryPhase
from smithers.texts import encodable
from smithers.tree import SCOPE_MARK

# Why a node was skipped: its branch was not taken, or it left the tree. It may be mounted again.
UNCHOSEN: Final = '{"unchosen":true}'
# A tolerated failure. Every other failed node fails its run, even if another process takes it up.
TOLERATED: Final = '{"tolerated":true}'
# A failure in a run that something had failed before: it is the run's only if that is not known any more.
LATER: Final = '{"later":true}'
# Why a node is pending again: its attempt stopped before a question to a model for which the budget has no room.
PARKED: Final = '{"parked":true}'


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


class NodeFact(NamedTuple):
    """The state of one node."""

    state: NodeState
    kind: str = "task"
    label: str | None = None
    attempt: int = 0  # the number of the newest attempt; 0: none yet
    failures: int = 0  # failed attempts of this era: what retries count
    output: str | None = None  # JSON text
    error: Problem | None = None
    due_ms: int | None = None  # when a timer fires, a wait expires, a back-off ends
    started_ms: int | None = None
    wait: str | None = None  # what it waits for, UNCHOSEN, TOLERATED, LATER or PARKED: JSON text
    heartbeat: str | None = None  # its body's newest heartbeat: JSON text
    loop: str | None = None  # its innermost loop, whose iteration is in its key


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
