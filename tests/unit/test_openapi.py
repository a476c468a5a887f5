"""The document says what the table of routes says, and the page shows it with nothing from elsewhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.access import Scope
from gateway.documentation import Documentation
from gateway.envelope import PROBLEMS
from gateway.openapi import NAMES, build_document, codes_of, media_of
from gateway.routes import ROUTES
from gateway.routing import OPEN, Route

HTTP_API = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")
DOCUMENT = build_document(ROUTES)
TOKEN_TAKING = {"/v1/runs/{runId}/events"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_stands_in_the_document_and_nothing_else_does() -> None:
    described = [(method, path) for method, path, _ in operations()]
    table = [(route.method, re.sub(r":(\w+)", r"{\1}", route.template)) for route in ROUTES]
    assert sorted(described) == sorted(table)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
def test_a_route_says_what_it_does_and_what_it_answers(route: Route) -> None:
    assert route.handler.__doc__, "a handler's docstring is the description of its route"
    assert media_of(route) or "StreamResponse" not in str(route.answer), "say which Media it writes"
    assert set(re.findall(r":(\w+)", route.template)) <= NAMES.keys()
    for kind in route.takes.values():
        assert kind.__doc__


def test_a_route_without_a_description_fails_that_test() -> None:
    async def bare(exchange: object) -> dict[str, Any]:
        return {}

    with pytest.raises(AssertionError, match="docstring"):
        test_a_route_says_what_it_does_and_what_it_answers(Route("GET", "/bare", OPEN, bare))


def test_every_reference_leads_somewhere() -> None:
    for reference in set(references(DOCUMENT)):
        value: Any = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            value = value[key]


def test_names_of_operations_are_one_of_a_kind() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))


def test_only_open_routes_need_no_credential_and_only_streams_take_a_token() -> None:
    is_open = {re.sub(r":(\w+)", r"{\1}", r.template) for r in ROUTES if r.scope is OPEN}
    assert {path for _, path, operation in operations() if not operation["security"]} == is_open
    with_token = {path for _, path, op in operations() if {"streamToken": []} in op["security"]}
    assert with_token == TOKEN_TAKING


def test_what_a_body_must_hold_is_what_is_described() -> None:
    start = DOCUMENT["components"]["schemas"]["StartBody"]
    assert start["required"] == ["workflowPath"]
    config = DOCUMENT["components"]["schemas"]["StartConfig"]["properties"]
    assert config["priority"]["anyOf"][0] == {"type": "integer", "minimum": -100, "maximum": 100}


def test_only_words_of_json_schema_describe_a_value() -> None:
    words = {
        "$ref", "additionalProperties", "anyOf", "const", "contentMediaType", "contentSchema", "default", "description",
        "enum", "examples", "items", "maxLength", "maximum", "minLength", "minimum", "pattern", "properties", "required",
        "title", "type",
    }  # fmt: skip

    def walk(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            yield from schema.keys() - words
            for inner in schema.get("properties", {}).values():
                yield from walk(inner)
            for inner in schema.get("anyOf", []):
                yield from walk(inner)
            for word in ("items", "additionalProperties", "contentSchema"):
                yield from walk(schema.get(word))

    schemas = list(DOCUMENT["components"]["schemas"].values())
    for _, _, operation in operations():
        schemas += [parameter.get("schema") for parameter in operation["parameters"]]
    assert {word for schema in schemas for word in walk(schema)} == set()


def test_every_code_of_the_table_of_errors_can_be_found_by_its_readers() -> None:
    written = {code for name in DOCUMENT["components"]["responses"] for code in name.split(".")[1:]}
    assert {getattr(kind, "code", None) for kind in PROBLEMS} <= written


def test_the_page_of_the_docs_has_every_status_and_code_that_a_route_may_refuse_with() -> None:
    shown = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", HTTP_API, re.MULTILINE)
    told = {
        (int(status), code)
        for route in ROUTES
        for status, codes in codes_of(route).items()
        for code in codes
    }
    assert len(shown) == len(set(shown))
    assert {(int(status), code) for status, code in shown} == told


def test_the_page_of_the_docs_has_every_scope() -> None:
    assert [scope for scope in Scope if f"`{scope}`" not in HTTP_API] == []


def test_the_page_is_one_file_that_asks_nobody_for_anything() -> None:
    body, policy = Documentation(ROUTES[:-2])._page
    page = body.decode()
    assert not re.search(
        r'(src|href)="(?!/openapi\.json|#)|@import|url\(|https?://(?!127\.0\.0\.1)', page
    )
    assert page.count("<script") == page.count("</script>") == 2
    assert "default-src 'none'" in policy
    held = re.search(r'id="document">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    assert json.loads(held[1]) == DOCUMENT
