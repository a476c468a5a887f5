"""What may come of talking to a server, by what the caller can do about it.

ClientError
├── ServerUnreachable   nobody answers there; whether a request was carried out is not known
├── UnexpectedAnswer    somebody answers, and it is no server of this kind
└── RequestRefused      the server says no: `code` is its word for it
    ├── AccessRefused   no token, a wrong one, or one that may not
    ├── NotFound        no such run, node or route
    ├── Conflict        it is there, and in the wrong state: taken, ended, decided
    ├── BadRequest      the request itself is wrong
    └── ServerFailed    the server's fault: asking again may help
"""

from typing import Any

from smithers.errors import SmithersError


class ClientError(SmithersError):
    """A request has no good answer; `hint` says what a person can do about it."""

    hint: str | None = None


class ServerUnreachable(ClientError):
    """Nobody answers; whether the request was carried out is not known."""

    hint = "start one with `smithers serve`, or name it with --server or SMITHERS_URL"


class UnexpectedAnswer(ClientError):
    """What answers there is no server of this kind, or a much newer one."""

    hint = "name the server with --server or SMITHERS_URL"


class RequestRefused(ClientError):
    """The server refused; `details` are what it adds for programs."""

    def __init__(self, message: str, *, code: str, status: int, details: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.details = details


class AccessRefused(RequestRefused):
    """No token, a wrong one, or one that may not."""

    hint = "name the token with SMITHERS_API_KEY or --token"


class NotFound(RequestRefused):
    """There is no such run, node or route."""

    hint = "`smithers ps` lists the runs, `smithers inspect RUN` the nodes of one"


class Conflict(RequestRefused):
    """The run or node is in the wrong state for it."""


class BadRequest(RequestRefused):
    """The request is wrong as it stands."""


class ServerFailed(RequestRefused):
    """The server could not: asking again may help."""


def refusal(status: int, body: Any) -> RequestRefused:
    """Return the exception for an answer that is no 2xx; `body` is its JSON, or None where it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    return _class_of(status)(
        str(error.get("message") or f"the server answered with status {status}"),
        code=str(error.get("code") or "UNKNOWN"),
        status=status,
        details=error.get("details"),
    )


def _class_of(status: int) -> type[RequestRefused]:
    match status:
        case 401 | 403:
            return AccessRefused
        case 404:
            return NotFound
        case 409:
            return Conflict
        case _:
            return ServerFailed if status >= 500 or status == 429 else BadRequest
