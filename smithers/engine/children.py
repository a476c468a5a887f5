"""Other runs that a run starts: children whose ends its nodes await, and its own continuation. Pure.

Both are started in the commit that records them. A child's id is derived from its parent's and its node's, so that no
crash starts it twice, and a parent's id sorts before its children's in every collation.
"""

import hashlib
import re
from typing import Any, Final

from smithers.engine import budgets, outcomes
from smithers.engine.facts import EndFact, Facts, NodeFact, NodeKey, Problem
from smithers.engine.mount import LeafPlace
from smithers.engine.run_state import RunState
from smithers.engine.turn import ChildStart, Ending, EventDraft
from smithers.errors import InvalidOutput
from smithers.events import EventType
from smithers.ids import RunId, is_run_id
from smithers.outputs import decode_output
from smithers.states import NodeState, RunStatus
from smithers.tree import ContinueAsNew, Subflow

CONTINUATION_KIND: Final = "continue-as-new"
_COUNTED: Final = re.compile(r"(.*)\+([0-9]{1,9})")


def start(run: RunState, leaf: LeafPlace, fact: NodeFact) -> None:
    """Start a node's child, or resume one that ended badly before, and let the node wait for its end."""
    key, element = leaf.key, leaf.element
    assert isinstance(element, Subflow)
    run.facts.ends.pop(key, None)  # of an earlier attempt
    fact = fact._replace(attempt=fact.attempt + 1)
    run.say(EventType.NODE_STARTED, key, attempt=fact.attempt)
    child = _child_of(run, key, element)
    if isinstance(child, Problem):
        outcomes.fail(run, key, fact, child, is_tolerated=element.continue_on_fail)
        return
    run.turn.children.append(child)
    child_id = child.run_id
    fact = fact.with_awaited({"childRunId": child_id, "signalName": child_id})
    run.put(key, fact._replace(state=NodeState.WAITING_EVENT, due_ms=None))
    run.say(EventType.SUBFLOW_STARTED, key, childRunId=child_id)
    run.say(EventType.NODE_WAITING_EVENT, key, signalName=child_id)


def _child_of(run: RunState, key: NodeKey, element: Subflow[Any]) -> ChildStart | Problem:
    workflow, child_id = element.workflow, child_run_id(run.renderer.run_id, key)
    try:
        given = run.renderer.encode(element.input, workflow.input_model, what="the input")
    except InvalidOutput as error:
        return Problem("InvalidInput", str(error), "INVALID_INPUT", error.details)
    if not is_run_id(child_id):
        text = f"{child_id} is not a valid run id: subflows are nested too deeply, or the parent's id is too long"
        return Problem("SubflowTooDeep", text, "SUBFLOW_TOO_DEEP")
    export = run.renderer.find_export(workflow)
    if export is None:
        text = f"the workflow {workflow.name!r} has no name in a module of this source: assign it to one"
        return Problem("WorkflowNotFound", text, "SOURCE_BROKEN")
    return ChildStart(
        key=key,
        run_id=child_id,
        workflow_name=workflow.name,
        workflow_export=export,
        input=given,
        queue=run.renderer.queue_of(workflow),
        is_solo=workflow.is_isolated,
    )


def take_end(run: RunState, leaf: LeafPlace, fact: NodeFact) -> None:
    """Apply the end of a node's child."""
    end = run.facts.ends.pop(leaf.key, None)
    element = leaf.element
    assert isinstance(element, Subflow)
    # An attempt that begins with this turn has no end yet: this is an earlier one's.
    if end is None or any(child.key == leaf.key for child in run.turn.children):
        return
    if _is_outdated(end, fact):
        start(run, leaf, fact)
        return
    if end.status is RunStatus.FINISHED:
        try:
            output = end.output and run.renderer.encode(decode_output(end.output), element.output)
        except InvalidOutput as error:
            problem = Problem.of(error)
        else:
            outcomes.finish(run, leaf.key, fact, output)
            return
    else:
        details: dict[str, Any] = {"childRunId": end.run_id}
        text = f"its run {end.run_id} was {end.status}"
        if end.error is not None:
            details["error"] = end.error.to_wire()
            text = f"{text}: {end.error.message}"
        problem = Problem("SubflowFailed", text, f"SUBFLOW_{end.status.upper()}", details)
    outcomes.fail(run, leaf.key, fact, problem, is_tolerated=element.continue_on_fail)


