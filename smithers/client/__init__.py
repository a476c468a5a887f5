"""Talk to a server over HTTP: start, follow and control runs.

Client is for synchronous code, AsyncClient for coroutines; both have the same methods. Answers are values, refusals are
exceptions (see smithers.client.errors). It knows nothing of the database and workflow code: curl can do all of it.
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
    Unsendable,
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
    "Unsendable",
    "Why",
    "WorkflowSummary",
]
