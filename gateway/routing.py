"""Find the route of a request by exact match on the raw path; the table of routes is the table of authorization.

A route must have a scope: OPEN is a scope of its own. Nothing is normalised: `//v1/runs`,
`/V1/RUNS`, `/v1%2Fruns` are not routes. Only the named parts are percent-decoded.

A route's parameters and answer are declared by its handler's signature alone:

    async def get_runs(exchange: Exchange, query: RunsQuery) -> Page[list[RunRowAnswer]]:

`body`, `query` and `headers` (subclasses of Body, Query, Headers) are checked before the handler is called, in the order
in which it names them. It returns a JSON value of the annotated type, a Page of one, or, marked with Media, a response
that it wrote itself. The docstring and these types are what /openapi.json says of the route.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from gateway.access import Scope
from gateway.fields import Body, Fields, Headers, Query
from smithers.errors import SmithersError

Handler = Callable[..., Awaitable[Any]]
TAKEN: Final = MappingProxyType({"body": Body, "query": Query, "headers": Headers})


class Open(Enum):
    """The scope of a route that requires no credential."""

    OPEN = "open"


OPEN: Final = Open.OPEN


@dataclass(frozen=True, slots=True)
class Media:
    """Marks a response that a handler writes itself: `Annotated[web.StreamResponse, Media("text/html")]`."""

    types: tuple[str, ...]
    events: Any = None  # of a stream: the type of each event's JSON data
    empty: Mapping[int, str] = field(default_factory=dict)  # statuses without a body, and when


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path template (`/v1/runs/:runId`), who may use it, what answers, and with which refusals.

    Refusals common to all routes (a credential, a body that is too large, a field) need not be listed.
    """

    method: str
    template: str
    scope: Scope | Open
    handler: Handler
    refusals: tuple[type[SmithersError], ...] = ()
    takes_stream_token: bool = False  # accepts a stream token as the credential: see stream_tokens
    names_run: bool = field(init=False, compare=False)  # the first name in the path is a run's
    takes: Mapping[str, type[Fields]] = field(init=False, compare=False)
    answer: Any = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Read the handler's signature; raises TypeError for an unknown parameter."""
        signature = inspect.signature(self.handler)
        _, *parameters = signature.parameters.values()
        takes = {parameter.name: parameter.annotation for parameter in parameters}
        for name, kind in takes.items():
            if name not in TAKEN or not issubclass(kind, TAKEN[name]):
                raise TypeError(f"{self.handler.__qualname__} takes {name}: {kind}")
        object.__setattr__(self, "names_run", ":runId" in self.template)
        object.__setattr__(self, "takes", MappingProxyType(takes))
        object.__setattr__(self, "answer", signature.return_annotation)


@dataclass(frozen=True, slots=True)
class Part:
    """A named part of a path."""

    raw: str

    @property
    def decoded(self) -> str | None:
        """The decoded part; None if its percent escapes or its UTF-8 are invalid."""
        if "%" not in self.raw:
            return self.raw
        try:
            text = unquote_to_bytes(self.raw).decode("utf-8")
        except ValueError:
            return None
        return None if _has_broken_percent(self.raw) else text

    @property
    def spellings(self) -> tuple[str, ...]:
        """The possible meanings, the likelier first: a name may itself contain a percent sign."""
        decoded = self.decoded
        return (self.raw,) if decoded is None or decoded == self.raw else (self.raw, decoded)


class Router:
    """The routes, by method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Raises ValueError for two routes in one place."""
        self._exact: dict[tuple[str, str], Route] = {}
        self._named: dict[tuple[str, int], list[tuple[Route, list[str]]]] = {}
        for route in routes:
            if ":" in route.template:
                parts = route.template.split("/")  # named parts start with a colon
                self._named.setdefault((route.method, len(parts)), []).append((route, parts))
            elif (route.method, route.template) in self._exact:
                raise ValueError(f"two routes at {route.method} {route.template}")
            else:
                self._exact[route.method, route.template] = route

    def find(self, method: str, path: str) -> tuple[Route, tuple[Part, ...]] | None:
        """Find the route of a raw path, and the parts of the path that the template names."""
        method = "GET" if method == "HEAD" else method
        if (route := self._exact.get((method, path))) is not None:
            return route, ()
        given = path.split("/")
        for route, parts in self._named.get((method, len(given)), ()):
            named = _match(parts, given)
            if named is not None:
                return route, named
        return None


def _match(parts: list[str], given: list[str]) -> tuple[Part, ...] | None:
    named = []
    for part, text in zip(parts, given, strict=True):
        if part[:1] == ":":
            if not text:
                return None
            named.append(Part(text))
        elif part != text:
            return None
    return tuple(named)


def _has_broken_percent(raw: str) -> bool:
    digits = "0123456789abcdefABCDEF"
    return any(
        len(after) < 2 or after[0] not in digits or after[1] not in digits
        for after in raw.split("%")[1:]
    )
