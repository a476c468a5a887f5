"""Leaves that need the outside: how they begin to wait, and what ends it. Pure; works on one run's Progress."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson

from smithers.context import ApprovalDecision
from smithers.engine.facts import (
    TOLERATED,
    ApprovalFact,
    NodeFact,
    NodeKey,
    Problem,
    SignalFact,
)
from smithers.engine.mount import LeafPlace
from smithers.engine.retrying import moment_after
from smithers.engine.turn import ApprovalChange, Timeout
from smithers.errors import InvalidOutput
from smithers.events import EventType
from smithers.outputs import decode_output, encode_output
from smithers.states import ApprovalStatus, NodeState, RunStatus
from smithers.tree import Approval, Leaf, OnDeny, OnTimeout, Signal, Task, Timer

if TYPE_CHECKING:
    from smithers.engine.progress import Progress

TIMEOUT_USER: Final = "system:timeout"


def begin(run: "Progress", leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    """Let a wait whose turn has come begin; one whose signal is there already, or whose time has passed, ends at once."""
    match leaf.element:
        case Approval():
            _ask(run, leaf, fact, now_ms)
        case Signal():
            _await_signal(run, leaf, fact, now_ms)
        case Timer():
            _set_timer(run, leaf, fact, now_ms)


def is_let_through(run: "Progress", leaf: LeafPlace, fact: NodeFact, now_ms: int) -> bool:
    """Say whether a task's gate is open; ask where nobody has been asked yet."""
    decision = run.facts.approvals.get(leaf.key)
    if decision is not None and decision.status is ApprovalStatus.APPROVED:
        return True
    _ask(run, leaf, fact, now_ms)
    return False


def take_decision(run: "Progress", leaf: LeafPlace, fact: NodeFact) -> None:
    """Go on where a person has decided."""
    decision = run.facts.approvals.get(leaf.key)
    if decision is None or decision.status not in (ApprovalStatus.APPROVED, ApprovalStatus.DENIED):
        return
    is_approved = decision.status is ApprovalStatus.APPROVED
    if isinstance(leaf.element, Task):
        if is_approved:
            run.put(leaf.key, fact.but(state=NodeState.PENDING, due_ms=None))
            run.make_ready(leaf)
        else:
            _deny(run, leaf.key, fact, decision, is_tolerated=leaf.element.continue_on_fail)
        return
    on_deny = leaf.element.on_deny if isinstance(leaf.element, Approval) else OnDeny.FAIL
    if is_approved or on_deny is OnDeny.CONTINUE:
        _finish(run, leaf.key, fact, _decision_json(decision, is_approved=is_approved))
    elif on_deny is OnDeny.SKIP:
        _skip(run, leaf.key, fact)
    else:
        _deny(run, leaf.key, fact, decision, is_tolerated=False)


def take_signal(run: "Progress", leaf: LeafPlace, fact: NodeFact) -> bool:
    """Go on where the signal has come: the oldest that fits and that no node has taken."""
    element = leaf.element
    assert isinstance(element, Signal)
    for signal in run.facts.signals:
        if signal.name == element.event and element.correlation_id in (None, signal.correlation_id):
            _consume(run, leaf.key, fact, signal, element)
            return True
    return False


