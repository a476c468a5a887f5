"""Generate OpenAPI 3.1 from the table of routes, its handlers' signatures and docstrings, and the types of requests.

Nothing that is declared elsewhere is described here, only what all routes have in common.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Final, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from gateway import errors
from gateway.access import Scope
from gateway.envelope import find_status
from gateway.fields import Body, Headers
from gateway.paging import Page
from gateway.responses import ProblemAnswer
from gateway.routing import OPEN, Media, Route
from smithers.errors import SmithersError, StoreUnavailable
from smithers.ids import NODE_ID_PATTERN, RUN_ID_PATTERN

JSON: Final = "application/json"
_TEXT: Final = {"schema": {"type": "string"}}
_NAMED: Final = re.compile(r":(\w+)")

# The named parts of paths.
NAMES: Final = MappingProxyType(
    {
        "runId": {"type": "string", "pattern": f"^{RUN_ID_PATTERN.pattern}$"},
        "nodeId": {"type": "string", "pattern": f"^{NODE_ID_PATTERN.pattern}$"},
        "signalName": {"type": "string", "minLength": 1, "maxLength": 200},
    }
)

# The refusals of every route, of every one that requires a credential, and of every one that takes a body.
ALWAYS: Final = (
    errors.InvalidRequest,
    errors.BodyTooSlow,
    errors.UriTooLong,
    errors.UnknownExpectation,
    errors.HeadersTooLarge,
)
WITH_CREDENTIAL: Final = (errors.Unauthorized, errors.Forbidden, StoreUnavailable)
WITH_BODY: Final = (errors.InvalidJson, errors.PayloadTooLarge)

ABOUT: Final = """\
Every answer has an `X-Request-Id`: the caller's if it is valid, else a new one. Errors are `{"error": {"code", "message",
"details"?}}`: `code` and `details` are for programs, `message` is for people. HEAD is answered wherever GET is.
Named path parameters are percent-encoded. Lists are paged: `Link` leads to the next one."""

_HEADERS: Final = {
    "X-Request-Id": {"description": "the request's id in the server's logs", **_TEXT},
    "Link": {"description": '`rel="next"`: the next page, if there is one', **_TEXT},
    "Retry-After": {"description": "seconds", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "Bearer", **_TEXT},
}
_REQUEST_ID: Final = {"name": "X-Request-Id", "in": "header", "required": False, **_TEXT}
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-smithers-key"},
    "streamToken": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "opens one run's event stream, for a few minutes",
    },
}


class _Untitled(GenerateJsonSchema):
    """pydantic's generator, without the titles that repeat a field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's own
        """Say no."""
        return False


def build_document(routes: Iterable[Route]) -> dict[str, Any]:
    """Describe routes as an OpenAPI document, a JSON value."""
    document = _Document(list(routes))
    for route in document.routes:
        document.add(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Smithers",
            "version": version("smithers-gateway"),
            "description": ABOUT,
        },
        "paths": document.paths,
        "components": {
            "schemas": document.schemas,
            "responses": document.refusals,
            "headers": _HEADERS,
            "parameters": {"requestId": _REQUEST_ID},
            "securitySchemes": _SECURITY,
        },
    }


def codes_of(route: Route) -> dict[int, list[str]]:
    """Return the codes with which a route may refuse, by status."""
    kinds: list[type[SmithersError]] = [*ALWAYS, *route.refusals]
    if route.scope is not OPEN:
        kinds += WITH_CREDENTIAL
    if "body" in route.takes:
        kinds += WITH_BODY
    codes: dict[int, set[str]] = {HTTPStatus.INTERNAL_SERVER_ERROR: {SmithersError.code}}
    for kind in kinds:
        status = find_status(kind)
        assert status is not None, f"{kind.__name__} is in no table"
        codes.setdefault(status, set()).add(kind.code)
    return {status: sorted(codes[status]) for status in sorted(codes)}


class _Document:
    """A document under construction."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes
        self.paths: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, Any] = {}
        self._operation_ids: set[str] = set()
        kinds: set[Any] = {ProblemAnswer}
        for route in routes:
            kinds |= {*route.takes.values(), *_answer_types(route)}
        # All at once, so that each type is in the components once.
        found, rest = TypeAdapter.json_schemas(
            [(kind, "validation", TypeAdapter(kind)) for kind in kinds],
            ref_template="#/components/schemas/{model}",
            schema_generator=_Untitled,
        )
        self._described = {kind: schema for (kind, _), schema in found.items()}
        parameters = {kind.__name__ for route in routes for kind in _parameter_types(route)}
        self.schemas = {
            name: schema for name, schema in rest["$defs"].items() if name not in parameters
        }
        self._parameters = {name: rest["$defs"][name]["properties"] for name in parameters}

    def add(self, route: Route) -> None:
        """Describe one route."""
        path = _NAMED.sub(r"{\1}", route.template)
        summary, _, more = inspect.cleandoc(route.handler.__doc__ or "").partition("\n")
        operation: dict[str, Any] = {
            "operationId": self._operation_id(route.handler.__name__, path),
            "tags": [route.handler.__module__.rpartition(".")[2]],
            "summary": summary.removesuffix("."),
            "description": more.strip(),
            "security": _security(route),
            "parameters": [
                {"$ref": "#/components/parameters/requestId"},
                *self._parameters_of(route),
            ],
        }
        body = route.takes.get("body")
        if body is not None:
            operation["requestBody"] = {
                "required": any(field.is_required() for field in body.model_fields.values()),
                "content": {JSON: {"schema": self._described[body]}},
            }
        operation["responses"] = {
            **self._successes(route),
            **{
                str(status): self._refusal(status, codes)
                for status, codes in codes_of(route).items()
            },
        }
        self.paths.setdefault(path, {})[route.method.lower()] = operation

    def _operation_id(self, name: str, path: str) -> str:
        if name in self._operation_ids:  # the same handler, at another path
            name += re.sub(r"\W+", "_", path)
        self._operation_ids.add(name)
        return name

    def _parameters_of(self, route: Route) -> Iterator[dict[str, Any]]:
        for name in _NAMED.findall(route.template):
            yield {"name": name, "in": "path", "required": True, "schema": NAMES[name]}
        for kind in _parameter_types(route):
            place = "header" if issubclass(kind, Headers) else "query"
            for name, schema in self._parameters[kind.__name__].items():
                about = schema.get("description", "")
                shape = _without_null(schema)
                described = {"name": name, "in": place, "description": about, "schema": shape}
                yield described | ({"allowEmptyValue": True} if place == "query" else {})

    def _successes(self, route: Route) -> dict[str, Any]:
        media = media_of(route)
        headers = _headers("X-Request-Id")
        if media is not None:
            shape = _TEXT if media.events is None else {"schema": self._event(media.events)}
            content = dict.fromkeys(media.types, shape)
        else:
            (kind,) = _answer_types(route)
            content = {JSON: {"schema": self._described[kind]}}
            if get_origin(route.answer) is Page:
                headers = _headers("X-Request-Id", "Link")
        done = {"description": "Done.", "headers": headers, "content": content}
        empty = {} if media is None else media.empty
        return {
            "200": done,
            **{str(status): {"description": when} for status, when in empty.items()},
        }

    def _event(self, kind: Any) -> dict[str, Any]:
        """Describe one event of a stream: before OpenAPI 3.2 that is the meaning of a stream's schema."""
        data = {"contentMediaType": JSON, "contentSchema": self._described[kind]}
        return {
            "type": "object",
            "required": ["id", "event", "data"],
            "properties": {
                "id": {"type": "string", "pattern": "^[0-9]+$"},
                "event": {"const": "smithers"},
                "data": {"type": "string", **data},
            },
        }

    def _refusal(self, status: int, codes: list[str]) -> dict[str, str]:
        """Add a refusal to the components, and return a reference to it."""
        name = ".".join([str(status), *codes])
        headers = ["X-Request-Id"]
        if status == HTTPStatus.UNAUTHORIZED:
            headers.append("WWW-Authenticate")
        elif status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            headers.append("Retry-After")
        code = {"properties": {"code": {"enum": codes}}}
        schema = {**self._described[ProblemAnswer], "properties": {"error": code}}
        self.refusals[name] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(codes)}",
            "headers": _headers(*headers),
            "content": {JSON: {"schema": schema}},
        }
        return {"$ref": f"#/components/responses/{name}"}


def media_of(route: Route) -> Media | None:
    """Return a handler's Media mark for a response that it writes itself; None: it returns a JSON value."""
    marks = getattr(route.answer, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Media)), None)


def _answer_types(route: Route) -> list[Any]:
    if (media := media_of(route)) is not None:
        return [] if media.events is None else [media.events]
    return list(get_args(route.answer)) if get_origin(route.answer) is Page else [route.answer]


def _parameter_types(route: Route) -> list[Any]:
    return [kind for kind in route.takes.values() if not issubclass(kind, Body)]


def _security(route: Route) -> list[Mapping[str, list[str]]]:
    if not isinstance(route.scope, Scope):
        return []
    ways: list[Mapping[str, list[str]]] = [{"bearer": [route.scope]}, {"key": [route.scope]}]
    return [*ways, {"streamToken": []}] if route.takes_stream_token else ways


def _headers(*names: str) -> dict[str, dict[str, str]]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Remove null from a parameter's schema: an omitted parameter is absent."""
    shape = {name: value for name, value in schema.items() if name != "description"}
    if shape.get("default", ...) is None:
        del shape["default"]
    kinds = [kind for kind in shape.pop("anyOf", []) if kind != {"type": "null"}]
    return {**shape, **kinds[0]} if kinds else shape
