"""What a task's body, and a model that it asks, may use: files below the root, programs in a jail.

Each call is recorded. In an async body a call is awaited, `await read("notes.md")`; in a plain function, call
`read("notes.md").result()`. Nothing happens before that. See docs/authoring.md, and docs/sandbox.md for the jail.
"""

from smithers.tools.commands import CommandResult, Match, Matches, bash, grep
from smithers.tools.errors import (
    CallLost,
    InvalidToolInput,
    SandboxUnavailable,
    ToolError,
    ToolRefused,
    ToolTimedOut,
)
from smithers.tools.files import FileText, Written, edit, read, write
from smithers.tools.tool import Call, Tool, tool
from smithers.tools.toolbox import CurrentCall, PreviousCall, current_call, previous_calls

__all__ = [
    "Call",
    "CallLost",
    "CommandResult",
    "CurrentCall",
    "FileText",
    "InvalidToolInput",
    "Match",
    "Matches",
    "PreviousCall",
    "SandboxUnavailable",
    "Tool",
    "ToolError",
    "ToolRefused",
    "ToolTimedOut",
    "Written",
    "bash",
    "current_call",
    "edit",
    "grep",
    "previous_calls",
    "read",
    "tool",
    "write",
]
