"""What a tool call may raise.

ToolError                   the call was made and came to nothing; its text says why, to a model as well as to a person
├── InvalidToolInput        the arguments do not fit the tool's parameters: nothing was done
├── ToolRefused             what was asked for lies outside of the root, is hidden, too large or of the wrong kind
├── ToolTimedOut            it took longer than it may; all of its processes are dead
├── CallLost                its process died before it was answered: whether it was done is not known
└── SandboxUnavailable      commands cannot be jailed here, and are never run otherwise
"""

from smithers.errors import SmithersError


class ToolError(SmithersError):
    """A tool call came to nothing."""

    code = "TOOL_FAILED"


class InvalidToolInput(ToolError):
    """The arguments do not fit the tool's parameters."""

    code = "INVALID_TOOL_INPUT"


class ToolRefused(ToolError):
    """The tool does not touch what it was asked to touch."""

    code = "TOOL_REFUSED"


class ToolTimedOut(ToolError):
    """A call took longer than it may."""

    code = "TOOL_TIMEOUT"


class SandboxUnavailable(ToolError):
    """Commands cannot be jailed on this host."""

    code = "SANDBOX_UNAVAILABLE"


class CallLost(ToolError):
    """Nobody knows whether a call was done that must not be done twice."""

    code = "TOOL_CALL_LOST"
