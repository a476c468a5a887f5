"""One turn of a run: everything that is to be committed together, and what may start once it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smithers.engine.facts import LoopFact, NodeFact, NodeKey, Problem
from smithers.engine.mount import LeafPlace
from smithers.events import EventType
from smithers.ids import LoopId
from smithers.states import AttemptState, RunStatus


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


class Start(NamedTuple):
    """An attempt to be made once the turn is committed."""

    leaf: LeafPlace
    attempt: int


class Abort(NamedTuple):
    """An attempt to be stopped, and what its NodeCancelled will say."""

    key: NodeKey
    reason: str


class Timeout(NamedTuple):
    """An approval whose time has run out: denied like any other, by `system:timeout`."""

    key: NodeKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The run leaves its worker: parked or over."""

    status: RunStatus
    events: tuple[EventDraft, ...]
    due_ms: int | None = None
    error: Problem | None = None
    output: NodeKey | None = None


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
    frame: FrameDraft | None = None
    status: RunStatus | None = None  # the run goes on, under another status
    starts: list[Start] = field(default_factory=list)
    aborts: list[Abort] = field(default_factory=list)
    timeouts: list[Timeout] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing to write down."""
        return not (
            self.events or self.nodes or self.attempts or self.loops or self.status or self.ending
        )
