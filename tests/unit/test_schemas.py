"""Values against authors' schemas: what does not fit is told, and no schema and no value hold the gateway up."""

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.inputs import check_input
from smithers import schemas
from smithers.schemas import MAX_ERRORS, MAX_SCHEMA_CHARS, UNTOLD, compile_schema
from smithers.visits import CHARS_PER_VISIT, NOBODY_KNOWS, Visits, weigh

A = {"$ref": "#/$defs/a"}
TREE: dict[str, Any] = {
    "$defs": {"a": {"anyOf": [{"properties": {"x": A}}, {"properties": {"x": A}}]}},
    **A,
}


def doubling(count: int) -> dict[str, Any]:
    """Definitions, each of which names the one before twice."""
    defs: dict[str, Any] = {"0": {"type": "string"}}
    for number in range(1, count + 1):
        before = {"$ref": f"#/$defs/{number - 1}"}
        defs[str(number)] = {"allOf": [before, before]}
    return {"$defs": defs, "properties": {"x": {"$ref": f"#/$defs/{count}"}}}


def errors_of(schema: Any, value: dict[str, Any]) -> list[dict[str, Any]]:
    with pytest.raises(InvalidRequest) as caught:
        check_input(compile_schema(json.dumps(schema)), value)
    assert caught.value.details is not None
    return caught.value.details["errors"]


def test_what_does_not_fit_is_told_by_its_place() -> None:
    schema = {"properties": {"names": {"items": {"type": "string"}}}}
    found = errors_of(schema, {"names": ["a", 1, 2]})
    assert [error["path"] for error in found] == [["names", 1], ["names", 2]]
    assert len(errors_of(schema, {"names": [1] * 100})) == MAX_ERRORS


def test_a_schema_never_fetches_and_never_crawls() -> None:
    assert compile_schema('{"$ref":"file:///etc/passwd"}') is None
    assert compile_schema('{"$ref":"http://127.0.0.1:1/x"}') is None
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    assert len(json.dumps(errors_of(schema, {"a": "a" * 100_000 + "!"}))) < 1000


def test_a_large_value_that_does_not_fit_is_refused_without_all_its_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = {"properties": {"names": {"items": {"type": "string"}}}}
    assert errors_of(schema, {"names": [1] * 500_000}) == [{"path": [], "message": UNTOLD}]
    monkeypatch.setattr(schemas, "MAX_VISITS_TO_TELL", 10_000_000)
    assert len(errors_of(schema, {"names": [1] * 50_000})) == MAX_ERRORS


@pytest.mark.parametrize("schema", [doubling(60), doubling(1_500)])
def test_a_schema_that_grows_by_its_references_is_left_to_the_model(schema: dict[str, Any]) -> None:
    check_input(compile_schema(json.dumps(schema)), {"x": 1})
    check_input(compile_schema(json.dumps(doubling(5))), {"x": ""})
    assert errors_of(doubling(5), {"x": 1})


def test_a_schema_that_grows_with_the_depth_of_a_value_is_left_to_the_model_for_deep_ones() -> None:
    schema = {"$defs": {"a": {"type": "object", **TREE["$defs"]["a"]}}, **A}
    deep: dict[str, Any] = {"x": 1}
    assert errors_of(schema, deep)
    for _ in range(30):
        deep = {"x": deep}
    check_input(compile_schema(json.dumps(schema)), deep)


def test_a_schema_that_takes_long_to_read_is_left_to_the_model() -> None:
    schema = {"type": "array", "$comment": "." * MAX_SCHEMA_CHARS}
    check_input(compile_schema(json.dumps(schema)), {})


@pytest.mark.parametrize(
    ("schema", "counts"),
    [
        (True, [1, 1]),
        ({"type": "object"}, [1, 1]),
        ({"properties": {"x": {"allOf": [{}, {}]}, "y": {}}}, [1, 3]),
        ({"properties": {"x": {}}, "additionalProperties": {}, "propertyNames": {}}, [1, 3]),
        ({"anyOf": [{"items": {}}, {"items": [{}, {}]}]}, [3, 3]),
        ({"patternProperties": {"a": {}, "b": {}}, "dependentSchemas": {"c": {}}}, [2, 2]),
        ({"allOf": [{"properties": {"x": {}}}], "unevaluatedProperties": {}}, [3, 3]),
        ({"dependencies": {"a": ["b"], "b": {}}}, [3, 3]),
        ({"$defs": {"a~/b%": {}}, "$ref": "#/$defs/a~0~1b%25"}, [2, 2]),
        ({"prefixItems": [{}, {"not": {}}], "$ref": "#/prefixItems/1"}, [3, 3]),
        (TREE, [4, 8, 16, 32]),
        ({"$defs": {"a": {"allOf": [A]}}, **A}, [NOBODY_KNOWS]),
        ({"$ref": "#"}, [NOBODY_KNOWS]),
        ({"$ref": "#name", "$defs": {"a": {"$anchor": "name"}}}, [NOBODY_KNOWS]),
        ({"$ref": "#/$defs/b"}, [NOBODY_KNOWS]),
        ({"$ref": 1}, [NOBODY_KNOWS]),
        ({"not": {"$dynamicRef": "#"}}, [NOBODY_KNOWS]),
        ({"allOf": [{"$id": "other"}]}, [NOBODY_KNOWS]),
        ({"$id": "https://example.com/a", "type": "object"}, [1, 1]),
    ],
)
def test_the_ways_through_a_schema_are_counted(schema: Any, counts: list[float]) -> None:
    visits = Visits(schema)
    assert [visits.count(depth) for depth in range(1, len(counts) + 1)] == counts
    assert [visits.count(depth) for depth in range(1, len(counts) + 1)] == counts


@pytest.mark.parametrize(
    ("value", "weight", "depth"),
    [
        (None, 1, 1),
        ({}, 1, 1),
        ("." * CHARS_PER_VISIT, 2, 1),
        ({"x": [1, {"y": "." * CHARS_PER_VISIT * 3}]}, 10, 4),
        ({"." * CHARS_PER_VISIT: 1}, 4, 2),
    ],
)
def test_a_value_weighs_as_much_as_there_is_to_look_at(value: Any, weight: int, depth: int) -> None:
    assert weigh(value) == (weight, depth)
