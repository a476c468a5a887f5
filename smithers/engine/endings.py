"""Decide whether a run leaves its worker after this turn, and how: ended, or parked with only waits left. Pure."""

from typing import Final

from smithers.engine import budgets, children, waits
from smithers.engine.facts import Facts, NodeKey, NodeMark, Problem
from smithers.engine.run_state import RunState
from smithers.engine.turn import Ending, EventDraft
from smithers.events import EventType
from smithers.states import NodeState, RunStatus, TryPhase
from smithers.tree import Task

STAY_MS: Final = 5_000  # a back-off up to this long is waited out in memory


def end_or_park(run: RunState, now_ms: int) -> Ending | None:
    """Say how the run leaves its worker, ended or parked; None: it stays, to work or to wait out a short back-off."""
    if run.in_flight or run.turn.timeouts or run.is_cleaning:
        return None
    if run.is_ending:
        return _end(run, run.last_status)
    if run.is_cut_short or run.allowed is not None:
        return None
    assert run.schedule is not None
    if run.schedule.is_done:
        return _end(run, RunStatus.FINISHED)
    return _park(run, now_ms)


def find_failure(facts: Facts) -> Problem | None:
    """Find the failure recorded by an earlier owner that died before the run's end: the first one, if there are more."""
    later: Problem | None = None
    for key in sorted(facts.nodes):
        fact = facts.nodes[key]
        if fact.state is not NodeState.FAILED or fact.mark is NodeMark.TOLERATED:
            continue
        problem = fact.error or Problem("TaskFailed", f"{key.node_id} failed")
        if fact.mark is not NodeMark.LATER:
            return problem
        later = later or problem
    for passed in facts.tries.values():
        if passed.phase in (TryPhase.RAISED, TryPhase.BROKEN):
            return passed.problem
    return later


def _park(run: RunState, now_ms: int) -> Ending | None:
    """Park a run in which nothing is left but waits; fail one in which there are none either."""
    due_ms = run.next_due_ms()
    status = waits.find_parked_status(run)
    if due_ms is None and status is None:
        run.fail(_stuck(run))
        return _end(run, RunStatus.FAILED)
    if due_ms is not None:
        stay_ms = STAY_MS if status is None else 0
        if due_ms - now_ms <= stay_ms:
            return None
    status = status or RunStatus.WAITING_TIMER
    event = EventDraft(EventType.RUN_STATUS_CHANGED, {"status": status})
    return Ending(status=status, events=(event,), due_ms=due_ms)


def _end(run: RunState, status: RunStatus) -> Ending:
    """Cancel what still waits, and describe the run's end."""
    for key in sorted(run.waiting | run.facts.lost):
        waits.cancel_node(run, key, run.facts.nodes[key], run.reason)
    if status is RunStatus.CONTINUED and run.continuation is not None:
        return children.end_continued(run, run.continuation)
    if status is RunStatus.CANCELLED:
        return Ending(status=status, events=(EventDraft(EventType.RUN_CANCELLED, {}),))
    if status is RunStatus.FAILED and run.failure is not None:
        event = EventDraft(EventType.RUN_FAILED, {"error": run.failure.to_wire()})
        return Ending(status=status, events=(event,), error=run.failure)
    budgets.close(run)
    event = EventDraft(EventType.RUN_FINISHED, {})
    return Ending(status=status, events=(event,), output=_output_key(run))


def _output_key(run: RunState) -> NodeKey | None:
    """Find the node whose output is the run's: the one that the workflow names, else the tree's last finished task."""
    assert run.rendered is not None
    mounted, wanted = run.rendered.mounted, run.renderer.workflow.output_node
    if wanted is not None:
        key = mounted.resolve(wanted, run.facts)
        return None if isinstance(key, str) else key
    for key, leaf in reversed(mounted.leaves.items()):
        if isinstance(leaf.element, Task) and run.facts.nodes[key].state is NodeState.FINISHED:
            return key
    return None


def _stuck(run: RunState) -> Problem:
    """Return the failure of a run that would never go on, with the nodes that wait for others, and for which."""
    assert run.schedule is not None
    blocked = "; ".join(
        f"{key.node_id} waits for {', '.join(names)}" for key, names in run.schedule.blocked()
    )
    text = f"nothing can go on: {blocked or 'the tree is not done, and nothing in it is open'}"
    return Problem("DependencyUnmet", text, "DEPENDENCY_UNMET")
