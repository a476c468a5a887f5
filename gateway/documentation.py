"""Serve the documentation of the routes: `/openapi.json` for programs, `/docs` for people.

The page is one file that contains its style, its script and the document: it needs no network, can be saved, and
runs nothing else (its Content-Security-Policy names style and script by their hashes).
"""

import hashlib
import string
from base64 import b64encode
from collections.abc import Iterable
from functools import cached_property
from importlib.resources import files
from typing import Annotated, Final

import orjson
from aiohttp import web

from gateway.access import Scope
from gateway.envelope import BASE_HEADERS
from gateway.exchange import Exchange
from gateway.openapi import build_document
from gateway.routing import Media, Route

FOLDER: Final = "docs"


class Documentation:
    """The two documentation routes, and the table that they describe, themselves included."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Final = (
            *routes,
            Route("GET", "/openapi.json", Scope.RUNS_READ, self.get_openapi),
            Route("GET", "/docs", Scope.RUNS_READ, self.get_docs),
        )

    async def get_openapi(
        self, _exchange: Exchange
    ) -> Annotated[web.StreamResponse, Media(("application/json",))]:
        """Describe all routes as OpenAPI 3.1."""
        return web.Response(body=self._document, headers=BASE_HEADERS)

    async def get_docs(
        self, _exchange: Exchange
    ) -> Annotated[web.StreamResponse, Media(("text/html",))]:
        """Return the description of all routes as a page for people."""
        body, policy = self._page
        headers = {
            **BASE_HEADERS,
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
        }
        return web.Response(body=body, headers=headers)

    @cached_property
    def _document(self) -> bytes:
        return orjson.dumps(build_document(self.routes))

    @cached_property
    def _page(self) -> tuple[bytes, str]:
        """Build the page and its Content-Security-Policy."""
        style, script = _read("page.css"), _read("page.js")
        page = string.Template(_read("page.html")).substitute(
            style=style,
            script=script,
            document=self._document.decode().replace("<", "\\u003c"),  # no tag may end the block
        )
        policy = (
            f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return page.encode(), policy


def _read(name: str) -> str:
    return files("gateway").joinpath(FOLDER, name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
