"""What the gateway itself answers instead of doing what was asked, before the store is asked anything.

GatewayError             `details` are for programs
├── Unauthorized         no credential, or none that is right
├── Forbidden            the credential's scopes, or the Host or Origin header, do not allow it
├── RouteNotFound        no such path and method
├── RunIdRequired        a resume must say of which run
├── InvalidJson          the body is no JSON
├── InvalidRequest       the body, a field or a parameter is not what it must be
├── PayloadTooLarge      the body is over the limit
├── HeadersTooLarge      a header is over the limit
├── UriTooLong           the request line is over the limit
├── BodyTooSlow          the body did not come in time
├── UnknownExpectation   an Expect header other than 100-continue
├── Overloaded           the process has as much to do as it takes on
├── TooManyRequests      this run, or this credential, has as many as it may
├── NoWorker             what must be known of the workflow is not, and nobody lives who would find out
├── DbNotConfigured      nothing is listed where nothing is kept
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
    """No credential, or none that is right: which is not said."""

    code = "UNAUTHORIZED"
    message = "Missing or invalid authorization token"


class Forbidden(GatewayError):
    """The caller is known, and may not."""

    code = "FORBIDDEN"
    message = "This credential does not allow that."


class RouteNotFound(GatewayError):
    """There is nothing at this path for this method."""

    code = "NOT_FOUND"
    # Smithers' words: programs compare them.
    message = "Route not found"


class RunIdRequired(GatewayError):
    """A resume without a run."""

    code = "RUN_ID_REQUIRED"
    message = "A resume needs a runId."


class InvalidJson(GatewayError):
    """The body is no JSON text."""

    code = "INVALID_JSON"
    message = "The body is not valid JSON."


class InvalidRequest(GatewayError):
    """A part of the request is not what it must be."""

    code = "INVALID_REQUEST"


class PayloadTooLarge(GatewayError):
    """The body is over the limit."""

    code = "PAYLOAD_TOO_LARGE"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The body is larger than {max_bytes} bytes.", details={"maxBytes": max_bytes}
        )


class HeadersTooLarge(GatewayError):
    """A header is over the limit."""

    code = "HEADERS_TOO_LARGE"
    message = "A header is too large."


class UriTooLong(GatewayError):
    """The request line is over the limit."""

    code = "INVALID_REQUEST"
    message = "The request's path and query are too long."


class BodyTooSlow(GatewayError, TimeoutError):
    """The body did not come in time; a TimeoutError, so that aiohttp's reader of leftovers takes it for one."""

    code = "REQUEST_TIMEOUT"
    message = "The request did not arrive in time."


class UnknownExpectation(GatewayError):
    """The caller expects what nobody offers."""

    code = "INVALID_REQUEST"
    message = "The Expect header may only say 100-continue."


class Overloaded(GatewayError):
    """The process, or the workers, have as much to do as they take on; `details` name the limit."""

    code = "UNAVAILABLE"
    message = "The server has as much to do as it takes on; try again."


class TooManyRequests(GatewayError):
    """One run or one credential has as much as it may; `details` name the limit."""

    code = "TOO_MANY_REQUESTS"
    message = "There are as many of these as there may be; try again."


class NoWorker(GatewayError):
    """Whether the workflow has a database of its own must be known before its run is started."""

    code = "NO_WORKER"
    message = "No worker has described this workflow yet, and it may have a database of its own; try again."


class DbNotConfigured(GatewayError):
    """The server keeps nothing past its end."""

    code = "DB_NOT_CONFIGURED"
    message = "This server was started with --no-database: it lists nothing."


class NotReady(GatewayError):
    """The gateway should get no requests now; `details` name the failing check."""

    code = "UNAVAILABLE"
    message = "The gateway is not ready."
