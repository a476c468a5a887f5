"""One turn of a run: everything that is to be committed together, and what may start once it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

from smithers.engine.facts import LoopFact, NodeFact, NodeKey, Problem, TryFact
from smithers.engine.mount import LeafPlace
from smithers.events import EventType
from smithers.ids import LoopId, RunId, TryId
from smithers.states import AttemptState, RunStatus, ToolCallState
from smithers.tree import Spent

MAX_USED: Final = 10**15  # tokens or dollars of one answer: sums of them are numbers of JSON


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
        """The event that tells of it."""
        fields = {"frameNo": self.frame_no, "xmlHash": self.xml_hash}
        return EventDraft(EventType.FRAME_COMMITTED, fields)


class ApprovalChange(NamedTuple):
    """A question asked (with its request as JSON text), or withdrawn (with none)."""

    key: NodeKey
    request: str | None


class ToolCall(NamedTuple):
    """A call that a body made of a tool or a model, begun or over; input, output and error are JSON texts."""

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
    beside_call_no: int | None = None  # its parent's oldest that was under way when it began


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """What a model took in and put out, and what that cost in dollars where it is known; raises TypeError, ValueError."""

    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cost: Decimal | None = None

    def __post_init__(self) -> None:
        # Here, where whoever says so can be told: it is added up where only the run could fail for it.
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
    """An output that others may have instead of making it again."""

    key: NodeKey
    cache_key: str
    output: str
    ttl_ms: int | None


class ChildStart(NamedTuple):
    """A run that is to begin with the turn; what is None it has from this one."""

    key: NodeKey | None  # whose child it is; None: this run goes on as it
    run_id: RunId
    workflow_name: str
    queue: str | None
    is_solo: bool
    workflow_export: str | None = None
    input: str | None = None  # JSON text
    carried: str | None = None  # JSON text, where this run goes on as it
    spent: Spent | None = None  # of the budget, where this run goes on as it


class Start(NamedTuple):
    """An attempt to be made once the turn is committed."""

    leaf: LeafPlace
    attempt: int


class Abort(NamedTuple):
    """An attempt to be stopped, and what its NodeCancelled will say."""

    key: NodeKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The run leaves its worker: parked or over."""

    status: RunStatus
    events: tuple[EventDraft, ...]
    due_ms: int | None = None
    error: Problem | None = None
    output: NodeKey | None = None
    successor: ChildStart | None = None  # what the run goes on as


@dataclass(slots=True)
class Turn:
    """What has come up since the last commit."""

    events: list[EventDraft] = field(default_factory=list)
    nodes: dict[NodeKey, NodeFact] = field(default_factory=dict)
    started: set[NodeKey] = field(default_factory=set)
    attempts: list[AttemptEnd] = field(default_factory=list)
    loops: dict[LoopId, LoopFact] = field(default_factory=dict)
    approvals: list[ApprovalChange] = field(default_factory=list)
    signals: list[tuple[int, NodeKey]] = field(default_factory=list)  # (signal's seq, who took it)
    tries: dict[TryId, TryFact] = field(default_factory=dict)
    # A call that begins and ends in one turn is one row: (node, attempt, number) of each.
    tool_calls: dict[tuple[NodeKey, int, int], ToolCall] = field(default_factory=dict)
    cached: list[CachedOutput] = field(default_factory=list)
    children: list[ChildStart] = field(default_factory=list)
    abandoned: list[NodeKey] = field(default_factory=list)  # whose children nobody waits for now
    frame: FrameDraft | None = None
    status: RunStatus | None = None  # the run goes on, under another status
    starts: list[Start] = field(default_factory=list)
    aborts: list[Abort] = field(default_factory=list)
    # Questions whose time has run out: denied like any other, by `system:timeout`.
    timeouts: list[NodeKey] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing to write down."""
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
