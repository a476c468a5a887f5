"""The form of every answer: JSON, its headers, and the one table that turns errors into HTTP."""

import json
import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway import errors
from gateway.access import Credential, Scope
from gateway.bodies import write_json
from smithers.errors import StoreUnavailable
from smithers.source.errors import SourceError
from smithers.store import refusals
from smithers.store.schema import SchemaMismatch

SERVER: Final = "smithers"  # no versions, which would help an attacker
BASE_HEADERS: Final = MappingProxyType(
    {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Server": SERVER,
    }
)
RETRY_AFTER_S: Final = "1"

# Looked up by class, then by its bases. Any other error is 500, logged with its traceback, its text withheld.
PROBLEMS: Final[Mapping[type[BaseException], int]] = MappingProxyType(
    {
        errors.Unauthorized: 401,
        errors.Forbidden: 403,
        errors.RouteNotFound: 404,
        errors.RunIdRequired: 400,
        errors.InvalidJson: 400,
        errors.InvalidRequest: 400,
        errors.PayloadTooLarge: 413,
        errors.HeadersTooLarge: 431,
        errors.UriTooLong: 414,
        errors.BodyTooSlow: 408,
        errors.UnknownExpectation: 417,
        errors.Overloaded: 503,
        errors.TooManyRequests: 429,
        errors.NotReady: 503,
        errors.NoWorker: 503,
        errors.DbNotConfigured: 400,
        refusals.RunNotFound: 404,
        refusals.NodeNotFound: 404,
        refusals.RunExists: 409,
        refusals.RunNotActive: 409,
        refusals.NodeNotWaiting: 409,
        refusals.NotAllowed: 403,
        refusals.DecisionMisfit: 400,
        refusals.FormMisfit: 400,
        refusals.LivesElsewhere: 503,
        refusals.KeyReused: 409,
        SourceError: 400,
        StoreUnavailable: 503,
        SchemaMismatch: 503,
    }
)


def new_request_id() -> str:
    """Make a request id: 16 random hex digits."""
    return f"{random.getrandbits(64):016x}"


def find_status(kind: type[BaseException]) -> int | None:
    """Return the HTTP status of an error class; None: it is unforeseen."""
    for each in kind.__mro__:
        if (status := PROBLEMS.get(each)) is not None:
            return status
    return None


def reply(value: Any, *, status: int = 200, link: str | None = None) -> web.Response:
    """Answer with a JSON value."""
    response = web.Response(body=orjson.dumps(value), status=status, headers=BASE_HEADERS)
    if link is not None:
        response.headers["Link"] = link
    return response


def stored(text: str | None) -> orjson.Fragment | None:
    """Return stored JSON text unchanged."""
    return None if text is None else orjson.Fragment(text)


def public_error(text: str | None) -> orjson.Fragment | None:
    """Return a stored error without its traceback, which names the host's files."""
    if text is None or '"traceback"' not in text:
        return stored(text)
    error = json.loads(text)
    error.pop("traceback", None)
    return stored(write_json(error))


def error_for(credential: Credential, text: str | None) -> orjson.Fragment | None:
    """Return a stored error; its traceback is for operators, who have the scope `admin`."""
    return stored(text) if credential.allows(Scope.ADMIN) else public_error(text)


def problem(error: BaseException) -> web.Response:
    """Answer with an error: its envelope if it is in the table, else a 500 without details."""
    error = translate(error)
    status = find_status(type(error))
    if status is None:
        text = "Internal error; the server's log has more under this request's id."
        return _envelope(500, "SERVER_ERROR", text, None)
    code = getattr(error, "code", "SERVER_ERROR")
    if isinstance(error, SourceError):
        response = _envelope(status, code, error.reason, {"reason": error.reason})
    elif isinstance(error, StoreUnavailable):
        text = "The database does not answer, or takes no writes; try again."
        response = _envelope(status, code, text, None)
    else:
        response = _envelope(status, code, str(error), getattr(error, "details", None))
    if status in {429, 503}:
        response.headers["Retry-After"] = RETRY_AFTER_S
    elif status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def translate(error: BaseException) -> BaseException:
    """Translate an error of aiohttp's; its own texts quote the request."""
    if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
        return errors.InvalidRequest("The request is not well-formed HTTP.")
    if isinstance(error, web.HTTPException):
        return errors.RouteNotFound()
    return error


def _envelope(status: int, code: str, message: str, details: dict[str, Any] | None) -> web.Response:
    content: dict[str, Any] = {"code": code, "message": message}
    if details is not None:
        content["details"] = details
    return reply({"error": content}, status=status)
