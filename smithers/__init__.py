"""Durable workflows: what an author imports.

A workflow is a builder function that is called with a context and returns a tree; see docs/authoring.md.
"""

from smithers.context import ApprovalDecision, Auth, Context, TaskError
from smithers.current import CurrentTask, current_task
from smithers.errors import InvalidInput, InvalidOutput, OutputMissing, SmithersError
from smithers.states import NodeState, RunStatus
from smithers.tree import (
    Approval,
    ApprovalMode,
    Branch,
    Budget,
    Cache,
    ContinueAsNew,
    HumanTask,
    Loop,
    OnDeny,
    OnFailure,
    OnMaxReached,
    OnTimeout,
    Parallel,
    Price,
    Retry,
    Saga,
    Sequence,
    Signal,
    Step,
    Subflow,
    Task,
    Timer,
    Try,
    WaitForEvent,
)
from smithers.workflow import Workflow, workflow

__all__ = [
    "Approval",
    "ApprovalDecision",
    "ApprovalMode",
    "Auth",
    "Branch",
    "Budget",
    "Cache",
    "Context",
    "ContinueAsNew",
    "CurrentTask",
    "HumanTask",
    "InvalidInput",
    "InvalidOutput",
    "Loop",
    "NodeState",
    "OnDeny",
    "OnFailure",
    "OnMaxReached",
    "OnTimeout",
    "OutputMissing",
    "Parallel",
    "Price",
    "Retry",
    "RunStatus",
    "Saga",
    "Sequence",
    "Signal",
    "SmithersError",
    "Step",
    "Subflow",
    "Task",
    "TaskError",
    "Timer",
    "Try",
    "WaitForEvent",
    "Workflow",
    "current_task",
    "workflow",
]
