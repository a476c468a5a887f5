"""Leaves that wait for something outside the run: how waits begin, end and are withdrawn. Pure."""

from collections.abc import Set as AbstractSet

from smithers.engine import children, outcomes, questions
from smithers.engine.facts import NodeFact, NodeKey, Problem, SignalFact
from smithers.engine.mount import LeafPlace
from smithers.engine.retrying import LONGEST_S, moment_after
from smithers.engine.run_state import RunState
from smithers.engine.turn import ApprovalChange
from smithers.errors import InvalidOutput
from smithers.events import EventType
from smithers.outputs import decode_output
from smithers.states import NodeState, RunStatus
from smithers.tree import (
    Approval,
    Budget,
    ContinueAsNew,
    HumanTask,
    Leaf,
    OnTimeout,
    Signal,
    Subflow,
    Task,
    Timer,
)


def begin(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    """Begin a wait whose turn has come; one whose signal is already there, or whose time has passed, ends at once."""
    match leaf.element:
        case Approval() | HumanTask():
            questions.ask(run, leaf, fact, now_ms)
        case Signal():
            _await_signal(run, leaf, fact, now_ms)
        case Timer():
            _set_timer(run, leaf, fact, now_ms)
        case Subflow():
            children.start(run, leaf, fact)
        case ContinueAsNew():
            children.go_on_as_new(run, leaf, fact)
        case Task() | Budget():
            pass  # no wait


def take_all(run: RunState) -> None:
    """Apply what nodes wait for, if it has arrived."""
    _take(run, run.waiting)


def take_news(run: RunState, keys: AbstractSet[NodeKey], *, has_signals: bool) -> None:
    """Apply decisions and ends that have come for these nodes, and signals, which do not say for which."""
    _take(run, run.waiting if has_signals else run.waiting & keys)


def _take(run: RunState, keys: AbstractSet[NodeKey]) -> None:
    # The first in the tree is served first.
    leaves = [leaf for key in keys if (leaf := run.find_leaf(key)) is not None]
    for leaf in sorted(leaves, key=lambda leaf: leaf.position):
        fact = run.facts.nodes[leaf.key]
        if not fits(leaf.element, fact.state):
            continue
        match fact.state:
            case NodeState.WAITING_APPROVAL:
                questions.apply_decision(run, leaf, fact)
            case NodeState.WAITING_EVENT if isinstance(leaf.element, Subflow):
                children.take_end(run, leaf, fact)
            case NodeState.WAITING_EVENT:
                take_signal(run, leaf, fact)
            case _:
                pass


def watch_all(run: RunState) -> None:
    """Schedule each wait's due time, even if its author has put something before it since it began."""
    for key in run.waiting:
        due_ms = run.facts.nodes[key].due_ms
        if due_ms is not None and run.find_leaf(key) is not None:
            run.at(due_ms, key)


def take_signal(run: RunState, leaf: LeafPlace, fact: NodeFact) -> bool:
    """Apply a signal that has arrived: the oldest that matches and that no node has taken."""
    element = leaf.element
    assert isinstance(element, Signal)
    for signal in run.facts.signals:
        if signal.name == element.event and element.correlation_id in (None, signal.correlation_id):
            _consume(run, leaf.key, fact, signal, element)
            return True
    return False


def run_out(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    """Time a wait out: a timer fires, a question counts as denied, a signal is no longer awaited."""
    match leaf.element:
        case Timer():
            _fire(run, leaf.key, fact, now_ms)
        case Signal():
            _give_up(run, leaf, fact, leaf.element)
        case _:
            questions.run_out(run, leaf, fact, now_ms)


def cancel_node(run: RunState, key: NodeKey, fact: NodeFact, reason: str) -> None:
    """Cancel a node, and withdraw its question or wait."""
    if fact.state is NodeState.WAITING_APPROVAL:
        run.turn.approvals.append(ApprovalChange(key, None))
    elif fact.state is NodeState.WAITING_EVENT and fact.kind == "subflow":
        children.withdraw(run, key)
    elif fact.state is NodeState.WAITING_TIMER:
        run.say(EventType.TIMER_CANCELLED, key, timerId=key.node_id)
    run.put(key, fact._replace(state=NodeState.CANCELLED, due_ms=None))
    began = {"attempt": fact.attempt} if fact.attempt else {}
    run.say(EventType.NODE_CANCELLED, key, **began, reason=reason)


def fits(leaf: Leaf, state: NodeState) -> bool:
    """Say whether a leaf may be in a waiting state: not if its author has replaced it by another kind."""
    match state:
        case NodeState.WAITING_APPROVAL:
            is_gate = isinstance(leaf, Task) and leaf.needs_approval
            return is_gate or isinstance(leaf, Approval | HumanTask | Budget)
        case NodeState.WAITING_EVENT:
            return isinstance(leaf, Signal | Subflow)
        case NodeState.WAITING_TIMER:
            return isinstance(leaf, Timer)
        case _:
            return True


def find_parked_status(run: RunState) -> RunStatus | None:
    """Return the status of a parked run that has only waits left; None if it has none."""
    states = {run.facts.nodes[key].state for key in run.waiting}
    for state, status in (
        (NodeState.WAITING_APPROVAL, RunStatus.WAITING_APPROVAL),
        (NodeState.WAITING_EVENT, RunStatus.WAITING_EVENT),
        (NodeState.WAITING_TIMER, RunStatus.WAITING_TIMER),
    ):
        if state in states:
            return status
    return None


def _await_signal(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    if take_signal(run, leaf, fact):
        return
    element = leaf.element
    assert isinstance(element, Signal)
    awaited = {"signalName": element.event, "correlationId": element.correlation_id}
    fact = fact.with_awaited(awaited)
    outcomes.wait(run, leaf.key, fact, NodeState.WAITING_EVENT, now_ms, element.timeout_s)
    run.say(EventType.NODE_WAITING_EVENT, leaf.key, signalName=element.event)


def _set_timer(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    element = leaf.element
    assert isinstance(element, Timer)
    if element.until is not None:
        # Calendars end before the database's timestamps do: a later one could not be displayed.
        longest_ms = moment_after(now_ms, LONGEST_S)
        due_ms, kind = min(round(element.until.timestamp() * 1000), longest_ms), "absolute"
    else:
        due_ms, kind = moment_after(now_ms, element.duration_s or 0), "duration"
    fact = fact._replace(state=NodeState.WAITING_TIMER, due_ms=due_ms)
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


def _fire(run: RunState, key: NodeKey, fact: NodeFact, now_ms: int) -> None:
    due_ms = fact.due_ms if fact.due_ms is not None else now_ms
    run.say(
        EventType.TIMER_FIRED,
        key,
        timerId=key.node_id,
        firesAtMs=due_ms,
        firedAtMs=now_ms,
        delayMs=max(0, now_ms - due_ms),
    )
    outcomes.finish(run, key, fact, None)


def _consume(
    run: RunState, key: NodeKey, fact: NodeFact, signal: SignalFact, element: Signal[object]
) -> None:
    run.facts.signals.remove(signal)
    run.turn.signals.append((signal.seq, key))
    try:
        data = decode_output(signal.data)
        output = run.renderer.encode(data, element.output, what="the signal's data")
    except InvalidOutput as error:
        outcomes.fail(run, key, fact, Problem.of(error))
        return
    outcomes.finish(run, key, fact, output)


def _give_up(run: RunState, leaf: LeafPlace, fact: NodeFact, element: Signal[object]) -> None:
    match element.on_timeout:
        case OnTimeout.CONTINUE:
            outcomes.finish(run, leaf.key, fact, None)
        case OnTimeout.SKIP:
            outcomes.skip(run, leaf.key, fact)
        case OnTimeout.FAIL:
            text = f"signal {element.event!r} did not come in {element.timeout_s} s"
            outcomes.fail(run, leaf.key, fact, Problem("WaitTimedOut", text, "WAIT_TIMED_OUT"))
