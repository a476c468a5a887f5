"""The errors of talking to a server, by what the caller can do about them.

ClientError
├── Unsendable          the caller's values cannot be sent
├── ServerUnreachable   no answer; it is unknown whether the request was carried out
├── UnexpectedAnswer    the answer is not from a server of this kind
└── RequestRefused      the server refuses: `code` is its error code
    ├── AccessRefused   no token, a wrong one, or one without the scope
    ├── NotFound        no such run, node or route
    ├── Conflict        it exists, but in the wrong state: taken, ended, decided
    ├── BadRequest      the request itself is wrong
    └── ServerFailed    the server failed: repeating the request may help
"""

from typing import Any

from smithers.errors import SmithersError


class ClientError(SmithersError):
    """A request failed; `hint` says what a person can do about it."""

    hint: str | None = None


class Unsendable(ClientError):
    """The caller's values cannot be sent: nothing was sent."""


class ServerUnreachable(ClientError):
    """No answer; it is unknown whether the request was carried out."""

    hint = "start one with `smithers serve`, or name it with --server or SMITHERS_URL"


class UnexpectedAnswer(ClientError):
    """The answer is not from a server of this kind, or from a much newer one."""

    hint = "name the server with --server or SMITHERS_URL"


class RequestRefused(ClientError):
    """The server refused; `details` are for programs."""

    def __init__(self, message: str, *, code: str, status: int, details: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.details = details


class AccessRefused(RequestRefused):
    """No token, a wrong one, or one without the scope."""

    hint = "name the token with SMITHERS_API_KEY or --token"


class NotFound(RequestRefused):
    """There is no such run, node or route."""

    hint = (
        "`smithers ps` lists the runs, `smithers inspect RUN` the nodes of one; "
        "`up --serve` serves one run, without `ps`, `start` and `resume`"
    )


class Conflict(RequestRefused):
    """The run or node is in the wrong state for it."""


class BadRequest(RequestRefused):
    """The request itself is wrong."""


class ServerFailed(RequestRefused):
    """The server failed: repeating the request may help."""


def refusal(status: int, body: Any) -> RequestRefused:
    """Return the exception for a non-2xx answer; `body` is its JSON, or None if it has none."""
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
