"""A run's way through its tree: what has happened goes in, turns come out. Pure: no clock, no I/O, no randomness.

The executor tells what happened (an attempt ended, a decision came, time passed), then asks for the turn: everything to be
committed together, and what may start once it is. Facts are taken in at once, so that one turn holds a result and all that
follows from it; what task bodies read (`committed`) follows only when the commit is known to have happened.

Building a progress from the facts of any commit and going on gives the same history as never having stopped.
"""

import heapq
from collections.abc import Mapping
from typing import Any, Final

from smithers.engine import waits
from smithers.engine.endings import find_ending
from smithers.engine.facts import Facts, LoopFact, NodeFact, NodeKey, Problem, written_id
from smithers.engine.frames import hash_of, next_frame, xml_of
from smithers.engine.mount import LeafPlace, LoopPlace
from smithers.engine.rendering import Rendered, Renderer, author_traceback
from smithers.engine.retrying import backoff_ms
from smithers.engine.schedule import Schedule
from smithers.engine.turn import Abort, AttemptEnd, EventDraft, Start, Turn
from smithers.errors import WorkflowError
from smithers.events import EventType
from smithers.states import AttemptState, NodeState, RunStatus
from smithers.tree import Approval, Leaf, OnMaxReached, Signal, Task, Timer

DEFAULT_CONCURRENCY: Final = 32

UNCHOSEN: Final = (
    '{"unchosen":true}'  # why a node was passed over: its branch was not taken, or it left the tree
)


