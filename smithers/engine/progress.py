"""A run's progress through its tree: reports and news go in, turns come out. Pure: no clock, no I/O, no randomness.

The executor applies what happened (reports, a decision, time passing), then asks for the turn: everything
that is committed together, and what may start afterwards. Facts are updated at once, so that one turn contains a result and
its consequences; the facts that task bodies read (`committed`) are updated only after the commit is confirmed.

Building a progress from the facts of any commit and continuing gives the same history as an uninterrupted run.
"""

from collections.abc import Collection, Mapping
from typing import Final

from smithers.engine import children, places, ready, reports, try_blocks, waits
from smithers.engine.children import find_continuation
from smithers.engine.drawing import xml_of
from smithers.engine.endings import end_or_park, find_failure
from smithers.engine.facts import ApprovalFact, EndFact, Facts, NodeKey, Problem, SignalFact
from smithers.engine.frames import FrameLog
from smithers.engine.rendering import Renderer
from smithers.engine.run_state import RunState
from smithers.engine.schedule import Schedule
from smithers.engine.turn import Abort, Turn
from smithers.errors import WorkflowError
from smithers.events import EventType
from smithers.states import AttemptState, NodeState, RunStatus

DEFAULT_CONCURRENCY: Final = 32
MAX_RENDERS: Final = 100  # in one turn: the rest follows in the next, after other runs
CLEAN_UP_MS: Final = 60_000  # the total time of a run's clean-up