def withdraw(run: RunState, key: NodeKey) -> None:
    """Cancel a node's child; if it would begin with this turn, it is neither started nor recorded."""
    turn = run.turn
    child = next((child for child in turn.children if child.key == key), None)
    if child is None:
        turn.abandoned.append(key)
        return
    turn.children.remove(child)
    fields = {"nodeId": key.node_id, "iteration": key.iteration, "childRunId": child.run_id}
    turn.events.remove(EventDraft(EventType.SUBFLOW_STARTED, fields))


def refuse(run: RunState, key: NodeKey, problem: Problem) -> None:
    """Fail a node whose child, which would begin with this turn, cannot be started."""
    withdraw(run, key)
    leaf = run.find_leaf(key)
    element = None if leaf is None else leaf.element
    is_tolerated = isinstance(element, Subflow) and element.continue_on_fail
    outcomes.fail(run, key, run.facts.nodes[key], problem, is_tolerated=is_tolerated)


def refuse_successor(run: RunState, problem: Problem) -> None:
    """Fail the ContinueAsNew that ends the run, unless that was committed before: a resume mounts the tree anew."""
    key, run.continuation = run.continuation, None
    if key is None or key not in run.turn.nodes:
        return
    fact = run.facts.nodes[key]
    place = {"nodeId": key.node_id, "iteration": key.iteration, "attempt": max(fact.attempt, 1)}
    run.turn.events.remove(EventDraft(EventType.NODE_FINISHED, place))
    run.say(EventType.NODE_FAILED, key, attempt=place["attempt"], error=problem.to_wire())
    run.put(key, fact._replace(state=NodeState.FAILED, output=None, error=problem))


def _is_outdated(end: EndFact, fact: NodeFact) -> bool:
    """Say whether an end belongs to an earlier attempt of the node: the child was to be cancelled before this one began."""
    if end.status is not RunStatus.CANCELLED or end.cancel_asked_ms is None:
        return False
    return fact.started_ms is not None and end.cancel_asked_ms <= fact.started_ms


def go_on_as_new(run: RunState, leaf: LeafPlace, fact: NodeFact) -> None:
    """Store the state that the continuation is handed; the run ends when everything else has been stopped."""
    element = leaf.element
    assert isinstance(element, ContinueAsNew)
    new_id = next_run_id(run.renderer.run_id)
    if not is_run_id(new_id):
        why = "the run's id is too long for a continuation's number"
        text = f"{new_id} is not a valid run id: {why}"
        outcomes.fail(run, leaf.key, fact, Problem("RunIdTooLong", text, "RUN_ID_TOO_LONG"))
        return
    try:
        state = run.renderer.encode(element.state, what="the state")
    except InvalidOutput as error:
        problem = Problem.of(error)
        outcomes.fail(run, leaf.key, fact, problem)
        return
    outcomes.finish(run, leaf.key, fact, state)
    run.continuation = leaf.key


def find_continuation(facts: Facts) -> NodeKey | None:
    """Find the ContinueAsNew of a run whose earlier owner died before it continued."""
    for key in sorted(facts.nodes):
        fact = facts.nodes[key]
        if fact.kind == CONTINUATION_KIND and fact.state is NodeState.FINISHED:
            return key
    return None


def end_continued(run: RunState, key: NodeKey) -> Ending:
    """Describe the end of a run that continues as another."""
    state = run.facts.nodes[key].output or "null"
    new_id = next_run_id(run.renderer.run_id)
    fields = {
        "newRunId": new_id,
        "iteration": key.iteration,
        "carriedStateSize": len(state.encode()),
    }
    workflow = run.renderer.workflow
    successor = ChildStart(
        key=None,
        run_id=new_id,
        workflow_name=workflow.name,
        queue=run.renderer.queue_of(workflow),
        is_solo=workflow.is_isolated,
        carried=state,
        spent=None if run.renderer.budget is None else budgets.spent_of(run),
    )
    event = EventDraft(EventType.RUN_CONTINUED_AS_NEW, fields)
    return Ending(status=RunStatus.CONTINUED, events=(event,), successor=successor)


def child_run_id(run_id: RunId, key: NodeKey) -> RunId:
    """Return the id of a node's child; deterministic."""
    place = f"{key.node_id}/{key.iteration}".encode()
    return RunId(f"{run_id}.{hashlib.blake2b(place, digest_size=6).hexdigest()}")


def next_run_id(run_id: RunId) -> RunId:
    """Return the id of a run's continuation: `nightly`, `nightly+1`, `nightly+2`."""
    counted = _COUNTED.fullmatch(run_id)
    if counted is None:
        return RunId(f"{run_id}+1")
    return RunId(f"{counted[1]}+{int(counted[2]) + 1}")
