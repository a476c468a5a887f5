"""What a tool call may raise.

ToolError                   the call failed; its text says why, to a model as well as to a person
├── InvalidToolInput        the arguments do not fit the tool's parameters: nothing was done
├── ToolRefused             the file is outside the root, hidden, too large or of the wrong kind
├── ToolTimedOut            its time limit expired; all of its processes are dead
├── CallLost                its process died before it was answered: it is unknown whether it was done
└── SandboxUnavailable      commands cannot be jailed here, and never run otherwise
"""

from smithers.errors import SmithersError


class ToolError(SmithersError):
    """A tool call failed."""

    code = "TOOL_FAILED"


class InvalidToolInput(ToolError):
    """The arguments do not fit the tool's parameters."""

    code = "INVALID_TOOL_INPUT"


class ToolRefused(ToolError):
    """The tool may not touch what it was asked for."""

    code = "TOOL_REFUSED"


class ToolTimedOut(ToolError):
    """A call exceeded its time limit."""

    code = "TOOL_TIMEOUT"


class SandboxUnavailable(ToolError):
    """Commands cannot be jailed on this host."""

    code = "SANDBOX_UNAVAILABLE"


class CallLost(ToolError):
    """It is unknown whether a call was done that must not be done twice."""

    code = "TOOL_CALL_LOST"
