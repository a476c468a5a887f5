"""How much of its budget a run's agents have used. Pure.

The budget's node is outside the tree, and counts: each grant of more is an iteration of it, which begins with nothing spent.
"""

from decimal import Decimal

from smithers.engine import outcomes
from smithers.engine.facts import Problem
from smithers.engine.mount import LeafPlace
from smithers.engine.run_state import RunState
from smithers.engine.turn import TokenUsage
from smithers.states import NodeState
from smithers.tree import Spent


def find_place(run: RunState) -> LeafPlace | None:
    """Find the place of the run's budget; None if it has none."""
    return None if run.rendered is None else run.rendered.mounted.budget


def spent_of(run: RunState) -> Spent:
    """Return what was used since the run began, or since the last grant; a continuation goes on counting."""
    place = find_place(run)
    fact = None if place is None else run.facts.nodes.get(place.key)
    if fact is not None and (spent := fact.spent) is not None:
        return spent
    return run.renderer.spent if place is None or place.key.iteration == 0 else Spent()


def is_spent(run: RunState, more_ms: int = 0) -> bool:
    """Say whether no model may be asked now; `more_ms`: an attempt's working time since it was last counted.

    A run that is ending asks nobody: its agents' clean-up has a time limit of its own.
    """
    budget = run.renderer.budget
    if budget is None or run.is_ending:
        return False
    return budget.is_spent(spent_of(run).plus(Spent(took_ms=more_ms)))


def spend(run: RunState, spent: Spent) -> None:
    """Count usage, if the run has a budget."""
    place = find_place(run)
    if place is not None and (fact := run.facts.nodes.get(place.key)) is not None:
        run.put(place.key, fact.with_spent(spent_of(run).plus(spent)))


def find_cost(run: RunState, usage: TokenUsage) -> Decimal | None:
    """Return an answer's cost in dollars, by the author's price before all others; None: unknown."""
    budget = run.renderer.budget
    price = None if budget is None else budget.prices.get(usage.model)
    return usage.cost if price is None else price.of(usage.input_tokens, usage.output_tokens)


def refuse_unpriced(run: RunState, model: str) -> None:
    """Fail a run that would spend money that cannot be counted."""
    place = find_place(run)
    fact = None if place is None else run.facts.nodes.get(place.key)
    if place is None or fact is None or fact.state.is_settled:
        return
    text = f"no price is known of the model {model!r}: name it in Budget(prices={{{model!r}: Price(input=, output=)}})"
    outcomes.fail(run, place.key, fact, Problem("PriceUnknown", text, "PRICE_UNKNOWN"))


def close(run: RunState) -> None:
    """Skip, at the end of a run, the question that was never needed."""
    place = find_place(run)
    fact = None if place is None else run.facts.nodes.get(place.key)
    if place is not None and fact is not None and fact.state is NodeState.PENDING:
        outcomes.skip(run, place.key, fact)
