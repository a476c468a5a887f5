"""What the engine knows of one run while a worker holds it, and the few ways to change it. Pure.

The modules above this one decide, each about one thing: Trys, budgets, questions, children, waits, attempts, the end. They
are functions of a RunState, and call one another downwards only. What moves a run on is the Progress on top.
"""

import heapq
from typing import Any

from smithers.engine.convergence import Convergence
from smithers.engine.dues import Dues
from smithers.engine.facts import Facts, LoopFact, NodeFact, NodeKey, Problem, TryFact, written_id
from smithers.engine.mount import LeafPlace
from smithers.engine.rendering import Rendered, Renderer
from smithers.engine.schedule import Schedule
from smithers.engine.turn import EventDraft, Turn
from smithers.events import EventType
from smithers.ids import LoopId, TryId
from smithers.states import NodeState, RunStatus


class RunState:
    """One run in memory: its facts, its tree, and the turn that collects what is not committed yet.

    What `put`, `put_loop` or `put_try` sets is in `facts` and in `turn` alike, and `waiting` and `open_tries` agree with
    it. A change that the builder has read asks for a render, which only Progress makes: until then the tree is the old one.
    """

    def __init__(
        self, *, renderer: Renderer, facts: Facts, committed: Facts, max_concurrency: int
    ) -> None:
        """`facts` and `committed` are equal but separate objects; both are kept and changed."""
        self.renderer = renderer
        self.facts = facts  # with what this turn adds
        self.committed = committed  # without it: what task bodies read
        self.turn = Turn()
        # Where it is going.
        self.is_cancelling = False
        self.failure: Problem | None = None
        self.continuation: NodeKey | None = None  # the ContinueAsNew by which another run follows
        self.is_stopped = False  # the run is ending, and its Trys and Sagas clean up
        self.cleanup_ends_ms: int | None = None  # None: no clean-up has begun
        self.is_cut_short = False  # the turn has grown long: there is more to plan at once
        # Its tree; None before the first render.
        self.rendered: Rendered | None = None
        self.schedule: Schedule | None = None  # None also when a clean-up is given up
        self.needs_render = True
        self.is_render_fresh = False  # nothing has settled since the last render
        self.is_overtaken = False  # a Try has changed phase since the tree was mounted
        self.convergence = Convergence()
        # Its nodes.
        self.waiting = {key for key, fact in facts.nodes.items() if fact.state.is_waiting}
        self.in_flight: set[NodeKey] = set()  # an attempt has started, and not reported its end
        self.open_tries = {key for key, fact in facts.tries.items() if not fact.is_done}
        self.dues = Dues()
        self.ready: list[tuple[int, NodeKey]] = []  # a heap of tasks to start, by position
        self.allowed: set[NodeKey] | None = None  # only these may start; None: everything
        self.max_concurrency = max_concurrency  # of attempts

    # How it goes.

    @property
    def is_ending(self) -> bool:
        """Whether the run is ending: nothing starts any more, except clean-up."""
        return self.is_cancelling or self.failure is not None or self.continuation is not None

    @property
    def last_status(self) -> RunStatus:
        """The final status of a run that is ending."""
        if self.is_cancelling:
            return RunStatus.CANCELLED
        return RunStatus.CONTINUED if self.failure is None else RunStatus.FAILED

    @property
    def reason(self) -> str:
        """The reason for stopping running nodes when the run is ending."""
        status = self.last_status
        return "aborted" if status is RunStatus.CONTINUED else f"run-{status}"

    @property
    def is_cleaning(self) -> bool:
        """Whether the run is ending, and has not finished its clean-up."""
        return self.is_stopped and self.schedule is not None and not self.schedule.is_done

    def next_due_ms(self) -> int | None:
        """Return when time alone makes something due; 0 if the last turn was cut short."""
        if self.is_cut_short:
            return 0
        due_ms = self.dues.next_ms(self.facts)
        if self.cleanup_ends_ms is None or not self.is_cleaning:
            return due_ms
        return self.cleanup_ends_ms if due_ms is None else min(due_ms, self.cleanup_ends_ms)

    def find_leaf(self, key: NodeKey) -> LeafPlace | None:
        """Find a node's place in the tree of the last render."""
        return None if self.rendered is None else self.rendered.mounted.leaves.get(key)

    def is_just_asked(self, key: NodeKey) -> bool:
        """Say whether a question is not committed yet, so that nobody can have seen it."""
        return any(change.key == key and change.request for change in self.turn.approvals)

    # What changes it.

    def put(self, key: NodeKey, fact: NodeFact) -> None:
        """Set a node's fact; a builder that has read it renders again."""
        before = self.facts.nodes.get(key)
        self.facts.put(key, fact)
        self.turn.nodes[key] = fact
        if fact.state.is_waiting:
            self.waiting.add(key)
        else:
            self.waiting.discard(key)
        if fact.state is not NodeState.PENDING:
            self.facts.lost.discard(key)
        if self.rendered is None or (before is not None and before.state is fact.state):
            return
        reads, node_id = self.rendered.reads, written_id(key.node_id)
        is_output = fact.state is NodeState.FINISHED and node_id in reads.outputs
        if is_output or node_id in reads.states:
            self.needs_render = True

    def put_loop(self, loop_id: LoopId, fact: LoopFact) -> None:
        """Set a loop's fact."""
        self.facts.loops[loop_id] = fact
        self.turn.loops[loop_id] = fact
        self.convergence.note_progress()

    def put_try(self, try_id: TryId, fact: TryFact) -> None:
        """Set the fact of a Try or a Saga."""
        self.facts.tries[try_id] = fact
        self.turn.tries[try_id] = fact
        self.convergence.note_progress()
        if fact.is_done:
            self.open_tries.discard(try_id)
        else:
            self.open_tries.add(try_id)

    def note(self, event: EventType, **fields: Any) -> None:
        """Add an event of the run itself, e.g. that it resumes after a death."""
        self.turn.events.append(EventDraft(event, fields))

    def say(self, event: EventType, key: NodeKey, **fields: Any) -> None:
        """Add an event of a node."""
        fields = {"nodeId": key.node_id, "iteration": key.iteration, **fields}
        self.turn.events.append(EventDraft(event, fields))

    def settle(self, key: NodeKey) -> None:
        """Let the tree go on after a node; the facts say that it is settled, or cancelled and gone."""
        self.is_render_fresh = False
        self.convergence.note_end(key, is_settled=self.facts.nodes[key].state.is_settled)
        if self.schedule is not None:
            self.schedule.settle(key)

    def fail(self, problem: Problem) -> None:
        """Fail the run, unless something else has failed it before."""
        self.failure = self.failure or problem

    def at(self, due_ms: int, key: NodeKey) -> None:
        """Schedule a check of a node at its due time."""
        self.dues.add(due_ms, key)

    def make_ready(self, leaf: LeafPlace) -> None:
        """Let a task start as soon as the run has room; one whose turn has not come starts when it is opened."""
        if leaf.is_open:
            heapq.heappush(self.ready, (leaf.position, leaf.key))

    def ask_render(self) -> None:
        """Call the builder again, whatever it has read."""
        self.needs_render = True

    def overtake(self) -> None:
        """Remount the tree before anything else begins: a Try has changed phase."""
        self.is_overtaken = self.needs_render = True
