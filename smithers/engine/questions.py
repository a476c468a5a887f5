"""Leaves that ask a person: approvals, forms, and the gates of tasks. Pure."""

from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json, to_jsonable_python

from smithers.context import ApprovalDecision
from smithers.engine import budgets, outcomes
from smithers.engine.facts import ApprovalFact, NodeFact, NodeKey, Problem
from smithers.engine.mount import LeafPlace
from smithers.engine.run_state import RunState
from smithers.engine.turn import ApprovalChange
from smithers.errors import InvalidOutput, InvalidTree
from smithers.events import EventType
from smithers.ids import SERVERS_OWN
from smithers.outputs import adapter_for, decode_output, name_of
from smithers.states import ApprovalStatus, NodeState
from smithers.texts import text_of
from smithers.tree import (
    Approval,
    ApprovalMode,
    Budget,
    ContinueAsNew,
    HumanTask,
    OnDeny,
    OnTimeout,
    Signal,
    Subflow,
    Task,
    Timer,
)

TIMEOUT_USER: Final = f"{SERVERS_OWN}timeout"
_SHOWN: Final[tuple[str, ...]] = ("mode", "options", "spent")  # of a request: what its node says


def ask(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    """Ask people a leaf's question."""
    element = leaf.element
    timeout_s = None if isinstance(element, Task) else getattr(element, "timeout_s", None)
    request = _request(run, element)
    _put_request(run, leaf.key, request)
    fact = fact.with_awaited({name: request[name] for name in _SHOWN if name in request})
    outcomes.wait(run, leaf.key, fact, NodeState.WAITING_APPROVAL, now_ms, timeout_s)
    _say_asked(run, leaf.key)


def is_let_through(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> bool:
    """Say whether a task's gate is open; ask if nobody has been asked yet."""
    decision = run.facts.approvals.get(leaf.key)
    if decision is not None and decision.status is ApprovalStatus.APPROVED:
        return True
    ask(run, leaf, fact, now_ms)
    return False


def apply_decision(run: RunState, leaf: LeafPlace, fact: NodeFact) -> None:
    """Apply a person's decision."""
    decision = run.facts.approvals.get(leaf.key)
    if decision is None or decision.status not in (ApprovalStatus.APPROVED, ApprovalStatus.DENIED):
        return
    if run.is_just_asked(leaf.key):
        return
    match leaf.element:
        case Task() as task:
            if decision.status is ApprovalStatus.APPROVED:
                run.put(leaf.key, fact._replace(state=NodeState.PENDING, due_ms=None))
                run.convergence.note_progress()
                run.make_ready(leaf)
            else:
                _deny(run, leaf.key, fact, decision, is_tolerated=task.continue_on_fail)
        case HumanTask() as form:
            _take_answer(run, leaf.key, fact, decision, form)
        case Budget() as budget:
            _take_grant(run, leaf.key, fact, decision, budget)
        case Approval() as approval:
            _decide_approval(run, leaf.key, fact, decision, approval)
        case Signal() | Timer() | Subflow() | ContinueAsNew():
            pass  # nobody is asked there


def run_out(run: RunState, leaf: LeafPlace, fact: NodeFact, now_ms: int) -> None:
    """Time a question out: a time-out is one more decision, and the first decision wins."""
    if run.is_just_asked(leaf.key):
        run.at(fact.due_ms or now_ms, leaf.key)
    elif leaf.key not in run.turn.timeouts:
        run.turn.timeouts.append(leaf.key)


def _decide_approval(
    run: RunState, key: NodeKey, fact: NodeFact, decision: ApprovalFact, approval: Approval
) -> None:
    is_approved = decision.status is ApprovalStatus.APPROVED
    if is_approved or approval.on_deny is OnDeny.CONTINUE:
        outcomes.finish(run, key, fact, _decision_json(decision, fact, is_approved=is_approved))
    elif approval.on_deny is OnDeny.SKIP:
        outcomes.skip(run, key, fact)
    else:
        _deny(run, key, fact, decision, is_tolerated=False)


def _take_grant(
    run: RunState, key: NodeKey, fact: NodeFact, decision: ApprovalFact, budget: Budget
) -> None:
    if decision.status is ApprovalStatus.APPROVED:
        outcomes.finish(run, key, fact, _decision_json(decision, fact, is_approved=True))
        run.ask_render()  # which gives the budget its next iteration, with nothing spent
        return
    problem = _denial(decision)
    if decision.decided_by != TIMEOUT_USER:
        text = f"{budget.describe(budgets.spent_of(run))}; more was {problem.message}"
        problem = Problem("BudgetSpent", text, "BUDGET_SPENT")
    outcomes.fail(run, key, fact, problem)


def _take_answer(
    run: RunState, key: NodeKey, fact: NodeFact, answer: ApprovalFact, form: HumanTask[Any]
) -> None:
    if answer.status is ApprovalStatus.DENIED:  # by a time-out: no person can deny a form
        match form.on_timeout:
            case OnTimeout.CONTINUE:
                outcomes.finish(run, key, fact, None)
            case OnTimeout.SKIP:
                outcomes.skip(run, key, fact)
            case OnTimeout.FAIL:
                _deny(run, key, fact, answer, is_tolerated=False)
        return
    try:
        filled_in = decode_output(answer.decision or "null")
        output = run.renderer.encode(filled_in, form.output, what="the form")
    except InvalidOutput as error:
        # The model is stricter than its schema: the question is asked again, with the errors.
        again = {**_request(run, form), "errors": error.details or [{"msg": str(error)}]}
        _put_request(run, key, again)
        run.put(key, fact)
        if (
            fact.due_ms is not None
        ):  # if it is over by now, the time-out of this answer's question was refused
            run.at(fact.due_ms, key)
        _say_asked(run, key)
        return
    outcomes.finish(run, key, fact, output)


def _put_request(run: RunState, key: NodeKey, request: dict[str, Any]) -> None:
    # An answer to an earlier question does not answer this one.
    run.facts.approvals.pop(key, None)
    # Not orjson: a form's schema may contain a number beyond 64 bits.
    text = to_json(request, inf_nan_mode="null").decode()
    run.turn.approvals.append(ApprovalChange(key, text))


def _say_asked(run: RunState, key: NodeKey) -> None:
    run.say(EventType.APPROVAL_REQUESTED, key)
    run.say(EventType.NODE_WAITING_APPROVAL, key)


def _request(run: RunState, element: object) -> dict[str, Any]:
    """Build the request: what people are shown, and what an answer is validated against."""
    match element:
        case Approval():
            request: dict[str, Any] = {"title": element.title, "summary": element.summary}
            if element.mode is not ApprovalMode.APPROVE:
                request |= {"mode": element.mode, "options": element.options}
        case HumanTask():
            request = {"title": element.prompt, "mode": "form", "schema": _schema(run, element)}
        case Budget():
            spent = element.describe(budgets.spent_of(run))
            title = "The budget is spent: may the agents use up as much again?"
            request = {"title": title, "summary": spent, "spent": spent}
        case Task():
            return {"title": element.label or element.id}
        case _:
            raise AssertionError(f"{element} asks nobody")
    for name, allowed in (
        ("allowedUsers", element.allowed_users),
        ("allowedScopes", element.allowed_scopes),
    ):
        if allowed is not None:
            request[name] = allowed
    return request


def _schema(run: RunState, form: HumanTask[Any]) -> Any:
    """Make a form's schema; that may run its author's code, which has a render's time."""
    model: Any = form.output

    def make() -> Any:
        return to_jsonable_python(adapter_for(model).json_schema(), inf_nan_mode="null")

    try:
        return run.renderer.guard(make)
    except BaseException as error:
        what = f"HumanTask({form.id!r}, output={name_of(model)}) is no model of a form"
        why = f"{type(error).__name__}: {text_of(error)}"
        raise InvalidTree(f"{what}: {why}"[:500]) from error


def _deny(
    run: RunState, key: NodeKey, fact: NodeFact, decision: ApprovalFact, *, is_tolerated: bool
) -> None:
    outcomes.fail(run, key, fact, _denial(decision), is_tolerated=is_tolerated)


def _denial(decision: ApprovalFact) -> Problem:
    if decision.decided_by == TIMEOUT_USER:
        return Problem("WaitTimedOut", "nobody decided in time", "WAIT_TIMED_OUT")
    by = f" by {decision.decided_by}" if decision.decided_by else ""
    note = f": {decision.note}" if decision.note else ""
    return Problem("ApprovalDenied", f"denied{by}{note}", "APPROVAL_DENIED")


def _decision_json(decision: ApprovalFact, fact: NodeFact, *, is_approved: bool) -> str:
    """Encode a decision as the answer to its question; the present tree may offer other options."""
    mode = fact.awaited.get("mode") if is_approved else None
    # The decision was validated against the question when it was recorded.
    chosen = decode_output(decision.decision or "null")
    moment = decision.decided_ms
    return ApprovalDecision(
        approved=is_approved,
        note=decision.note,
        decided_by=decision.decided_by,
        decided_at=None if moment is None else datetime.fromtimestamp(moment / 1000, UTC),
        timed_out=decision.decided_by == TIMEOUT_USER,
        selected=chosen["selected"] if mode == ApprovalMode.SELECT else None,
        ranked=chosen["ranked"] if mode == ApprovalMode.RANK else None,
    ).model_dump_json()
