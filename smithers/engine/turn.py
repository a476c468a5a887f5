"""One turn of a run: everything that is committed together, and what may start afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

from smithers.engine.facts import LoopFact, NodeFact, NodeKey, Problem, TryFact
from smithers.engine.mount import LeafPlace
from smithers.events import EventType
from smithers.ids import LoopId, RunId, TryId
from smithers.states import AttemptState, RunStatus, ToolCallState
from smithers.tree import Spent

MAX_USED: Final = 10**15  # tokens or dollars of one answer: sums of these fit JSON's numbers


class EventDraft(NamedTuple):
    """An event before it has its number and its time."""

    type: EventType
    fields: Mapping[str, Any]


class AttemptEnd(NamedTuple):
    """How an attempt ended."""

    key: NodeKey
    attempt: int
    state: AttemptState
    started_ms: int | None
    error: Problem | None


class FrameDraft(NamedTuple):
    """A tree that differs from the one before."""

    frame_no: int
    xml_hash: str
    encoding: str
    body: str

    @property
    def event(self) -> EventDraft:
        """The event that records it."""
        fields = {"frameNo": self.frame_no, "xmlHash": self.xml_hash}
        return EventDraft(EventType.FRAME_COMMITTED, fields)


class ApprovalChange(NamedTuple):
    """A question asked (with its request as JSON text), or withdrawn (without one)."""

    key: NodeKey
    request: str | None


class ToolCall(NamedTuple):
    """A body's call of a tool or a model, begun or ended; input, output and error are JSON texts."""

    call_no: int  # counts an attempt's calls, from 1
    kind: Literal["tool", "model"]
    tool_name: str
    state: ToolCallState
    is_side_effect: bool
    is_idempotent: bool
    input: str | None
    output: str | None = None
    error: str | None = None
    took_ms: int = 0  # since it began
    parent_call_no: int = 0  # within which it was made; 0: none
    beside_call_no: int | None = None  # its parent's oldest call that was running when it began


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """A model's tokens in and out, and their cost in dollars if it is known; raises TypeError, ValueError."""

    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cost: Decimal | None = None

    def __post_init__(self) -> None:
        # Validated here, where its author gets the error: adding it up later could only fail the run.
        names, counts = (self.agent, self.model), (self.input_tokens, self.output_tokens)
        cost = Decimal() if self.cost is None else self.cost
        if not (
            all(isinstance(name, str) for name in names)
            and all(type(count) is int for count in counts)
            and isinstance(cost, Decimal)
        ):
            raise TypeError(f"{self}: names are texts, tokens whole numbers, a cost is a Decimal")
        if not (cost.is_finite() and all(0 <= used <= MAX_USED for used in (*counts, cost))):
            raise ValueError(f"{self}: what is used up is neither negative nor above {MAX_USED}")


class CachedOutput(NamedTuple):
    """An output that other nodes may reuse."""

    key: NodeKey
    cache_key: str
    output: str
    ttl_ms: int | None


class ChildStart(NamedTuple):
    """A run that begins with the turn: a node's child, or this run's continuation."""

    key: NodeKey | None  # the node whose child it is; None: it continues this run
    run_id: RunId
    workflow_name: str
    queue: str | None  # None: this run's
    is_solo: bool  # it needs a worker of its own
    workflow_export: str | None = None  # None: this run's
    input: str | None = None  # JSON text; None: this run's
    carried: str | None = None  # the state that a continuation is handed, JSON text
    spent: Spent | None = None  # what a continuation's predecessors have spent of the budget


class Start(NamedTuple):
    """An attempt to start once the turn is committed."""

    leaf: LeafPlace
    attempt: int


class Abort(NamedTuple):
    """An attempt to stop, and the reason for its NodeCancelled."""

    key: NodeKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The run leaves its worker: parked or ended."""

    status: RunStatus
    events: tuple[EventDraft, ...]
    due_ms: int | None = None
    error: Problem | None = None
    output: NodeKey | None = None
    successor: ChildStart | None = None  # the run's continuation


class Turn:
    """All changes since the last commit: they are committed together, or not at all."""

    def __init__(self) -> None:
        self.events: list[EventDraft] = []
        self.nodes: dict[NodeKey, NodeFact] = {}
        self.started: set[NodeKey] = set()  # nodes of which an attempt begins
        self.attempts: list[AttemptEnd] = []
        self.loops: dict[LoopId, LoopFact] = {}
        self.approvals: list[ApprovalChange] = []
        self.signals: list[tuple[int, NodeKey]] = []  # (signal's seq, who took it)
        self.tries: dict[TryId, TryFact] = {}
        # A call that begins and ends in one turn is one row: (node, attempt, number) of each.
        self.tool_calls: dict[tuple[NodeKey, int, int], ToolCall] = {}
        self.cached: list[CachedOutput] = []
        self.children: list[ChildStart] = []
        self.abandoned: list[NodeKey] = []  # nodes whose children are cancelled, and not awaited
        self.frame: FrameDraft | None = None
        self.status: RunStatus | None = None  # the run goes on, under another status
        # Not committed, but done by the executor: after the commit, or (time-outs) instead of it.
        self.starts: list[Start] = []
        self.aborts: list[Abort] = []
        self.timeouts: list[NodeKey] = []  # questions to deny as `system:timeout`; then plan again
        self.ending: Ending | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (
            self.events
            or self.nodes
            or self.attempts
            or self.loops
            or self.tries
            or self.tool_calls
            or self.status
            or self.ending
        )