def run_out(run: "Progress", leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    """Take in that a wait's time has come: a timer fires, a question counts as denied, a signal is given up."""
    match leaf.element:
        case Timer():
            _fire(run, leaf.key, fact, now_ms)
        case Signal():
            _give_up(run, leaf, fact, leaf.element)
        case _ if run.is_just_asked(leaf.key):
            run.at(fact.due_ms or now_ms, leaf.key)
        case _ if Timeout(leaf.key) not in run.turn.timeouts:
            run.turn.timeouts.append(Timeout(leaf.key))


def withdraw(run: "Progress", key: NodeKey, fact: NodeFact) -> None:
    """Take back what a node has asked of the outside."""
    if fact.state is NodeState.WAITING_APPROVAL:
        run.turn.approvals.append(ApprovalChange(key, None))
    elif fact.state is NodeState.WAITING_TIMER:
        run.say(EventType.TIMER_CANCELLED, key, timerId=key.node_id)


def fits(leaf: Leaf, state: NodeState) -> bool:
    """Say whether a leaf may be in a waiting state: not where its author has put another kind in its place."""
    match state:
        case NodeState.WAITING_APPROVAL:
            return isinstance(leaf, Approval) or (isinstance(leaf, Task) and leaf.needs_approval)
        case NodeState.WAITING_EVENT:
            return isinstance(leaf, Signal)
        case NodeState.WAITING_TIMER:
            return isinstance(leaf, Timer)
        case _:
            return True


def find_parked_status(run: "Progress") -> RunStatus | None:
    """Say how a run is parked that has only waits left; None where it has none."""
    states = {run.facts.nodes[key].state for key in run.waiting}
    for state, status in (
        (NodeState.WAITING_APPROVAL, RunStatus.WAITING_APPROVAL),
        (NodeState.WAITING_EVENT, RunStatus.WAITING_EVENT),
        (NodeState.WAITING_TIMER, RunStatus.WAITING_TIMER),
    ):
        if state in states:
            return status
    return None


def _ask(run: "Progress", leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    element = leaf.element
    request: dict[str, object] = {"title": element.label or element.id}
    timeout_s = None
    if isinstance(element, Approval):
        timeout_s = element.timeout_s
        request |= {"title": element.title, "summary": element.summary}
        for name, allowed in (
            ("allowedUsers", element.allowed_users),
            ("allowedScopes", element.allowed_scopes),
        ):
            if allowed is not None:
                request[name] = list(allowed)
    # An answer to an earlier asking is no answer to this one.
    run.facts.approvals.pop(leaf.key, None)
    run.turn.approvals.append(ApprovalChange(leaf.key, orjson.dumps(request).decode()))
    _wait(run, leaf.key, fact, NodeState.WAITING_APPROVAL, now_ms, timeout_s)
    run.say(EventType.APPROVAL_REQUESTED, leaf.key)
    run.say(EventType.NODE_WAITING_APPROVAL, leaf.key)


def _await_signal(run: "Progress", leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    if take_signal(run, leaf, fact):
        return
    element = leaf.element
    assert isinstance(element, Signal)
    wait = orjson.dumps(
        {"signalName": element.event, "correlationId": element.correlation_id}
    ).decode()
    _wait(run, leaf.key, fact.but(wait=wait), NodeState.WAITING_EVENT, now_ms, element.timeout_s)
    run.say(EventType.NODE_WAITING_EVENT, leaf.key, signalName=element.event)


def _set_timer(run: "Progress", leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    element = leaf.element
    assert isinstance(element, Timer)
    if element.until is not None:
        due_ms, kind = round(element.until.timestamp() * 1000), "absolute"
    else:
        due_ms, kind = moment_after(now_ms, element.duration_s or 0), "duration"
    fact = fact.but(state=NodeState.WAITING_TIMER, due_ms=due_ms)
    run.say(
        EventType.TIMER_CREATED,
        leaf.key,
        timerId=leaf.key.node_id,
        firesAtMs=due_ms,
        timerType=kind,
    )
    if due_ms <= now_ms:
        _fire(run, leaf.key, fact, now_ms)
        return
    run.put(leaf.key, fact)
    run.at(due_ms, leaf.key)
    run.say(EventType.NODE_WAITING_TIMER, leaf.key, firesAtMs=due_ms)


def _wait(
    run: "Progress",
    key: NodeKey,
    fact: NodeFact,
    state: NodeState,
    now_ms: int,
    timeout_s: float | None,
) -> None:
    due_ms = None if timeout_s is None else moment_after(now_ms, timeout_s)
    run.put(key, fact.but(state=state, due_ms=due_ms))
    if due_ms is not None:
        run.at(due_ms, key)


def _fire(run: "Progress", key: NodeKey, fact: NodeFact, now_ms: int) -> None:
    due_ms = fact.due_ms if fact.due_ms is not None else now_ms
    run.say(
        EventType.TIMER_FIRED,
        key,
        timerId=key.node_id,
        firesAtMs=due_ms,
        firedAtMs=now_ms,
        delayMs=max(0, now_ms - due_ms),
    )
    _finish(run, key, fact, None)


def _consume(
    run: "Progress", key: NodeKey, fact: NodeFact, signal: SignalFact, element: Signal[object]
) -> None:
    run.facts.signals.remove(signal)
    run.turn.signals.append((signal.seq, key))
    try:
        output = encode_output(decode_output(signal.data), element.output)
    except InvalidOutput as error:
        _fail(run, key, fact, Problem("InvalidOutput", str(error), error.code, error.details))
        return
    _finish(run, key, fact, output)


def _give_up(run: "Progress", leaf: LeafPlace, fact: NodeFact, element: Signal[object]) -> None:
    match element.on_timeout:
        case OnTimeout.CONTINUE:
            _finish(run, leaf.key, fact, None)
        case OnTimeout.SKIP:
            _skip(run, leaf.key, fact)
        case OnTimeout.FAIL:
            text = f"signal {element.event!r} did not come in {element.timeout_s} s"
            _fail(run, leaf.key, fact, Problem("WaitTimedOut", text, "WAIT_TIMED_OUT"))


def _deny(
    run: "Progress", key: NodeKey, fact: NodeFact, decision: ApprovalFact, *, is_tolerated: bool
) -> None:
    if decision.decided_by == TIMEOUT_USER:
        problem = Problem("WaitTimedOut", "nobody decided in time", "WAIT_TIMED_OUT")
    else:
        by = f" by {decision.decided_by}" if decision.decided_by else ""
        note = f": {decision.note}" if decision.note else ""
        problem = Problem("ApprovalDenied", f"denied{by}{note}", "APPROVAL_DENIED")
    _fail(run, key, fact, problem, is_tolerated=is_tolerated)


def _fail(
    run: "Progress", key: NodeKey, fact: NodeFact, problem: Problem, *, is_tolerated: bool = False
) -> None:
    wait = TOLERATED if is_tolerated else None
    run.put(key, fact.but(state=NodeState.FAILED, error=problem, due_ms=None, wait=wait))
    run.say(EventType.NODE_FAILED, key, attempt=max(fact.attempt, 1), error=problem.to_wire())
    if not is_tolerated:
        run.fail(problem)
    run.settle(key)


def _finish(run: "Progress", key: NodeKey, fact: NodeFact, output: str | None) -> None:
    run.put(key, fact.but(state=NodeState.FINISHED, output=output, due_ms=None))
    run.say(EventType.NODE_FINISHED, key, attempt=max(fact.attempt, 1))
    run.settle(key)


def _skip(run: "Progress", key: NodeKey, fact: NodeFact) -> None:
    run.put(key, fact.but(state=NodeState.SKIPPED, due_ms=None))
    run.say(EventType.NODE_SKIPPED, key)
    run.settle(key)


def _decision_json(decision: ApprovalFact, *, is_approved: bool) -> str:
    moment = decision.decided_ms
    return ApprovalDecision(
        approved=is_approved,
        note=decision.note,
        decided_by=decision.decided_by,
        decided_at=None if moment is None else datetime.fromtimestamp(moment / 1000, UTC),
        timed_out=decision.decided_by == TIMEOUT_USER,
    ).model_dump_json()
