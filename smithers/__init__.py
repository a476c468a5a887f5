"""Durable workflows: what an author imports.

A workflow is a builder function that is called with a context and returns a tree; see docs/authoring.md.
"""

from smithers.context import ApprovalDecision, Auth, Context
from smithers.current import CurrentTask, current_task
from smithers.errors import InvalidInput, InvalidOutput, OutputMissing, SmithersError
from smithers.states import NodeState, RunStatus
from smithers.tree import (
    Approval,
    Branch,
    Loop,
    OnDeny,
    OnMaxReached,
    OnTimeout,
    Parallel,
    Retry,
    Sequence,
    Signal,
    Task,
    Timer,
    WaitForEvent,
)
from smithers.workflow import Workflow, workflow

__all__ = [
    "Approval",
    "ApprovalDecision",
    "Auth",
    "Branch",
    "Context",
    "CurrentTask",
    "InvalidInput",
    "InvalidOutput",
    "Loop",
    "NodeState",
    "OnDeny",
    "OnMaxReached",
    "OnTimeout",
    "OutputMissing",
    "Parallel",
    "Retry",
    "RunStatus",
    "Sequence",
    "Signal",
    "SmithersError",
    "Task",
    "Timer",
    "WaitForEvent",
    "Workflow",
    "current_task",
    "workflow",
]
