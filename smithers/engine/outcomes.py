"""State changes of a leaf other than by attempts: it waits, finishes, is skipped, fails. Pure."""

from smithers.engine import try_blocks
from smithers.engine.facts import NodeFact, NodeKey, NodeMark, Problem
from smithers.engine.retrying import moment_after
from smithers.engine.run_state import RunState
from smithers.events import EventType
from smithers.states import NodeState


def wait(
    run: RunState,
    key: NodeKey,
    fact: NodeFact,
    state: NodeState,
    now_ms: int,
    timeout_s: float | None,
) -> None:
    """Let a node wait, for at most `timeout_s`."""
    due_ms = None if timeout_s is None else moment_after(now_ms, timeout_s)
    run.put(key, fact._replace(state=state, due_ms=due_ms))
    if due_ms is not None:
        run.at(due_ms, key)


def finish(run: RunState, key: NodeKey, fact: NodeFact, output: str | None) -> None:
    """Let a node finish; `output` is JSON text, or None if it has none."""
    run.put(key, fact._replace(state=NodeState.FINISHED, output=output, due_ms=None))
    run.say(EventType.NODE_FINISHED, key, attempt=max(fact.attempt, 1))
    run.settle(key)


def skip(run: RunState, key: NodeKey, fact: NodeFact) -> None:
    """Skip a node for good."""
    run.put(key, fact._replace(state=NodeState.SKIPPED, due_ms=None))
    run.say(EventType.NODE_SKIPPED, key)
    run.settle(key)


def fail(
    run: RunState, key: NodeKey, fact: NodeFact, problem: Problem, *, is_tolerated: bool = False
) -> None:
    """Let a node fail, and propagate the failure unless it is tolerated."""
    fact = fact._replace(state=NodeState.FAILED, error=problem, due_ms=None)
    run.say(EventType.NODE_FAILED, key, attempt=max(fact.attempt, 1), error=problem.to_wire())
    put_failed(run, key, fact, problem, is_tolerated=is_tolerated)


def put_failed(
    run: RunState, key: NodeKey, fact: NodeFact, problem: Problem, *, is_tolerated: bool
) -> None:
    """Record that a node has failed, and propagate its failure to the Try that catches it."""
    # Before the failure propagates: this may be the one that fails the run.
    mark = NodeMark.LATER if run.failure is not None else None
    if not is_tolerated:
        leaf = run.find_leaf(key)
        is_tolerated = try_blocks.fail_at(run, None if leaf is None else leaf.parent, problem)
    run.put(key, fact.with_mark(NodeMark.TOLERATED if is_tolerated else mark))
    run.settle(key)
