"""What a builder returns: elements that nest, with tasks and waits as leaves.

Creating an element does nothing: it only describes. Children may be nested iterables; None, False and True are dropped, so
`cond and Task(...)` reads well. A node id is unique in its tree, and comes from data, not from positions.
"""

from smithers.tree.asks import Ask, name_of
from smithers.tree.budgets import Budget, Price, Spent
from smithers.tree.checks import SCOPE_MARK
from smithers.tree.groups import (
    Branch,
    Child,
    Element,
    Leaf,
    Loop,
    Parallel,
    Saga,
    Sequence,
    Step,
    Try,
    collect,
)
from smithers.tree.policies import (
    ApprovalMode,
    Cache,
    CacheScope,
    Isolation,
    IsolationWord,
    OnDeny,
    OnFailure,
    OnMaxReached,
    OnTimeout,
    Retry,
)
from smithers.tree.runs import ContinueAsNew, Subflow
from smithers.tree.tasks import Task
from smithers.tree.waits import Approval, HumanTask, Signal, Timer, WaitForEvent

__all__ = [
    "SCOPE_MARK",
    "Approval",
    "ApprovalMode",
    "Ask",
    "Branch",
    "Budget",
    "Cache",
    "CacheScope",
    "Child",
    "ContinueAsNew",
    "Element",
    "HumanTask",
    "Isolation",
    "IsolationWord",
    "Leaf",
    "Loop",
    "OnDeny",
    "OnFailure",
    "OnMaxReached",
    "OnTimeout",
    "Parallel",
    "Price",
    "Retry",
    "Saga",
    "Sequence",
    "Signal",
    "Spent",
    "Step",
    "Subflow",
    "Task",
    "Timer",
    "Try",
    "WaitForEvent",
    "collect",
    "name_of",
]
