"""Count what a child does: everything that its commits record, and its claims and releases.

Only what was committed is counted: a turn that the database did not take has not happened. From the loop's thread only.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smithers.engine.facts import NodeFact, NodeKey
from smithers.engine.turn import AttemptEnd, Ending, EventDraft, ToolCall, Turn
from smithers.events import EventType
from smithers.states import AttemptState, NodeState, RunStatus, ToolCallState
from smithers.store.claims import ClaimedRun
from smithers.store.pool_store import Burial
from smithers.telemetry import names
from smithers.telemetry.lanes import LaneMeter
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Counter, Histogram, MetricsPage
from worker.deaths import ChildEnd, DeathSign


@dataclass(slots=True)
class RunTimes:
    """The times from which durations of one claimed run are measured."""

    started_ms: int  # its first claim
    first_starts: dict[NodeKey, int] = field(default_factory=dict)  # of nodes that are tried again


class ChildMeters:
    """The counters of one child."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._events = {event: page.counter(names.EVENTS, event.value) for event in EventType}
        self._runs = {
            status: page.histogram(names.RUN_DURATION, status.value)
            for status in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED)
        }
        self._nodes = {
            state: page.histogram(names.NODE_DURATION, state.value)
            for state in (NodeState.FINISHED, NodeState.FAILED, NodeState.CANCELLED)
        }
        self._attempts = {
            state: page.histogram(names.ATTEMPT_DURATION, state.value)
            for state in AttemptState
            if state is not AttemptState.LOST  # when it died is not known
        }
        self._queue_wait = page.histogram(names.QUEUE_WAIT)
        self._approval_wait = page.histogram(names.APPROVAL_WAIT)
        self._timer_delay = page.histogram(names.TIMER_DELAY)
        self._tool_calls: dict[tuple[str, str], Counter] = {}
        self._tool_durations: dict[str, Histogram] = {}
        self._tokens: dict[tuple[str, str, str], Counter] = {}
        self._runs_started = page.counter(names.RUNS_STARTED)
        self.leases_lost = page.counter(names.LEASES_LOST)
        self.spans_dropped = page.counter(names.SPANS_DROPPED)
        self.active = page.gauge(names.NODES_ACTIVE)
        self.lanes = LaneMeter(page)

    def count_claim(self, claim: ClaimedRun) -> RunTimes:
        """Count a claim."""
        self._queue_wait.observe(max(0, claim.now_ms - claim.due_ms) / 1000)
        return RunTimes(claim.started_ms)

    def count_turn(
        self, turn: Turn, times: RunTimes, now_ms: int, before: Mapping[NodeKey, NodeFact]
    ) -> None:
        """Count a turn that was committed at the database's `now_ms`; `before`: the facts that it replaces."""
        self._count_events(turn.events)
        for end in turn.attempts:
            self._count_attempt(end, turn, times, now_ms)
        for _child in turn.children:
            self._runs_started.inc()
        for call in turn.tool_calls.values():
            self._count_call(call)
        for key, fact in turn.nodes.items():
            known = before.get(key)
            if known is not None and known.state is NodeState.WAITING_APPROVAL is not fact.state:
                self._count_answer(known, now_ms)
        if turn.ending is not None:
            self._count_ending(turn.ending, now_ms - times.started_ms)

    def _count_events(self, events: Sequence[EventDraft]) -> None:
        for event_type, fields in events:
            self._events[event_type].inc()
            if event_type is EventType.TIMER_FIRED:
                self._timer_delay.observe(fields["delayMs"] / 1000)
            elif event_type is EventType.TOKEN_USAGE_REPORTED:
                self._count_tokens(fields)

    def _count_tokens(self, used: Mapping[str, Any]) -> None:
        for direction in ("input", "output"):
            labels = (direction, used["agent"], used["model"])
            counter = self._tokens.get(labels)
            if counter is None:
                counter = self._tokens[labels] = self._page.counter(names.TOKENS, *labels)
            counter.inc(used[f"{direction}Tokens"])

    def _count_ending(self, ending: Ending, took_ms: int) -> None:
        self._count_events(ending.events)
        self._runs_started.inc(ending.successor is not None)
        duration = self._runs.get(ending.status)
        if duration is not None:
            duration.observe(took_ms / 1000)

    def _count_answer(self, question: NodeFact, now_ms: int) -> None:
        if question.started_ms is not None:
            self._approval_wait.observe((now_ms - question.started_ms) / 1000)

    def _count_attempt(self, end: AttemptEnd, turn: Turn, times: RunTimes, now_ms: int) -> None:
        if end.started_ms is None or end.state is AttemptState.LOST:
            return
        self._attempts[end.state].observe((now_ms - end.started_ms) / 1000)
        state = turn.nodes[end.key].state
        if state is NodeState.PENDING:
            times.first_starts.setdefault(end.key, end.started_ms)
            return
        node = self._nodes.get(state)
        if node is not None:
            started_ms = times.first_starts.pop(end.key, end.started_ms)
            node.observe((now_ms - started_ms) / 1000)

    def _count_call(self, call: ToolCall) -> None:
        if call.state is ToolCallState.STARTED or call.kind != "tool":
            return
        ended = (call.tool_name, call.state.value)
        counter = self._tool_calls.get(ended)
        if counter is None:
            counter = self._tool_calls[ended] = self._page.counter(names.TOOL_CALLS, *ended)
        counter.inc()
        duration = self._tool_durations.get(call.tool_name)
        if duration is None:
            duration = self._page.histogram(names.TOOL_DURATION, call.tool_name)
            self._tool_durations[call.tool_name] = duration
        duration.observe(call.took_ms / 1000)


class PoolMeters:
    """The counters of a pool's parent."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._beat = page.gauge(names.BEAT_AGE)
        self._listening = page.gauge(names.LISTENER_AGE, Role.POOL)
        self._listening.set(0.0)
        # Created at 0: if a series first appears with the value 1, Prometheus's increase() misses that first event.
        self._takeovers: dict[str, Counter] = {
            sign: page.counter(names.TAKEOVERS, sign) for sign in DeathSign
        }
        self._ends = {end: page.counter(names.CHILDREN_ENDED, end) for end in ChildEnd}

    def hear_listening(self, is_connected: bool) -> None:
        """Record that the connection for hints is up, or lost."""
        self._listening.set(time.monotonic() if is_connected else 0.0)

    def count_beat(self) -> None:
        """Record that the children's heartbeats are written."""
        self._beat.set(time.monotonic())

    def count_burial(self, death: str, burial: Burial) -> None:
        """Count a worker that was declared dead; `death`: a DeathSign, or what its parent has recorded of its end."""
        counter = self._takeovers.get(death, self._takeovers[DeathSign.EXIT])
        counter.inc(burial.handed_back)
        for event in burial.events:
            self._page.counter(names.EVENTS, event.value).inc()

    def count_end(self, end: ChildEnd, burial: Burial) -> None:
        """Count a child of this pool that has ended, and what happened to its runs."""
        self.count_burial(DeathSign.EXIT, burial)
        self._ends[end].inc()
