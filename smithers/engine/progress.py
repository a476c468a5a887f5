"""A run's way through its tree: what has happened goes in, turns come out. Pure: no clock, no I/O, no randomness.

The executor tells what happened (an attempt ended, a decision came, time passed), then asks for the turn: everything
to be committed together, and what may start once it is. Facts are taken in at once, so that one turn holds a result and
all that follows from it; what task bodies read (`committed`) follows only when the commit is known to have happened.

Building a progress from the facts of any commit and going on gives the same history as never having stopped.
"""

import heapq
from collections.abc import Mapping
from typing import Any, Final

from smithers.engine import places, waits
from smithers.engine.dues import Dues
from smithers.engine.endings import find_ending, find_failure
from smithers.engine.facts import TOLERATED, Facts, NodeFact, NodeKey, Problem, written_id
from smithers.engine.frames import FrameLog, xml_of
from smithers.engine.mount import LeafPlace, LoopPlace
from smithers.engine.rendering import Rendered, Renderer, author_traceback
from smithers.engine.retrying import backoff_ms
from smithers.engine.schedule import Schedule
from smithers.engine.turn import Abort, AttemptEnd, EventDraft, Start, Turn
from smithers.errors import RenderFailed, WorkflowError
from smithers.events import EventType
from smithers.states import AttemptState, NodeState, RunStatus
from smithers.tree import Task

