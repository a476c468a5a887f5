"""Start the tasks whose turn has come, in tree order, as the run and its budget have room. Pure."""

import heapq

from smithers.engine import budgets, questions
from smithers.engine.facts import NodeFact, NodeKey, NodeMark
from smithers.engine.mount import LeafPlace
from smithers.engine.run_state import RunState
from smithers.engine.turn import Start
from smithers.events import EventType
from smithers.states import NodeState
from smithers.tree import Task


def start(run: RunState, now_ms: int) -> None:
    """Start what may start; if the budget is spent, agents wait, and a person is asked."""
    held_back: list[tuple[int, NodeKey]] = []
    has_budget = run.renderer.budget is not None
    while run.ready and len(run.in_flight) < run.max_concurrency:
        position, key = heapq.heappop(run.ready)
        leaf, fact = run.find_leaf(key), run.facts.nodes[key]
        if run.allowed is not None and key not in run.allowed:
            held_back.append((position, key))
            continue
        if leaf is None or key in run.in_flight or fact.state is not NodeState.PENDING:
            continue
        if has_budget and _needs_budget(run, leaf, fact) and budgets.is_spent(run):
            held_back.append((position, key))
            _ask_for_more(run, now_ms)
            continue
        attempt = fact.attempt + 1
        run.in_flight.add(key)
        run.turn.started.add(key)
        run.turn.starts.append(Start(leaf, attempt))
        fact = fact._replace(state=NodeState.IN_PROGRESS, attempt=attempt, due_ms=None, wait=None)
        run.put(key, fact)
        run.say(EventType.NODE_STARTED, key, attempt=attempt)
    for entry in held_back:
        heapq.heappush(run.ready, entry)


def _needs_budget(run: RunState, leaf: LeafPlace, fact: NodeFact) -> bool:
    """Say whether a task asks models; one whose process died first recalls its stored answers."""
    is_agents = isinstance(leaf.element, Task) and leaf.element.ask is not None
    return (is_agents and leaf.key not in run.facts.lost) or fact.mark is NodeMark.PARKED


def _ask_for_more(run: RunState, now_ms: int) -> None:
    """Ask a person, once, whether agents may go on."""
    place = budgets.find_place(run)
    assert place is not None
    fact = run.facts.nodes[place.key]
    if fact.state is NodeState.PENDING:
        questions.ask(run, place, fact, now_ms)
