"""Apply attempts' reports: their ends, output, calls and heartbeats. Pure."""

from decimal import Decimal
from typing import Final

from smithers.engine import budgets, waits
from smithers.engine.facts import NodeFact, NodeKey, NodeMark, Problem
from smithers.engine.outcomes import put_failed
from smithers.engine.retrying import backoff_ms
from smithers.engine.run_state import RunState
from smithers.engine.turn import AttemptEnd, CachedOutput, TokenUsage, ToolCall
from smithers.events import EventType
from smithers.states import AttemptState, NodeState, ToolCallState
from smithers.texts import encodable
from smithers.tree import Spent, Task

HEARTBEAT_TIMEOUT: Final = "HEARTBEAT_TIMEOUT"


def lose_attempt(run: RunState, key: NodeKey) -> None:
    """Record that an attempt's process died: the node is due again, and uses up no retry."""
    fact = run.facts.nodes[key]
    end = AttemptEnd(key, fact.attempt, AttemptState.LOST, fact.started_ms, None)
    run.turn.attempts.append(end)
    run.put(key, fact._replace(state=NodeState.PENDING))
    run.facts.lost.add(key)


def finish_attempt(
    run: RunState, key: NodeKey, output: str, cached: CachedOutput | None = None
) -> None:
    """Record an attempt's result, JSON text; `cached`: the output for reuse."""
    if cached is not None:
        run.turn.cached.append(cached)
    fact = _end_attempt(run, key, AttemptState.FINISHED, None)
    run.put(key, fact._replace(state=NodeState.FINISHED, output=output, error=None))
    run.say(EventType.NODE_FINISHED, key, attempt=fact.attempt)
    run.settle(key)


def fail_attempt(run: RunState, key: NodeKey, problem: Problem, now_ms: int) -> None:
    """Record that an attempt failed: retry after a back-off, or fail the node."""
    fact = _end_attempt(run, key, AttemptState.FAILED, problem)
    leaf = run.find_leaf(key)
    task = leaf.element if leaf is not None and isinstance(leaf.element, Task) else None
    failures = fact.failures + 1
    if problem.code == HEARTBEAT_TIMEOUT:
        run.say(EventType.TASK_HEARTBEAT_TIMEOUT, key, attempt=fact.attempt)
    run.say(EventType.NODE_FAILED, key, attempt=fact.attempt, error=problem.to_wire())
    fact = fact._replace(failures=failures, error=problem)
    if task is not None and failures <= task.retries:
        # Nothing starts any more: the remaining retries are for a resume.
        if run.is_ending and not run.is_cleaning:
            run.put(key, fact._replace(state=NodeState.PENDING))
            return
        due_ms = now_ms + backoff_ms(task.retry, failures, f"{run.renderer.run_id}/{key}")
        run.put(key, fact._replace(state=NodeState.PENDING, due_ms=due_ms))
        run.convergence.note_progress()
        run.say(EventType.NODE_RETRYING, key, attempt=fact.attempt + 1)
        run.at(due_ms, key)
        return
    is_tolerated = task is None or task.continue_on_fail  # None: it has left the tree
    put_failed(run, key, fact._replace(state=NodeState.FAILED), problem, is_tolerated=is_tolerated)


def abort_attempt(run: RunState, key: NodeKey, reason: str) -> None:
    """Record that an attempt was stopped on purpose."""
    fact = _end_attempt(run, key, AttemptState.CANCELLED, None)
    waits.cancel_node(run, key, fact, reason)
    if run.find_leaf(key) is None:
        run.settle(key)  # what depends on it need not wait any longer
        return
    if run.is_ending:
        return
    # It came back into the tree while it was being stopped.
    run.put(key, fact._replace(state=NodeState.PENDING))
    run.say(EventType.NODE_PENDING, key)
    run.ask_render()


def park_attempt(run: RunState, key: NodeKey, took_ms: int) -> None:
    """Record that an attempt stopped before a question to a model: the next one recalls its calls.

    `took_ms`: since it was last counted. No retry is used up.
    """
    budgets.spend(run, Spent(took_ms=took_ms))
    leaf = run.find_leaf(key)
    if leaf is None or run.is_ending:
        abort_attempt(run, key, run.reason if run.is_ending else "unmounted")
        return
    fact = _end_attempt(run, key, AttemptState.PARKED, None)
    run.put(key, fact._replace(state=NodeState.PENDING).with_mark(NodeMark.PARKED))
    run.say(EventType.NODE_PENDING, key)
    run.make_ready(leaf)


def record_output(run: RunState, key: NodeKey, attempt: int, text: str, stream: str) -> None:
    """Record a body's printed output."""
    run.say(EventType.NODE_OUTPUT, key, attempt=attempt, text=encodable(text), stream=stream)


def record_heartbeat(run: RunState, key: NodeKey, attempt: int, data: str) -> None:
    """Record a body's heartbeat, JSON text."""
    run.put(key, run.facts.nodes[key]._replace(heartbeat=data))
    run.say(EventType.TASK_HEARTBEAT, key, attempt=attempt)


def record_tool_call(run: RunState, key: NodeKey, attempt: int, call: ToolCall) -> None:
    """Record that a body has begun or ended a call of a tool or a model; only a tool's are events."""
    run.turn.tool_calls[key, attempt, call.call_no] = call
    if call.kind != "tool":
        return
    fields = {"attempt": attempt, "toolName": call.tool_name, "seq": call.call_no}
    if call.state is ToolCallState.STARTED:
        run.say(EventType.TOOL_CALL_STARTED, key, **fields)
    else:
        status = "success" if call.state is ToolCallState.FINISHED else "error"
        run.say(EventType.TOOL_CALL_FINISHED, key, **fields, status=status)


def record_usage(
    run: RunState, key: NodeKey, attempt: int, usage: TokenUsage, took_ms: int
) -> None:
    """Record a model's usage; `took_ms`: since the attempt was last counted."""
    cost = budgets.find_cost(run, usage)
    run.say(
        EventType.TOKEN_USAGE_REPORTED,
        key,
        attempt=attempt,
        agent=usage.agent,
        model=usage.model,
        inputTokens=usage.input_tokens,
        outputTokens=usage.output_tokens,
        **({} if cost is None else {"cost": float(cost)}),
    )
    budget, tokens = run.renderer.budget, usage.input_tokens + usage.output_tokens
    budgets.spend(run, Spent(tokens, cost or Decimal(), took_ms))
    if cost is None and budget is not None and budget.cost is not None:
        budgets.refuse_unpriced(run, usage.model)


def _end_attempt(
    run: RunState, key: NodeKey, state: AttemptState, problem: Problem | None
) -> NodeFact:
    fact = run.facts.nodes[key]
    run.in_flight.discard(key)
    run.turn.attempts.append(AttemptEnd(key, fact.attempt, state, fact.started_ms, problem))
    return fact
