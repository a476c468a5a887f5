"""Talk to a server over HTTP: start, follow and steer runs.

Client is for plain code, AsyncClient for coroutines; both say the same. Answers are values, refusals exceptions (see
smithers.client.errors). Knows nothing of the database and of workflow code: whatever it does, curl can do.
"""

from smithers.client.asynchronous import AsyncClient
from smithers.client.errors import (
    AccessRefused,
    BadRequest,
    ClientError,
    Conflict,
    NotFound,
    RequestRefused,
    ServerFailed,
    ServerUnreachable,
    UnexpectedAnswer,
)
from smithers.client.synchronous import Client
from smithers.client.wire import (
    Approval,
    Attempt,
    Event,
    Frame,
    Node,
    Reason,
    Run,
    RunSummary,
    SignalRecord,
    StreamToken,
    ToolCall,
    Why,
    WorkflowSummary,
)

__all__ = [
    "AccessRefused",
    "Approval",
    "AsyncClient",
    "Attempt",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "Event",
    "Frame",
    "Node",
    "NotFound",
    "Reason",
    "RequestRefused",
    "Run",
    "RunSummary",
    "ServerFailed",
    "ServerUnreachable",
    "SignalRecord",
    "StreamToken",
    "ToolCall",
    "UnexpectedAnswer",
    "Why",
    "WorkflowSummary",
]