class Progress:
    """One run in memory."""

    def __init__(
        self,
        *,
        renderer: Renderer,
        facts: Facts,
        committed: Facts,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        frame_no: int = 0,
        xml_hash: str | None = None,
    ) -> None:
        """Take up a run. `facts` and `committed` hold the same and are not the same object; both are kept and changed."""
        self.facts = facts
        self.committed = committed
        self.renderer = renderer
        self.is_cancelling = False
        self.failure: Problem | None = None
        self.in_flight: set[NodeKey] = set()
        self.waiting = {key for key, fact in facts.nodes.items() if fact.state.is_waiting}
        self.turn = Turn()
        self.rendered: Rendered | None = None
        self.schedule: Schedule | None = None
        self._max_concurrency = max_concurrency
        self._frame_no = frame_no
        self._committed_hash = xml_hash
        self._committed_xml: str | None = (
            None  # unknown after a take-up: the next frame is a whole one
        )
        self._xml: str | None = None
        self._frame_event = 0
        self._loop_paths: Mapping[str, tuple[str, ...]] = {}
        self._needs_render = True
        self._is_render_fresh = False
        self._ready: list[tuple[int, NodeKey]] = []
        self._due: list[tuple[int, NodeKey]] = []

    # What happened.

    def note(self, event: EventType, **fields: Any) -> None:
        """Add an event of the run itself, e.g. that it goes on after a death."""
        self.turn.events.append(EventDraft(event, fields))

    def note_status(self, status: RunStatus) -> None:
        """Let the run go on under another status."""
        self.turn.status = status

    def lose_attempt(self, key: NodeKey) -> None:
        """Take in that an attempt's process died: the node is due again, and its retries are not touched."""
        fact = self.facts.nodes[key]
        self.turn.attempts.append(
            AttemptEnd(key, fact.attempt, AttemptState.LOST, fact.started_ms, None)
        )
        self.put(key, fact.but(state=NodeState.PENDING))

    def finish_attempt(self, key: NodeKey, output: str) -> None:
        """Take in an attempt's result, JSON text."""
        fact = self._end_attempt(key, AttemptState.FINISHED, None)
        self.put(key, fact.but(state=NodeState.FINISHED, output=output, error=None))
        self.say(EventType.NODE_FINISHED, key, attempt=fact.attempt)
        self.settle(key)

    def fail_attempt(self, key: NodeKey, problem: Problem, now_ms: int) -> None:
        """Take in that an attempt failed: again after a back-off, or the node has failed."""
        fact = self._end_attempt(key, AttemptState.FAILED, problem)
        task = self._task(key)
        failures = fact.failures + 1
        self.say(EventType.NODE_FAILED, key, attempt=fact.attempt, error=problem.to_wire())
        fact = fact.but(failures=failures, error=problem)
        if task is not None and failures <= task.retries:
            due_ms = now_ms + backoff_ms(task.retry, failures, f"{self.renderer.run_id}/{key}")
            self.put(key, fact.but(state=NodeState.PENDING, due_ms=due_ms))
            self.say(EventType.NODE_RETRYING, key, attempt=fact.attempt + 1)
            self.at(due_ms, key)
            return
        self.put(key, fact.but(state=NodeState.FAILED))
        if task is None or not task.continue_on_fail:
            self.fail(problem)
        self.settle(key)

    def abort_attempt(self, key: NodeKey, reason: str) -> None:
        """Take in that an attempt was stopped on purpose."""
        fact = self._end_attempt(key, AttemptState.CANCELLED, None)
        self.cancel_node(key, fact, reason)
        leaf = self.find_leaf(key)
        if leaf is not None and not (
            self.is_cancelling or self.failure
        ):  # back in the tree meanwhile
            self.put(key, fact.but(state=NodeState.PENDING))
            self.say(EventType.NODE_PENDING, key)
            self.make_ready(leaf)

    def print_output(self, key: NodeKey, attempt: int, text: str, stream: str) -> None:
        """Take in what a body has printed."""
        self.say(EventType.NODE_OUTPUT, key, attempt=attempt, text=text, stream=stream)

    def beat(self, key: NodeKey, attempt: int, data: str) -> None:
        """Take in what a body has reported of itself, JSON text."""
        self.put(key, self.facts.nodes[key].but(heartbeat=data))
        self.say(EventType.TASK_HEARTBEAT, key, attempt=attempt)

    def cancel(self) -> None:
        """Take in that the run is to be cancelled: the only end that it may still have."""
        self.is_cancelling = True

    def take_news(self) -> None:
        """Take in the decisions and signals that have come into the facts."""
        for key in sorted(self.waiting):
            fact, leaf = self.facts.nodes[key], self.find_leaf(key)
            if leaf is not None and fact.state is NodeState.WAITING_APPROVAL:
                waits.take_decision(self, leaf, fact)
            elif leaf is not None and fact.state is NodeState.WAITING_EVENT:
                waits.take_signal(self, leaf, fact)

    def pass_time(self, now_ms: int) -> None:
        """Take in what has become due: timers, waits' time-outs, back-offs' ends."""
        while self._due and self._due[0][0] <= now_ms:
            due_ms, key = heapq.heappop(self._due)
            fact, leaf = self.facts.nodes[key], self.find_leaf(key)
            if fact.due_ms != due_ms or leaf is None:
                continue  # settled or asked anew since
            if fact.state is NodeState.PENDING:
                self.make_ready(leaf)
            elif fact.state.is_waiting:
                waits.run_out(self, leaf, fact, now_ms)

    # The turn.

    def plan(self, now_ms: int) -> Turn:
        """Say what is due by all that happened; the same happenings give the same turn."""
        turn = self.turn
        if not (self.is_cancelling or self.failure):
            try:
                self._go_on(now_ms)
            except WorkflowError as error:
                trace = author_traceback(error.__cause__ or error)
                self.fail(Problem(type(error).__name__, str(error), error.code, traceback=trace))
        if self.is_cancelling or self.failure:
            reason = "run-cancelled" if self.is_cancelling else "run-failed"
            turn.aborts = [Abort(key, reason) for key in sorted(self.in_flight)]
        turn.ending = find_ending(self, now_ms)
        return turn

    def retract_ending(self) -> None:
        """Take back the end of a turn that was not committed, because something came that it did not know of."""
        self.turn.ending = None

    def refuse_turn(self, problem: Problem) -> None:
        """Take back a turn that the database does not take, and let the run fail for it."""
        refused, self.turn = self.turn, Turn()
        self.in_flight -= refused.started
        for key in refused.nodes:
            known = self.committed.nodes.get(key)
            if known is None:
                self.facts.forget(key)
            elif known.state is NodeState.IN_PROGRESS and key not in self.in_flight:
                self.put(key, known.but(state=NodeState.FAILED, error=problem))
                self.say(EventType.NODE_FAILED, key, attempt=known.attempt, error=problem.to_wire())
            else:
                self.facts.put(key, known)
        self.waiting = {key for key, fact in self.facts.nodes.items() if fact.state.is_waiting}
        self.fail(problem)

    def commit(self, now_ms: int) -> None:
        """Take in that the turn was committed, at the database's time."""
        turn, self.turn = self.turn, Turn()
        for key, fact in turn.nodes.items():
            known = fact
            if key in turn.started:
                known = fact.but(started_ms=now_ms)
                self.facts.put(key, known)
            self.committed.put(key, known)
        self.committed.loops.update(turn.loops)
        if turn.frame is not None:
            self._frame_no = turn.frame.frame_no
            self._committed_xml, self._committed_hash = self._xml, turn.frame.xml_hash

    @property
    def frame_no(self) -> int:
        """The number of the newest frame, this turn's included."""
        return self._frame_no if self.turn.frame is None else self.turn.frame.frame_no

    def next_due_ms(self) -> int | None:
        """Say when time alone makes something due."""
        while self._due:
            due_ms, key = self._due[0]
            fact = self.facts.nodes[key]
            if fact.due_ms == due_ms and not fact.state.is_settled:
                return due_ms
            heapq.heappop(self._due)
        return None

    # What the modules beside this one work with.

    def find_leaf(self, key: NodeKey) -> LeafPlace | None:
        """Find a node's place in the tree of the last render."""
        return None if self.rendered is None else self.rendered.mounted.leaves.get(key)

    def put(self, key: NodeKey, fact: NodeFact) -> None:
        """Write down what is now known of a node; a builder that asked about it renders again."""
        before = self.facts.nodes.get(key)
        self.facts.put(key, fact)
        self.turn.nodes[key] = fact
        if fact.state.is_waiting:
            self.waiting.add(key)
        else:
            self.waiting.discard(key)
        if self.rendered is None or (before is not None and before.state is fact.state):
            return
        reads, node_id = self.rendered.reads, written_id(key.node_id)
        is_output = fact.state is NodeState.FINISHED and node_id in reads.outputs
        if is_output or node_id in reads.states:
            self._needs_render = True

    def say(self, event: EventType, key: NodeKey, **fields: Any) -> None:
        """Add an event of a node."""
        node = {"nodeId": key.node_id, "iteration": key.iteration}
        self.turn.events.append(EventDraft(event, {**node, **fields}))

    def settle(self, key: NodeKey) -> None:
        """Let the tree move on past a node; the facts say that it is settled."""
        self._is_render_fresh = False
        if self.schedule is not None:
            self.schedule.settle(key)

    def fail(self, problem: Problem) -> None:
        """Let the run fail, unless something else has failed it before."""
        self.failure = self.failure or problem

    def at(self, due_ms: int, key: NodeKey) -> None:
        """Have a node looked at when its time comes."""
        heapq.heappush(self._due, (due_ms, key))

    def make_ready(self, leaf: LeafPlace) -> None:
        """Let a task start as soon as there is room."""
        heapq.heappush(self._ready, (leaf.position, leaf.key))

    def cancel_node(self, key: NodeKey, fact: NodeFact, reason: str) -> None:
        """Write down that a node will not go on, and withdraw what it asked of the outside."""
        waits.withdraw(self, key, fact)
        self.put(key, fact.but(state=NodeState.CANCELLED, due_ms=None))
        self.say(EventType.NODE_CANCELLED, key, reason=reason)

    # Inside.

    def _go_on(self, now_ms: int) -> None:
        is_moving = True
        while is_moving and self.failure is None:
            if self._needs_render:
                self._render()
            assert self.schedule is not None
            for leaf in self.schedule.take_opened():
                self._open(leaf, now_ms)
            for loop in self.schedule.take_ended_loops():
                self._turn_loop(loop)
            is_moving = self._needs_render or self.schedule.has_news
            if not is_moving and self.failure is None:
                self._start_ready()
                is_moving = self._needs_render

    def _render(self) -> None:
        rendered = self.renderer.render(self.facts, self._loop_paths)
        before, self.rendered = self.rendered, rendered
        self._loop_paths = {**self._loop_paths, **rendered.mounted.loop_paths}
        self._needs_render = False
        self._is_render_fresh = True
        self._ready.clear()
        self._record_places(before)
        self._record_frame(xml_of(rendered.mounted, self.renderer.workflow.name))
        rendered.context.go_live(self.committed)
        self.schedule = Schedule(rendered.mounted, self.facts)
        self.take_news()

    def _record_frame(self, xml: str) -> None:
        xml_hash = hash_of(xml)
        if self.turn.frame is None and xml_hash == self._committed_hash:
            return
        frame = next_frame(self._frame_no + 1, xml, self._committed_xml)
        event = EventDraft(
            EventType.FRAME_COMMITTED, {"frameNo": frame.frame_no, "xmlHash": frame.xml_hash}
        )
        if self.turn.frame is None:
            self._frame_event = len(self.turn.events)
            self.turn.events.append(event)
        else:  # one turn, one frame: the last tree
            self.turn.events[self._frame_event] = event
        self.turn.frame = frame
        self._xml = xml

    def _record_places(self, before: Rendered | None) -> None:
        """Write down what the new tree says of nodes that have not run: pending, passed over, gone."""
        assert self.rendered is not None
        mounted = self.rendered.mounted
        was_mounted = before.mounted.leaves if before is not None else {}
        for key, leaf in mounted.leaves.items():
            fact = self.facts.nodes.get(key)
            if fact is None:
                self.put(key, _new_fact(leaf.element))
            elif fact.wait == UNCHOSEN and fact.state is NodeState.SKIPPED:
                self.put(key, fact.but(state=NodeState.PENDING, wait=None))
            elif fact.state is NodeState.CANCELLED and key not in was_mounted:
                self.put(key, fact.but(state=NodeState.PENDING))
            else:
                continue
            self.say(EventType.NODE_PENDING, key)
        for key, unchosen in mounted.unchosen.items():
            self._pass_over(key, unchosen)
        for key in [*was_mounted] if before is not None else sorted(self.waiting):
            if key not in mounted.leaves and key not in mounted.unchosen:
                self._pass_over(key, None)

    def _pass_over(self, key: NodeKey, leaf: Leaf | None) -> None:
        fact = self.facts.nodes.get(key) or (None if leaf is None else _new_fact(leaf))
        if fact is None:
            return
        if key in self.in_flight:
            self.turn.aborts.append(Abort(key, "unmounted"))
        elif fact.state.is_waiting:
            self.cancel_node(key, fact, "unmounted")
        elif fact.state is NodeState.PENDING:
            self.put(key, fact.but(state=NodeState.SKIPPED, wait=UNCHOSEN, due_ms=None))
            self.say(EventType.NODE_SKIPPED, key)

    def _open(self, leaf: LeafPlace, now_ms: int) -> None:
        """Begin with a leaf whose turn has come."""
        key, element = leaf.key, leaf.element
        fact = self.facts.nodes[key]
        if key in self.in_flight or fact.state.is_settled:
            return
        if fact.state.is_waiting:
            if fact.due_ms is not None:
                self.at(fact.due_ms, key)
        elif element.skip_if or self._lacks_needs(element):
            self.put(key, fact.but(state=NodeState.SKIPPED))
            self.say(EventType.NODE_SKIPPED, key)
            self.settle(key)
        elif isinstance(element, Approval | Signal | Timer):
            waits.begin(self, leaf, fact, now_ms)
        elif fact.due_ms is not None and fact.due_ms > now_ms:
            self.at(fact.due_ms, key)
        elif not element.needs_approval or waits.is_let_through(self, leaf, fact, now_ms):
            self.make_ready(leaf)

    def _lacks_needs(self, element: Leaf) -> bool:
        if not isinstance(element, Task) or not element.needs:
            return False
        assert self.rendered is not None
        for node_id in element.needs.values():
            key = self.rendered.mounted.resolve(node_id, self.facts)
            fact = None if isinstance(key, str) else self.facts.nodes.get(key)
            if fact is None or fact.state is not NodeState.FINISHED:
                return True
        return False

    def _start_ready(self) -> None:
        while self._ready and len(self.in_flight) < self._max_concurrency:
            _, key = heapq.heappop(self._ready)
            leaf, fact = self.find_leaf(key), self.facts.nodes[key]
            if leaf is None or key in self.in_flight or fact.state is not NodeState.PENDING:
                continue
            attempt = fact.attempt + 1
            self.in_flight.add(key)
            self.turn.started.add(key)
            self.turn.starts.append(Start(leaf, attempt))
            self.put(key, fact.but(state=NodeState.IN_PROGRESS, attempt=attempt, due_ms=None))
            self.say(EventType.NODE_STARTED, key, attempt=attempt)

    def _turn_loop(self, loop: LoopPlace) -> None:
        """Decide what follows an iteration that has ended; `until` counts only if nothing came since its render."""
        self._needs_render = True
        if not self._is_render_fresh:
            return
        element, iteration = loop.element, loop.fact.iteration
        if not element.until and iteration + 1 < element.max_iterations:
            fact = LoopFact(iteration + 1, is_done=False)
        else:
            fact = LoopFact(iteration, is_done=True)
            if not element.until and element.on_max_reached is OnMaxReached.FAIL:
                text = f"loop {element.id!r} did not come to its end in {element.max_iterations} iterations"
                self.fail(Problem("LoopExhausted", text, "LOOP_EXHAUSTED"))
        self.facts.loops[loop.loop_id] = fact
        self.turn.loops[loop.loop_id] = fact

    def _end_attempt(self, key: NodeKey, state: AttemptState, problem: Problem | None) -> NodeFact:
        fact = self.facts.nodes[key]
        self.in_flight.discard(key)
        self.turn.attempts.append(AttemptEnd(key, fact.attempt, state, fact.started_ms, problem))
        return fact

    def _task(self, key: NodeKey) -> Task[Any] | None:
        leaf = self.find_leaf(key)
        return leaf.element if leaf is not None and isinstance(leaf.element, Task) else None


def _new_fact(leaf: Leaf) -> NodeFact:
    return NodeFact(NodeState.PENDING, kind=type(leaf).__name__.lower(), label=leaf.label)
