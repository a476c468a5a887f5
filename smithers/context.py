"""A builder's argument: the run's input, and a way to read what the run has produced so far.

While a builder renders, the context records what it reads, misses included: a node that was never read does not
cause another render. Afterwards the context stays live: a read inside a task's body sees what is committed by then, and
is not recorded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, overload

from pydantic import BaseModel
from typing_extensions import TypeVar

from smithers.engine.facts import Facts, LoopFact, NodeFact, NodeKey, place_in_time
from smithers.engine.mount import LoopPath, key_in, scoped
from smithers.errors import OutputMissing
from smithers.ids import LoopId, NodeId, RunId, TryId
from smithers.outputs import decode_output
from smithers.states import NodeState

Input = TypeVar("Input", default=Any)  # a bare `Context` is one of any input
Model = TypeVar("Model")

_NO_FACT = LoopFact()


class ApprovalDecision(BaseModel):
    """The output of an Approval."""

    approved: bool
    note: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    timed_out: bool = False
    selected: str | None = None  # of an Approval(mode="select")
    ranked: list[str] | None = None  # of an Approval(mode="rank"), best first


@dataclass(frozen=True, slots=True)
class TaskError:
    """The error of a node, or of a Try's body."""

    name: str
    message: str
    code: str | None = None
    details: Any = None


@dataclass(frozen=True, slots=True)
class Auth:
    """Who started the run, by its credential."""

    user: str | None = None
    scopes: tuple[str, ...] = ()


@dataclass(slots=True)
class Reads:
    """What a builder has read, by the ids that its author wrote."""

    outputs: set[str] = field(default_factory=set)
    states: set[str] = field(default_factory=set)


class Context(Generic[Input]):
    """One run, as its builder sees it."""

    __slots__ = ("_facts", "_loop_paths", "_reads", "auth", "carried", "input", "run_id")

    def __init__(
        self,
        *,
        run_id: RunId,
        input: Input,
        auth: Auth,
        facts: Facts,
        loop_paths: Mapping[str, tuple[str, ...]],
        reads: Reads,
        carried: Any = None,
    ) -> None:
        self.run_id = run_id
        self.input = input
        self.auth = auth
        self.carried = carried  # the state of the ContinueAsNew that this run continues
        self._facts = facts
        self._loop_paths = loop_paths
        self._reads: Reads | None = reads

    def go_live(self, committed: Facts) -> None:
        """End the render: from here on reads see what is committed, and are not recorded."""
        self._reads = None
        self._facts = committed

    @property
    def iteration(self) -> int:
        """The iteration of the outermost running loop, from 0; with several, of the first by its id."""
        # A loop has a fact from its second iteration on; before, only the paths of its inner loops name it.
        under_way = [
            (place_in_time(NodeKey(NodeId(loop_id), loop.iteration)), loop_id)
            for loop_id, loop in list(self._facts.loops.items())
            if not loop.is_done
        ]
        if not under_way:
            return 0
        place, _ = min(under_way, key=lambda found: (len(found[0]), found[1]))
        return place[0]

    @overload
    def output(self, node_id: str, model: type[Model]) -> Model: ...
    @overload
    def output(self, node_id: str, model: None = None) -> Any: ...
    def output(self, node_id: str, model: Any = None) -> Any:
        """Return a node's output in the current iteration; raise OutputMissing if there is none yet."""
        fact = self._find(node_id)
        if fact is None or fact.output is None:
            raise OutputMissing(
                f"node {node_id!r} has no output yet: use output_maybe(), which returns None until then"
            )
        return decode_output(fact.output, model)

    @overload
    def output_maybe(self, node_id: str, model: type[Model]) -> Model | None: ...
    @overload
    def output_maybe(self, node_id: str, model: None = None) -> Any: ...
    def output_maybe(self, node_id: str, model: Any = None) -> Any:
        """Return a node's output in the current iteration, None if there is none yet."""
        fact = self._find(node_id)
        return None if fact is None or fact.output is None else decode_output(fact.output, model)

    @overload
    def latest(self, node_id: str, model: type[Model]) -> Model | None: ...
    @overload
    def latest(self, node_id: str, model: None = None) -> Any: ...
    def latest(self, node_id: str, model: Any = None) -> Any:
        """Return the output of the newest iteration that has one, None if none has."""
        self._record(node_id)
        for key in reversed(self._facts.keys_of(node_id)):
            output = self._facts.nodes[key].output
            if output is not None:
                return decode_output(output, model)
        return None

    def iteration_count(self, node_id: str) -> int:
        """Count the iterations in which a node has finished."""
        self._record(node_id)
        keys = self._facts.keys_of(node_id)
        return sum(self._facts.nodes[key].state is NodeState.FINISHED for key in keys)

    def state(self, node_id: str) -> NodeState | None:
        """Return a node's state in the current iteration, None if it has not been mounted.

        A worker's death changes no state: a node whose attempt it lost is in progress until it begins again.
        """
        if self._reads is not None:
            self._reads.states.add(node_id)
        fact = self._find(node_id)
        if fact is None:
            return None
        is_lost = self._current_key(node_id) in self._facts.lost
        return NodeState.IN_PROGRESS if is_lost else fact.state

    def error(self, id: str) -> TaskError | None:
        """Return the error that a Try caught, or with which a node failed in the current iteration; None: there is none."""
        if self._reads is not None:
            self._reads.states.add(id)
        turned = self._facts.tries.get(TryId(scoped(id, self._loops_of(id))))
        if turned is not None:
            problem = turned.problem
        else:
            fact = self._find(id)
            problem = fact.error if fact is not None and fact.state is NodeState.FAILED else None
        return None if problem is None else TaskError(*problem[:4])

    def _record(self, node_id: str) -> None:
        if self._reads is not None:
            self._reads.outputs.add(node_id)

    def _find(self, node_id: str) -> NodeFact | None:
        self._record(node_id)
        key = self._current_key(node_id)
        return None if key is None else self._facts.nodes.get(key)

    def _current_key(self, node_id: str) -> NodeKey | None:
        path = self._loop_paths.get(node_id)
        if path is None:
            known = self._facts.keys_of(node_id)
            return known[-1] if known else None
        return key_in(node_id, self._loops_of(node_id))

    def _loops_of(self, written: str) -> LoopPath:
        walked: list[tuple[str, int]] = []
        for loop in self._loop_paths.get(written, ()):
            loop_id = LoopId(scoped(loop, tuple(walked)))
            walked.append((loop, self._facts.loops.get(loop_id, _NO_FACT).iteration))
        return tuple(walked)
