"""Find the route of a request, on the raw path, exactly; the table of routes is the table of authorization.

A route without a scope cannot be written down: OPEN is a scope of its own. Nothing is normalised: `//v1/runs`,
`/V1/RUNS`, `/v1%2Fruns` are no routes. Only the parts that name something are percent-decoded.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from aiohttp import web

from gateway.access import Scope

if TYPE_CHECKING:
    from gateway.exchange import Exchange

Handler = Callable[["Exchange"], Awaitable[web.StreamResponse]]


class Open(Enum):
    """The scope of a route that asks for no credential."""

    OPEN = "open"


OPEN: Final = Open.OPEN


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path template (`/v1/runs/:runId`), who may use it, and what answers."""

    method: str
    template: str
    scope: Scope | Open
    handler: Handler


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a path that names something."""

    raw: str

    @property
    def decoded(self) -> str | None:
        """What the part says; None where its percent signs or its UTF-8 are broken."""
        if "%" not in self.raw:
            return self.raw
        try:
            text = unquote_to_bytes(self.raw).decode("utf-8")
        except ValueError:
            return None
        return None if _has_broken_percent(self.raw) else text

    @property
    def spellings(self) -> tuple[str, ...]:
        """What may be meant, the likelier first: a name may itself hold a percent sign."""
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
                parts = route.template.split("/")  # those that name something start with a colon
                self._named.setdefault((route.method, len(parts)), []).append((route, parts))
            elif (route.method, route.template) in self._exact:
                raise ValueError(f"two routes at {route.method} {route.template}")
            else:
                self._exact[route.method, route.template] = route

    def find_open(self, method: str, path: str) -> Route | None:
        """Find a route that asks for no credential."""
        route = self._exact.get((_read_as(method), path))
        return route if route is not None and route.scope is OPEN else None

    def find(self, method: str, path: str) -> tuple[Route, tuple[Part, ...]] | None:
        """Find the route of a raw path, and the parts of the path that the template names."""
        method = _read_as(method)
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


def _read_as(method: str) -> str:
    return "GET" if method == "HEAD" else method


def _has_broken_percent(raw: str) -> bool:
    digits = "0123456789abcdefABCDEF"
    return any(
        len(after) < 2 or after[0] not in digits or after[1] not in digits
        for after in raw.split("%")[1:]
    )