DEFAULT_CONCURRENCY: Final = 32
MAX_RENDERS: Final = 100  # in one turn: the rest follows in the next, and others get theirs
MAX_IDLE_RENDERS: Final = 50  # each different from the one before, and nothing settled by any


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
        self.failure: Problem | None = find_failure(facts)
        self.is_cut_short = False  # the turn has grown long: there is more to be planned at once
        self.in_flight: set[NodeKey] = set()
        self.lost: set[NodeKey] = set()  # their attempts died with their process; not begun again
        self.waiting = {key for key, fact in facts.nodes.items() if fact.state.is_waiting}
        self.turn = Turn()
        self.rendered: Rendered | None = None
        self.schedule: Schedule | None = None
        self._max_concurrency = max_concurrency
        self._frames = FrameLog(frame_no, xml_hash)
        self._loop_paths: Mapping[str, tuple[str, ...]] = facts.loop_paths()
        self._only: set[NodeKey] | None = None
        self._needs_render = True
        self._is_render_fresh = False
        self._idle_renders = 0
        self._ready: list[tuple[int, NodeKey]] = []
        self._dues = Dues()

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
        self.lost.add(key)

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
            if self.is_ending:  # nothing starts any more: the other retries are for a resume
                self.put(key, fact.but(state=NodeState.PENDING))
                return
            due_ms = now_ms + backoff_ms(task.retry, failures, f"{self.renderer.run_id}/{key}")
            self.put(key, fact.but(state=NodeState.PENDING, due_ms=due_ms))
            self.say(EventType.NODE_RETRYING, key, attempt=fact.attempt + 1)
            self.at(due_ms, key)
            return
        is_tolerated = task is None or task.continue_on_fail  # None: it has left the tree
        wait = TOLERATED if is_tolerated else None
        self.put(key, fact.but(state=NodeState.FAILED, wait=wait))
        if not is_tolerated:
            self.fail(problem)
        self.settle(key)

    def abort_attempt(self, key: NodeKey, reason: str) -> None:
        """Take in that an attempt was stopped on purpose."""
        fact = self._end_attempt(key, AttemptState.CANCELLED, None)
        self.cancel_node(key, fact, reason)
        if self.is_ending:
            return
        if self.find_leaf(key) is None:
            self.settle(key)  # out of the way of who waits for it
            return
        self.put(key, fact.but(state=NodeState.PENDING))  # back in the tree meanwhile
        self.say(EventType.NODE_PENDING, key)
        self._needs_render = True

    def print_output(self, key: NodeKey, attempt: int, text: str, stream: str) -> None:
        """Take in what a body has printed."""
        sound = text.encode("utf-8", "replace").decode()
        self.say(EventType.NODE_OUTPUT, key, attempt=attempt, text=sound, stream=stream)

    def beat(self, key: NodeKey, attempt: int, data: str) -> None:
        """Take in what a body has reported of itself, JSON text."""
        self.put(key, self.facts.nodes[key].but(heartbeat=data))
        self.say(EventType.TASK_HEARTBEAT, key, attempt=attempt)

    def start_only(self, keys: set[NodeKey] | None) -> None:
        """Start nothing but these (None: everything again): what is under suspicion of a crash is tried alone."""
        self._only = keys

    @property
    def is_held(self) -> bool:
        """Not everything that is due may start here."""
        return self._only is not None

    def cancel(self) -> None:
        """Take in that the run is to be cancelled: the only end that it may still have."""
        self.is_cancelling = True

    def take_news(self) -> None:
        """Take in the decisions and signals that have come into the facts; the first in the tree is served first."""
        leaves = [leaf for key in self.waiting if (leaf := self.find_leaf(key)) is not None]
        for leaf in sorted(leaves, key=lambda leaf: leaf.position):
            fact = self.facts.nodes[leaf.key]
            if not waits.fits(leaf.element, fact.state) or self.is_just_asked(leaf.key):
                continue
            if fact.state is NodeState.WAITING_APPROVAL:
                waits.take_decision(self, leaf, fact)
            elif fact.state is NodeState.WAITING_EVENT:
                waits.take_signal(self, leaf, fact)

    def pass_time(self, now_ms: int) -> None:
        """Take in what has become due: timers, waits' time-outs, back-offs' ends."""
        if self.rendered is None:
            return
        for key in self._dues.take(now_ms, self.facts):
            fact, leaf = self.facts.nodes[key], self.find_leaf(key)
            if leaf is None:
                continue
            if fact.state is NodeState.PENDING:
                self.make_ready(leaf)
            elif fact.state.is_waiting:
                waits.run_out(self, leaf, fact, now_ms)

    # The turn.

    def plan(self, now_ms: int) -> Turn:
        """Say what is due by all that happened; the same happenings give the same turn."""
        turn = self.turn
        if not self.is_ending:
            try:
                self._go_on(now_ms)
            except WorkflowError as error:
                trace = author_traceback(error.__cause__ or error)
                self.fail(Problem(type(error).__name__, str(error), error.code, traceback=trace))
        if self.is_ending:
            reason = "run-cancelled" if self.is_cancelling else "run-failed"
            turn.aborts = [Abort(key, reason) for key in sorted(self.in_flight)]
        else:  # but for what came back into the tree
            turn.aborts = [abort for abort in turn.aborts if self.find_leaf(abort.key) is None]
        turn.ending = find_ending(self, now_ms)
        return turn

    def retract_ending(self) -> None:
        """Take back the end of a turn that was not committed, because something came that it did not know of."""
        self.turn.ending = None

    def refuse_turn(self, problem: Problem) -> None:
        """Take back a turn that the database does not take, and let the run fail for it, whatever it failed for before.

        What had come out and cannot be kept counts as failed; what was to be started is not.
        """
        refused, self.turn = self.turn, Turn()
        self.in_flight -= refused.started
        for key in refused.nodes:
            if (known := self.committed.nodes.get(key)) is None:
                self.facts.forget(key)
            else:
                self.facts.put(key, known)
        self.facts.loops = {**self.committed.loops}
        self.waiting = {key for key, fact in self.facts.nodes.items() if fact.state.is_waiting}
        self.failure = problem
        for end in refused.attempts:
            fact = self.facts.nodes[end.key]
            self.turn.attempts.append(end._replace(state=AttemptState.FAILED, error=problem))
            self.put(end.key, fact.but(state=NodeState.FAILED, error=problem))
            error = problem.to_wire()
            self.say(EventType.NODE_FAILED, end.key, attempt=end.attempt, error=error)

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
        for change in turn.approvals:
            self.facts.approvals.pop(change.key, None)  # asked anew: an older answer is none
        if turn.frame is not None:
            self._frames.commit(turn.frame)

    @property
    def frame_no(self) -> int:
        """The number of the newest frame, this turn's included."""
        return self._frames.frame_no if self.turn.frame is None else self.turn.frame.frame_no

    def next_due_ms(self) -> int | None:
        """Say when time alone makes something due; 0 where the last turn was cut short."""
        if self.is_cut_short:
            return 0
        return self._dues.next_ms(self.facts)

    # What the modules beside this one work with.

    @property
    def is_ending(self) -> bool:
        """Nothing starts any more."""
        return self.is_cancelling or self.failure is not None

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
        if fact.state is not NodeState.PENDING:
            self.lost.discard(key)
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
        self._idle_renders = 0
        if self.schedule is not None:
            self.schedule.settle(key)

    def fail(self, problem: Problem) -> None:
        """Let the run fail, unless something else has failed it before."""
        self.failure = self.failure or problem

    def at(self, due_ms: int, key: NodeKey) -> None:
        """Have a node looked at when its time comes."""
        self._dues.add(due_ms, key)

    def make_ready(self, leaf: LeafPlace) -> None:
        """Let a task start as soon as the run has room; one whose turn has not come is left to its opening."""
        if not leaf.is_open:
            return
        heapq.heappush(self._ready, (leaf.position, leaf.key))

    def is_just_asked(self, key: NodeKey) -> bool:
        """Say whether a question is so new that nobody can have seen it: it is not committed."""
        return any(change.key == key and change.request for change in self.turn.approvals)

    def cancel_node(self, key: NodeKey, fact: NodeFact, reason: str) -> None:
        """Write down that a node will not go on, and withdraw what it asked of the outside."""
        waits.withdraw(self, key, fact)
        self.put(key, fact.but(state=NodeState.CANCELLED, due_ms=None))
        self.say(EventType.NODE_CANCELLED, key, reason=reason)

    # Inside.

    def _go_on(self, now_ms: int) -> None:
        self.is_cut_short, renders = False, 0
        is_moving = True
        while is_moving and self.failure is None:
            if self._needs_render:
                self.is_cut_short = renders >= MAX_RENDERS
                if self.is_cut_short:
                    return
                renders += 1
                self._render()
            assert self.schedule is not None
            for leaf in self.schedule.take_opened():
                places.open_leaf(self, leaf, now_ms)
            self.pass_time(now_ms)
            for loop in self.schedule.take_ended_loops():
                self._turn_loop(loop)
            is_moving = self._needs_render or self.schedule.has_news
            if not is_moving and self.failure is None:
                self._start_ready()
                is_moving = self._needs_render

    def _render(self) -> None:
        self._idle_renders += 1
        if self._idle_renders > MAX_IDLE_RENDERS:
            raise RenderFailed("the tree does not come to rest: each render undoes the one before")
        rendered = self.renderer.render(self.facts, self._loop_paths)
        xml = xml_of(rendered.mounted, self.renderer.workflow.name)
        before, self.rendered = self.rendered, rendered
        self._loop_paths = {**self._loop_paths, **rendered.mounted.loop_paths}
        self._needs_render = False
        self._is_render_fresh = True
        self._ready.clear()
        places.record_places(self, rendered, before)
        self._record_frame(xml)
        rendered.context.go_live(self.committed)
        self.schedule = Schedule(rendered.mounted, self.facts)
        self.take_news()

    def _record_frame(self, xml: str) -> None:
        """Keep the last tree of a turn, if it is another than that of the turn before."""
        events = self.turn.events
        if self.turn.frame is not None:
            events.remove(self.turn.frame.event)
        self.turn.frame = self._frames.next(xml)
        if self.turn.frame is not None:
            events.append(self.turn.frame.event)

    def _start_ready(self) -> None:
        held_back: list[tuple[int, NodeKey]] = []
        while self._ready and len(self.in_flight) < self._max_concurrency:
            position, key = heapq.heappop(self._ready)
            if self._only is not None and key not in self._only:
                held_back.append((position, key))
                continue
            leaf, fact = self.find_leaf(key), self.facts.nodes[key]
            if leaf is None or key in self.in_flight or fact.state is not NodeState.PENDING:
                continue
            attempt = fact.attempt + 1
            self.in_flight.add(key)
            self.turn.started.add(key)
            self.turn.starts.append(Start(leaf, attempt))
            fact = fact.but(state=NodeState.IN_PROGRESS, attempt=attempt, due_ms=None, wait=None)
            self.put(key, fact)
            self.say(EventType.NODE_STARTED, key, attempt=attempt)
        for entry in held_back:
            heapq.heappush(self._ready, entry)

    def _turn_loop(self, loop: LoopPlace) -> None:
        self._needs_render = True
        if self._is_render_fresh:  # else its `until` did not know all of the iteration
            self._idle_renders = 0
            places.turn_loop(self, loop)

    def _end_attempt(self, key: NodeKey, state: AttemptState, problem: Problem | None) -> NodeFact:
        fact = self.facts.nodes[key]
        self.in_flight.discard(key)
        self.turn.attempts.append(AttemptEnd(key, fact.attempt, state, fact.started_ms, problem))
        return fact

    def _task(self, key: NodeKey) -> Task[Any] | None:
        leaf = self.find_leaf(key)
        return leaf.element if leaf is not None and isinstance(leaf.element, Task) else None
