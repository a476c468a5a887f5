"""The gateway's own refusals, before the store is called.

GatewayError             `details` are for programs
├── Unauthorized         no credential, or a wrong one
├── Forbidden            the credential's scopes, or the Host or Origin header, do not allow it
├── RouteNotFound        no such path and method
├── RunIdRequired        a resume must name the run
├── InvalidJson          the body is not JSON
├── InvalidRequest       the body, a field or a parameter is invalid
├── PayloadTooLarge      the body is over the limit
├── HeadersTooLarge      a header, or their number, is over the limit
├── UriTooLong           the request line is over the limit
├── BodyTooSlow          the body did not arrive in time
├── UnknownExpectation   an Expect header other than 100-continue
├── Overloaded           the process is at one of its limits
├── TooManyRequests      this run, or this credential, has reached its limit
├── NoWorker             the workflow has not been described, and no living worker could do so
├── DbNotConfigured      there are no lists without a database
└── NotReady             the gateway should get no requests now
"""

from typing import Any

from smithers.errors import SmithersError


class GatewayError(SmithersError):
    """The request is answered with an error; nothing was changed."""

    message = "The request cannot be served."

    def __init__(
        self, message: str | None = None, *, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message or self.message)
        self.details = details


class Unauthorized(GatewayError):
    """No credential, or a wrong one: the answer does not say which."""

    code = "UNAUTHORIZED"
    message = "Missing or invalid authorization token"


class Forbidden(GatewayError):
    """The caller is known, but not allowed."""

    code = "FORBIDDEN"
    message = "This credential does not allow that."


class RouteNotFound(GatewayError):
    """There is nothing at this path for this method."""

    code = "NOT_FOUND"
    # Smithers' exact text: programs compare it.
    message = "Route not found"


class RunIdRequired(GatewayError):
    """A resume without a run."""

    code = "RUN_ID_REQUIRED"
    message = "A resume needs a runId."


class InvalidJson(GatewayError):
    """The body is not JSON."""

    code = "INVALID_JSON"
    message = "The body is not valid JSON."


class InvalidRequest(GatewayError):
    """A part of the request is invalid."""

    code = "INVALID_REQUEST"


class PayloadTooLarge(GatewayError):
    """The body is over the limit."""

    code = "PAYLOAD_TOO_LARGE"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The body is larger than {max_bytes} bytes.", details={"maxBytes": max_bytes}
        )


class HeadersTooLarge(GatewayError):
    """A header is over the limit, or there are too many."""

    code = "HEADERS_TOO_LARGE"
    message = "A header is too large."


class UriTooLong(GatewayError):
    """The request line is over the limit."""

    code = "INVALID_REQUEST"
    message = "The request's path and query are too long."


class BodyTooSlow(GatewayError, TimeoutError):
    """The body did not arrive in time; a TimeoutError, as aiohttp expects where it discards the rest of a body."""

    code = "REQUEST_TIMEOUT"
    message = "The request did not arrive in time."


class UnknownExpectation(GatewayError):
    """The Expect header asks for something other than 100-continue."""

    code = "INVALID_REQUEST"
    message = "The only supported value of the Expect header is 100-continue."


class Overloaded(GatewayError):
    """The process, or the workers, are at a limit; `details` name it."""

    code = "UNAVAILABLE"
    message = "The server has reached one of its limits; try again later."


class TooManyRequests(GatewayError):
    """One run or one credential has reached a limit; `details` name it."""

    code = "TOO_MANY_REQUESTS"
    message = "This run or credential has reached its limit of open event streams; try again later."


class NoWorker(GatewayError):
    """The workflow is not described: whether it has a database of its own must be known before its run is started."""

    code = "NO_WORKER"
    message = "No worker has described this workflow yet, and it may have a database of its own; try again."


class DbNotConfigured(GatewayError):
    """The server keeps nothing after its end."""

    code = "DB_NOT_CONFIGURED"
    message = (
        "This server was started with --no-database: it cannot list runs, workflows or approvals."
    )


class NotReady(GatewayError):
    """The gateway should get no requests now; `details` name the failing check."""

    code = "UNAVAILABLE"
    message = "The gateway is not ready."
