"""A world for one run of the engine: rows that remember what was committed, a clock moved by hand, deaths at will.

What it does with a Progress is what the worker's executor does: plan, commit, perform, tell what happened. There is no
database: `Rows` keeps what the tables would.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from smithers.context import Auth
from smithers.engine import reports
from smithers.engine.facts import (
    ApprovalFact,
    EndFact,
    Facts,
    LoopFact,
    NodeFact,
    NodeKey,
    Problem,
    SignalFact,
    TryFact,
)
from smithers.engine.frames import restore
from smithers.engine.progress import Progress
from smithers.engine.rendering import Renderer
from smithers.engine.turn import ChildStart, TokenUsage, Turn
from smithers.events import EventType
from smithers.ids import LoopId, NodeId, RunId, TryId
from smithers.outputs import decode_output, encode_output
from smithers.states import ApprovalStatus, AttemptState, NodeState, RunStatus
from smithers.tree import Child
from smithers.workflow import Workflow

START_MS = 1_795_308_128_000
TIMEOUT_USER = "system:timeout"
BOOM = Problem("Boom", "it broke")
NEWS = (EventType.APPROVAL_GRANTED, EventType.APPROVAL_DENIED, EventType.SUBFLOW_ENDED)
TERMINAL = ("RunFinished", "RunFailed", "RunCancelled", "RunContinuedAsNew")

Key = str | NodeKey


class Died(Exception):
    """The process died before its commit."""


@dataclass
class Rows:
    """What is committed."""

    nodes: dict[NodeKey, NodeFact] = field(default_factory=dict)
    loops: dict[LoopId, LoopFact] = field(default_factory=dict)
    ends: dict[NodeKey, EndFact] = field(default_factory=dict)
    children: list[ChildStart] = field(default_factory=list)
    abandoned: list[NodeKey] = field(default_factory=list)
    tries: dict[TryId, TryFact] = field(default_factory=dict)
    approvals: dict[NodeKey, ApprovalFact] = field(default_factory=dict)
    requests: dict[NodeKey, dict[str, Any]] = field(default_factory=dict)
    signals: list[SignalFact] = field(default_factory=list)  # not consumed
    attempts: list[tuple[str, int, AttemptState]] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    history: list[tuple[EventType, dict[str, Any]]] = field(default_factory=list)
    status: RunStatus = RunStatus.RUNNING
    due_ms: int | None = None
    error: Problem | None = None
    output: NodeKey | None = None
    is_cancelling: bool = False
    has_cleanup: bool = False
    signal_count: int = 0

    def facts(self) -> Facts:
        """Build facts as a worker does that takes the run up."""
        facts = Facts(loops=dict(self.loops), tries=dict(self.tries))
        for key, fact in self.nodes.items():
            facts.put(key, fact)
        return facts


class World:
    """One run, and all that happens to it."""

    def __init__(
        self,
        builder: Callable[[Any], Child] | Workflow[Any],
        *,
        input: Any = None,
        max_concurrency: int = 32,
        die_before: Collection[int] = (),
        die_after: Collection[int] = (),
        aborts_at_once: bool = True,
    ) -> None:
        """`die_before`, `die_after`: the numbers of the commits around which the process dies, from 1."""
        self.render_count = 0
        workflow = (
            builder if isinstance(builder, Workflow) else Workflow(name="test", builder=builder)
        )
        self.renderer = Renderer(
            run_id=RunId("r1"),
            workflow=workflow,
            read_input=lambda: {} if input is None else input,
            auth=Auth(),
            guard=self._guard,
            budget=workflow.budget,
        )
        self.now_ms = START_MS
        self.rows = Rows(history=[(EventType.RUN_STARTED, {})])
        self.running: dict[NodeKey, int] = {}
        self.aborting: dict[NodeKey, str] = {}
        self.progress: Progress | None = None
        self.commit_count = 0
        self.on_turn: Callable[[World], None] | None = None
        self._max_concurrency = max_concurrency
        self._die_before, self._die_after = die_before, die_after
        self._aborts_at_once = aborts_at_once
        self._is_new = True
        self._newest_signal = -1  # that the progress has been told of
        self._news_count = 0  # of the history: how much of it the progress knows

    # What a test reads.

    @property
    def run(self) -> Progress:
        assert self.progress is not None, f"nobody holds the run: {self.rows.status}"
        return self.progress

    @property
    def is_over(self) -> bool:
        return self.rows.status.is_terminal

    @property
    def events(self) -> list[str]:
        return [_told(kind, fields) for kind, fields in self.rows.history]

    def events_of(self, node: Key) -> list[str]:
        key = self.key(node)
        return [
            _told(kind, fields)
            for kind, fields in self.rows.history
            if (fields.get("nodeId"), fields.get("iteration")) == key
        ]

    def key(self, node: Key) -> NodeKey:
        """Find a node by its key, or by its id and `#iteration`."""
        if isinstance(node, NodeKey):
            return node
        node_id, _, iteration = node.partition("#")
        return NodeKey(NodeId(node_id), int(iteration or 0))

    def fact(self, node: Key) -> NodeFact:
        return self.rows.nodes[self.key(node)]

    def state(self, node: Key) -> NodeState:
        return self.fact(node).state

    def states(self) -> dict[str, str]:
        """Say where every node is, by its id and `#iteration`."""
        return {_name(key): str(fact.state) for key, fact in sorted(self.rows.nodes.items())}

    def output(self, node: Key) -> Any:
        text = self.fact(node).output
        return None if text is None else decode_output(text)

    @property
    def under_way(self) -> list[str]:
        return sorted(_name(key) for key in self.running)

    @property
    def error(self) -> Problem:
        """Why the run failed, which it has."""
        assert self.rows.error is not None, self.rows.status
        return self.rows.error

    # What happens.

    def begin(self) -> "World":
        self._take_up()
        return self

    def finish(self, *nodes: Key, value: Any = None) -> "World":
        """Let attempts return; together, they stand in one turn."""
        for node in nodes:
            key = self.key(node)
            del self.running[key]
            self.aborting.pop(key, None)
            reports.finish_attempt(self.run, key, encode_output(value))
        self._go()
        return self

    def fail(self, node: Key, problem: Problem = BOOM) -> "World":
        key = self.key(node)
        del self.running[key]
        self.aborting.pop(key, None)
        reports.fail_attempt(self.run, key, problem, self.now_ms)
        self._go()
        return self

    def use(
        self, node: Key, tokens: int, *, cost: Decimal | None = None, took_s: float = 0
    ) -> "World":
        """Let a model have answered an attempt."""
        usage = TokenUsage(
            agent="a", model="m", input_tokens=tokens - 1, output_tokens=1, cost=cost
        )
        key = self.key(node)
        reports.record_usage(self.run, key, self.running[key], usage, round(took_s * 1000))
        self._go()
        return self

    def park(self, node: Key, *, took_s: float = 0) -> "World":
        """Let an attempt have stopped before a question that the budget has no room for."""
        key = self.key(node)
        del self.running[key]
        reports.park_attempt(self.run, key, round(took_s * 1000))
        self._go()
        return self

    def stop(self, node: Key) -> "World":
        """Let an attempt that was to be stopped be stopped."""
        key = self.key(node)
        del self.running[key]
        reports.abort_attempt(self.run, key, self.aborting.pop(key))
        self._go()
        return self

    def decide(
        self,
        node: Key,
        *,
        is_approved: bool,
        by: str = "ann",
        note: str | None = None,
        decision: Any = None,
    ) -> "World":
        key = self.key(node)
        assert self.rows.approvals[key].status is ApprovalStatus.REQUESTED
        status = ApprovalStatus.APPROVED if is_approved else ApprovalStatus.DENIED
        text = None if decision is None else orjson.dumps(decision).decode()
        self.rows.approvals[key] = ApprovalFact(status, note, by, self.now_ms, text)
        kind = EventType.APPROVAL_GRANTED if is_approved else EventType.APPROVAL_DENIED
        self.rows.history.append((kind, {"nodeId": key.node_id, "iteration": key.iteration}))
        self._hear()
        return self

    def approve(self, node: Key, **how: Any) -> "World":
        return self.decide(node, is_approved=True, **how)

    def deny(self, node: Key, **how: Any) -> "World":
        return self.decide(node, is_approved=False, **how)

    def end_child(
        self,
        node: Key,
        *,
        value: Any = None,
        status: RunStatus = RunStatus.FINISHED,
        error: Problem | None = None,
        cancel_asked_ms: int | None = None,
    ) -> "World":
        """Let a node's child end."""
        key = self.key(node)
        child = next(child for child in reversed(self.rows.children) if child.key == key)
        output = encode_output(value) if status is RunStatus.FINISHED else None
        self.rows.ends[key] = EndFact(child.run_id, status, output, error, cancel_asked_ms)
        fields = {"nodeId": key.node_id, "iteration": key.iteration, "status": status}
        self.rows.history.append((EventType.SUBFLOW_ENDED, fields))
        self._hear()
        return self

    def signal(self, name: str, data: Any = None, correlation_id: str | None = None) -> "World":
        rows = self.rows
        signal = SignalFact(rows.signal_count, name, correlation_id, encode_output(data))
        rows.signal_count += 1
        rows.signals.append(signal)
        rows.history.append((EventType.SIGNAL_RECEIVED, {"signalName": name, "seq": signal.seq}))
        self._hear()
        return self

    def pass_s(self, seconds: float) -> "World":
        """Move the clock."""
        self.now_ms += round(seconds * 1000)
        if self.progress is not None:
            self.progress.pass_time(self.now_ms)
            self._go()
        elif self.rows.due_ms is not None and self.rows.due_ms <= self.now_ms:
            self._take_up()
        return self

    def cancel(self) -> "World":
        """Ask for the run's end, as to an owner."""
        self.rows.is_cancelling = True
        if self.progress is None:
            self._take_up()
        else:
            self.progress.cancel()
            self._go()
        return self

    def die(self) -> "World":
        """Let the process die, and another take the run up."""
        self.progress = None
        self.running.clear()
        self.aborting.clear()
        self._take_up(after_death=True)
        return self

    def resume(self, builder: Callable[[Any], Child] | None = None) -> "World":
        """Open a new era of a failed or cancelled run, as the store does."""
        rows = self.rows
        for key, fact in rows.nodes.items():
            if fact.state in (NodeState.FAILED, NodeState.CANCELLED):
                rows.nodes[key] = fact._replace(
                    state=NodeState.PENDING, failures=0, due_ms=None, error=None
                )
        rows.is_cancelling, rows.error = False, None
        if builder is not None:
            workflow: Workflow[Any] = Workflow(name="test", builder=builder)
            self.renderer = Renderer(
                run_id=RunId("r1"),
                workflow=workflow,
                read_input=dict,
                auth=Auth(),
                guard=self._guard,
            )
        rows.status = RunStatus.QUEUED
        self._take_up()
        return self

    def try_next(self) -> bool:
        """Move the clock to what is due next; say whether anything was."""
        due_ms = self.rows.due_ms if self.progress is None else self.progress.next_due_ms()
        if due_ms is None:
            return False
        self.pass_s(max(0, due_ms - self.now_ms) / 1000)
        return True

    # Inside.

    def _guard(self, build: Callable[[], Any]) -> Any:
        self.render_count += 1
        return build()

    def _hear(self) -> None:
        if self.progress is not None:
            self._take_news(self.progress)
            self._go()
        elif self.rows.status.is_parked:
            self._take_up()

    def _take_up(self, *, after_death: bool = False) -> None:
        rows = self.rows
        run = self.progress = Progress(
            renderer=self.renderer,
            facts=rows.facts(),
            committed=rows.facts(),
            max_concurrency=self._max_concurrency,
            frame_no=len(rows.frames),
            xml_hash=rows.hashes[-1] if rows.hashes else None,
        )
        if after_death:
            run.note(EventType.RUN_AUTO_RESUMED)
        run.take_up(rows.status, is_new=self._is_new)
        self._newest_signal = -1
        if not self._is_new:
            self._take_news(run, is_all=True)
        if rows.is_cancelling:
            run.cancel()
        self._is_new = False
        self._go()

    def _take_news(self, run: Progress, *, is_all: bool = False) -> None:
        """Hand on what the history tells of since the last time; at a taking up, what is there."""
        rows = self.rows
        told = {
            NodeKey(fields["nodeId"], fields["iteration"])
            for kind, fields in rows.history[self._news_count :]
            if kind in NEWS
        }
        self._news_count = len(rows.history)
        decided = {
            key: fact
            for key, fact in rows.approvals.items()
            if fact.status in (ApprovalStatus.APPROVED, ApprovalStatus.DENIED)
            and (is_all or key in told)
        }
        wanted = run.waiting if is_all else told
        ends = {key: end for key, end in rows.ends.items() if key in wanted}
        signals = [signal for signal in rows.signals if signal.seq > self._newest_signal]
        self._newest_signal = rows.signal_count - 1
        run.take_news(approvals=decided, ends=ends, signals=signals)

    def _go(self) -> None:
        """Plan, commit and perform until there is nothing more to do now."""
        try:
            while self._go_once():
                pass
        except Died:
            self.die()

    def _go_once(self) -> bool:
        run = self.run
        turn = run.plan(self.now_ms)
        if turn.timeouts:
            for key in turn.timeouts:
                self._run_out(key)
            turn.timeouts.clear()
            self._take_news(run)
            return True
        if not turn.is_empty:
            self._commit(run, turn)
        if turn.ending is not None:
            self.progress = None
            return False
        for start in turn.starts:
            assert start.leaf.key not in self.running
            self.running[start.leaf.key] = start.attempt
        assert len({abort.key for abort in turn.aborts}) == len(turn.aborts)
        self.aborting |= {abort.key: abort.reason for abort in turn.aborts}
        if self.on_turn is not None:
            self.on_turn(self)
        if self.aborting and self._aborts_at_once:
            for key in sorted(self.aborting):
                del self.running[key]
                reports.abort_attempt(run, key, self.aborting.pop(key))
            return True
        due_ms = run.next_due_ms()
        if due_ms is not None and due_ms <= self.now_ms:
            run.pass_time(self.now_ms)
            return True
        return False

    def _run_out(self, key: NodeKey) -> None:
        if self.rows.approvals[key].status is ApprovalStatus.REQUESTED:
            self.rows.approvals[key] = ApprovalFact(
                ApprovalStatus.DENIED, None, TIMEOUT_USER, self.now_ms
            )
            fields = {"nodeId": key.node_id, "iteration": key.iteration}
            self.rows.history.append((EventType.APPROVAL_DENIED, fields))

    def _commit(self, run: Progress, turn: Turn) -> None:
        self.commit_count += 1
        if self.commit_count in self._die_before:
            raise Died
        rows = self.rows
        assert not rows.status.is_terminal, "a run that is over writes nothing"
        _commit_nodes(rows, turn, self.now_ms)
        _commit_waits(rows, turn, self.now_ms)
        if turn.frame is not None:
            previous = rows.frames[-1] if rows.frames else ""
            rows.frames.append(restore(previous, turn.frame.encoding, turn.frame.body))
            rows.hashes.append(turn.frame.xml_hash)
            assert turn.frame.frame_no == run.frame_no == len(rows.frames)
        rows.status = turn.status or rows.status
        rows.history += [(event.type, dict(event.fields)) for event in turn.events]
        if turn.ending is not None:
            ending = turn.ending
            rows.history += [(event.type, dict(event.fields)) for event in ending.events]
            rows.status, rows.due_ms = ending.status, ending.due_ms
            rows.error, rows.output = ending.error, ending.output
            rows.children += [] if ending.successor is None else [ending.successor]
        rows.has_cleanup = bool(run.open_tries)
        run.commit(self.now_ms)
        if self.commit_count in self._die_after and turn.ending is None:
            raise Died


