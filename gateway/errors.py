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
    """The body did not arrive in time; a TimeoutError, so that aiohttp's reader of leftovers treats it as one."""

    code = "REQUEST_TIMEOUT"
    message = "The request did not arrive in time."


class UnknownExpectation(GatewayError):
    """The caller expects what nobody offers."""

    code = "INVALID_REQUEST"
    message = "The Expect header may only say 100-continue."


class Overloaded(GatewayError):
    """The process, or the workers, are at a limit; `details` name it."""

    code = "UNAVAILABLE"
    message = "The server has as much to do as it takes on; try again."


class TooManyRequests(GatewayError):
    """One run or one credential has reached a limit; `details` name it."""

    code = "TOO_MANY_REQUESTS"
    message = "There are as many of these as there may be; try again."


class NoWorker(GatewayError):
    """Before its run is started it must be known whether the workflow has a database of its own."""

    code = "NO_WORKER"
    message = "No worker has described this workflow yet, and it may have a database of its own; try again."


class DbNotConfigured(GatewayError):
    """The server keeps nothing after its end."""

    code = "DB_NOT_CONFIGURED"
    message = "This server was started with --no-database: it lists nothing."


class NotReady(GatewayError):
    """The gateway should get no requests now; `details` name the failing check."""

    code = "UNAVAILABLE"
    message = "The gateway is not ready."