class Progress(RunState):
    """A run's state, and its planner: what happened is applied, `plan` says what follows, `commit` that it is stored.

    A plan depends on the facts, the tree and the time that it is given, and on nothing else. Nothing of a turn may be acted
    upon before its commit. It is a RunState, instead of having one, because each event of each node passes through here.
    """

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
        """Take up a run. `facts` and `committed` are equal but separate objects; both are kept and changed."""
        super().__init__(
            renderer=renderer, facts=facts, committed=committed, max_concurrency=max_concurrency
        )
        self.failure = find_failure(facts)
        self.continuation = find_continuation(facts)
        self._frames = FrameLog(frame_no, xml_hash)
        self._loop_paths: Mapping[str, tuple[str, ...]] = facts.loop_paths()

    # What happened.

    def take_up(self, before: RunStatus, *, is_new: bool) -> None:
        """Continue where the last owner left the run; its attempts died with it.

        `before`: the status in which the run was claimed. `is_new`: it is claimed for the first time.
        """
        is_new_era = before is RunStatus.QUEUED and not is_new
        if before.is_parked or is_new_era:
            self.note(EventType.RUN_STARTED)
            self.turn.status = RunStatus.RUNNING
        if is_new_era:
            # Failed nodes are tried again.
            self.turn.tries.update(try_blocks.reopen(self.facts))
            self.open_tries.update(self.turn.tries)
            self.failure = find_failure(self.facts)
        for key, fact in list(self.facts.nodes.items()):
            if fact.state is NodeState.IN_PROGRESS:
                reports.lose_attempt(self, key)

    def start_only(self, keys: set[NodeKey] | None) -> None:
        """Start only these (None: everything again): suspects of a crash are tried alone."""
        self.allowed = keys

    def cancel(self) -> None:
        """Begin to cancel the run: no other end is possible any more."""
        self.is_cancelling = True

    def take_news(
        self,
        *,
        approvals: dict[NodeKey, ApprovalFact],
        ends: dict[NodeKey, EndFact],
        signals: Collection[SignalFact],
    ) -> None:
        """Apply news: each decision, end and signal is passed once.

        Earlier decisions stay known, for a task that is tried again, and ends and signals until a node takes them.
        """
        self.facts.approvals.update(approvals)
        self.facts.ends.update(ends)
        self.facts.signals.extend(signals)
        waits.take_news(self, approvals.keys() | ends.keys(), has_signals=bool(signals))

    def pass_time(self, now_ms: int) -> None:
        """Apply what has become due: timers, waits' time-outs, back-offs' ends."""
        if self.rendered is None:
            return
        for key in self.dues.take(now_ms, self.facts):
            fact, leaf = self.facts.nodes[key], self.find_leaf(key)
            if leaf is None:
                continue
            if fact.state is NodeState.PENDING:
                self.make_ready(leaf)
            elif fact.state.is_waiting:
                waits.run_out(self, leaf, fact, now_ms)

    # The turn.

    def plan(self, now_ms: int) -> Turn:
        """Return the turn that follows from everything that happened; deterministic."""
        turn = self.turn
        self.is_cut_short = False
        if not self.is_ending:
            try:
                self._go_on(now_ms)
            except WorkflowError as error:
                self.fail(self.renderer.problem_of(error))
        if self.is_ending:
            self._clean_up(now_ms)
            kept = self.rendered.mounted.leaves if self.is_cleaning and self.rendered else {}
            turn.aborts = [Abort(key, self.reason) for key in sorted(self.in_flight - kept.keys())]
        else:  # except nodes that came back into the tree
            turn.aborts = [abort for abort in turn.aborts if self.find_leaf(abort.key) is None]
        turn.ending = end_or_park(self, now_ms)
        return turn

    def retract_ending(self) -> None:
        """Revert the end in a turn that was not committed because of news that it did not take into account."""
        self.turn.ending = None

    def refuse_runs(self, problem: Problem) -> None:
        """Fail what would start other runs with this turn, as one of these exists already; the rest of the turn stands."""
        if self.turn.ending is not None and self.turn.ending.successor is not None:
            self.retract_ending()
            children.refuse_successor(self, problem)
            self.fail(problem)
        for child in list(self.turn.children):
            assert child.key is not None
            children.refuse(self, child.key, problem)

    def refuse_turn(self, problem: Problem) -> None:
        """Revert a turn that the database refuses, and fail the run with that error, instead of any earlier one.

        Results that cannot be stored count as failed; starts of the turn are dropped, and there is no clean-up.
        """
        refused = self._drop_turn()
        self.failure = problem
        for end in refused.attempts:
            fact = self.facts.nodes[end.key]
            self.turn.attempts.append(end._replace(state=AttemptState.FAILED, error=problem))
            self.put(end.key, fact._replace(state=NodeState.FAILED, error=problem))
            error = problem.to_wire()
            self.say(EventType.NODE_FAILED, end.key, attempt=end.attempt, error=error)

    def commit(self, now_ms: int) -> None:
        """Record that the turn was committed, at the database's time."""
        turn, self.turn = self.turn, Turn()
        for key, fact in turn.nodes.items():
            known = fact
            if key in turn.started or fact.state.is_waiting:
                known = fact._replace(started_ms=now_ms)
                self.facts.put(key, known)
            self.committed.put(key, known)
        self.committed.loops.update(turn.loops)
        self.committed.tries.update(turn.tries)
        for change in turn.approvals:
            self.facts.approvals.pop(change.key, None)  # asked again: older answers are void
        if turn.frame is not None:
            self._frames.commit(turn.frame)

    @property
    def frame_no(self) -> int:
        """The number of the newest frame, this turn's included."""
        return self._frames.frame_no if self.turn.frame is None else self.turn.frame.frame_no

    # Inside.

    def _go_on(self, now_ms: int) -> None:
        """Render, open and start until nothing more follows, or the turn has grown long."""
        renders, is_moving = 0, True
        while is_moving and self._may_go_on:
            if self.needs_render:
                self.is_cut_short = renders >= MAX_RENDERS
                if self.is_cut_short:
                    return
                renders += 1
                self._render()
                # That may have ended waits, and made the tree outdated again: then nothing starts from it.
                continue
            assert self.schedule is not None
            # First: no row records that a loop has failed the run, so a new owner must find that before anything starts.
            if self._end_parts(self.schedule):
                continue
            self._open(self.schedule, now_ms)
            self.pass_time(now_ms)
            is_moving = self.schedule.has_news or self.needs_render
            if not is_moving and self._may_go_on:
                ready.start(self, now_ms)
                is_moving = self.needs_render

    @property
    def _may_go_on(self) -> bool:
        return (self.failure is None and self.continuation is None) or self.is_stopped

    @property
    def _may_begin(self) -> bool:
        # Otherwise nodes after a failed one would start: a failed node is settled, too.
        return self._may_go_on and not self.is_overtaken

    def _end_parts(self, schedule: Schedule) -> bool:
        """Begin Trys; continue loops and Trys that a render saw end. Say whether to render before anything else."""
        for place in schedule.take_reached_tries():
            if self._may_begin:
                try_blocks.enter(self, place)
        loops, ended_tries = schedule.take_ended()
        # A tree that will be remounted shows then what has ended in it.
        if self.is_overtaken or not (loops or ended_tries):
            return self.needs_render
        self.needs_render = True
        if self.is_render_fresh:  # otherwise a loop's `until`, or a Try's body, may have changed
            for loop in loops:
                places.end_iteration(self, loop)
            for place in ended_tries:
                try_blocks.end_phase(self, place)
        return True

    def _open(self, schedule: Schedule, now_ms: int) -> None:
        for leaf in schedule.take_opened():
            if self._may_begin:
                places.open_leaf(self, leaf, now_ms)

    def _clean_up(self, now_ms: int) -> None:
        """Clean up, within the time limit; without a tree there is nothing to clean up."""
        if not (self.open_tries or self.is_stopped):
            return
        ends_ms = self.cleanup_ends_ms
        if ends_ms is not None and now_ms >= ends_ms:
            self.schedule = None
            return
        try:
            if ends_ms is None:
                self.cleanup_ends_ms = now_ms + CLEAN_UP_MS
                self.is_stopped = True
                if self.rendered is None:
                    self._render()
                try_blocks.stop_all(self)
                self.needs_render = True
            self._go_on(now_ms)
        except WorkflowError:
            self.schedule = None

    def _render(self) -> None:
        self.convergence.count_render()
        rendered = self.renderer.render(self.facts, self._loop_paths, is_stopped=self.is_stopped)
        xml = xml_of(rendered.mounted, self.renderer.workflow.name)
        before, self.rendered = self.rendered, rendered
        self._loop_paths = {**self._loop_paths, **rendered.mounted.loop_paths}
        self.needs_render = self.is_overtaken = False
        self.is_render_fresh = True
        self.ready.clear()
        places.record_places(self, rendered, before)
        self._record_frame(xml)
        rendered.context.go_live(self.committed)
        self.schedule = Schedule(rendered.mounted, self.facts)
        waits.take_all(self)
        waits.watch_all(self)

    def _record_frame(self, xml: str) -> None:
        """Record the last tree of a turn, if it differs from that of the turn before."""
        events = self.turn.events
        if self.turn.frame is not None:
            events.remove(self.turn.frame.event)
        self.turn.frame = self._frames.next(xml)
        if self.turn.frame is not None:
            events.append(self.turn.frame.event)

    def _drop_turn(self) -> Turn:
        """Go back to the last commit, without any clean-up; return the turn that is given up."""
        dropped, self.turn = self.turn, Turn()
        self.in_flight -= dropped.started
        for key in dropped.nodes:
            if (known := self.committed.nodes.get(key)) is None:
                self.facts.forget(key)
            else:
                self.facts.put(key, known)
        self.facts.loops = {**self.committed.loops}
        self.facts.tries = {**self.committed.tries}
        self.cleanup_ends_ms, self.is_stopped = 0, True
        self.waiting = {key for key, fact in self.facts.nodes.items() if fact.state.is_waiting}
        return dropped
