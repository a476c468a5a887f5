"""What the columns of a node's row hold: databases have these texts."""

from decimal import Decimal

import pytest

from smithers.engine.facts import NodeFact, NodeMark
from smithers.states import NodeState
from smithers.tree import Spent


@pytest.mark.parametrize(
    ("mark", "stored"),
    [
        (NodeMark.UNCHOSEN, '{"unchosen":true}'),
        (NodeMark.TOLERATED, '{"tolerated":true}'),
        (NodeMark.LATER, '{"later":true}'),
        (NodeMark.PARKED, '{"parked":true}'),
        (None, None),
    ],
)
def test_a_mark_is_stored_as_ever(mark, stored):
    fact = NodeFact(NodeState.PENDING, wait='{"signalName":"s"}').with_mark(mark)
    assert fact.wait == stored
    assert fact.mark is mark


def test_what_a_node_waits_for_is_no_mark():
    fact = NodeFact(NodeState.WAITING_EVENT).with_awaited({"signalName": "s"})
    assert fact.wait == '{"signalName":"s"}'
    assert (fact.awaited, fact.mark) == ({"signalName": "s"}, None)
    assert fact.with_awaited({}).wait is None


def test_what_a_budget_has_spent_is_stored_as_ever():
    fact, spent = NodeFact(NodeState.PENDING), Spent(12, Decimal("0.50"), 1500)
    assert fact.spent is None
    assert fact.with_spent(spent).heartbeat == '{"tokens":12,"cost":"0.50","seconds":1.5}'
    assert fact.with_spent(spent).spent == spent