def _commit_nodes(rows: Rows, turn: Turn, now_ms: int) -> None:
    for key, fact in turn.nodes.items():
        rows.nodes[key] = (
            fact._replace(started_ms=now_ms)
            if key in turn.started or fact.state.is_waiting
            else fact
        )
    rows.loops |= turn.loops
    rows.tries |= turn.tries
    rows.children += turn.children
    rows.abandoned += turn.abandoned
    for child in turn.children:
        assert child.key is not None
        rows.ends.pop(child.key, None)
    rows.attempts += [(_name(end.key), end.attempt, end.state) for end in turn.attempts]


def _commit_waits(rows: Rows, turn: Turn, now_ms: int) -> None:
    for key, request in turn.approvals:
        known = rows.approvals.get(key)
        if request is not None:
            rows.approvals[key] = ApprovalFact(ApprovalStatus.REQUESTED)
            rows.requests[key] = orjson.loads(request)
        elif known is not None and known.status is ApprovalStatus.REQUESTED:
            rows.approvals[key] = ApprovalFact(ApprovalStatus.CANCELLED, decided_ms=now_ms)
    consumed = {seq for seq, _ in turn.signals}
    assert len(consumed) == len(turn.signals), "a signal was taken twice"
    assert consumed <= {signal.seq for signal in rows.signals}, "a signal was taken again"
    rows.signals = [signal for signal in rows.signals if signal.seq not in consumed]


def _name(key: NodeKey) -> str:
    return f"{key.node_id}#{key.iteration}" if key.iteration else str(key.node_id)


def _told(kind: EventType, fields: dict[str, Any]) -> str:
    """Tell an event in a few words: its type, its node, and what is worth knowing."""
    words = [str(kind)]
    if "nodeId" in fields:
        words.append(_name(NodeKey(fields["nodeId"], fields["iteration"])))
    words += [
        str(fields[name])
        for name in ("frameNo", "attempt", "status", "reason", "signalName")
        if name in fields
    ]
    return " ".join(words)
