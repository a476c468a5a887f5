"""Count how often checking a value against a JSON Schema looks at the same part of it.

A part is looked at once for each way through the schema that leads to it, and references multiply the ways: twenty
definitions, each of which refers to the previous one twice, make a million. So they are counted before a value is checked.
Pure.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final
from urllib.parse import unquote

NOBODY_KNOWS: Final = float("inf")
CHARS_PER_VISIT: Final = 32  # a long text takes as long as so many short ones

# Keywords by the form of their values: a schema, schemas in a list, schemas by name. The first apply theirs to the same part
# of a value as the schema around them, the others to the parts of that part.
_OF_SAME: Final = (
    ("not", "if", "then", "else"),
    ("allOf", "anyOf", "oneOf"),
    ("dependentSchemas", "dependencies"),
)
_OF_PARTS: Final = (
    (
        *("items", "contains", "additionalItems", "unevaluatedItems"),
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
    ),
    ("items", "prefixItems"),
    ("patternProperties",),
)
# Keywords for which everything that the schemas beside them have looked at is looked at again.
_LOOKING_AGAIN: Final = frozenset({"unevaluatedItems", "unevaluatedProperties"})
# What changes the meaning of references: no model's schema has them.
_UNREAD: Final = frozenset({"$dynamicRef", "$recursiveRef", "$id", "id"})


class Visits:
    """The ways through one schema."""

    def __init__(self, schema: Any) -> None:
        """`schema`: as parsed from JSON; must not be changed."""
        self._root = schema
        self._known: dict[tuple[int, int], float] = {}
        self._counts: dict[int, float] = {}  # by depth

    def count(self, depth: int) -> float:
        """Return how often one part of a value that nests `depth` levels is looked at, at most, or NOBODY_KNOWS."""
        if depth not in self._counts:
            try:
                self._counts[depth] = max(self._count(self._root, level) for level in range(depth))
            except RecursionError:
                self._counts[depth] = NOBODY_KNOWS
        return self._counts[depth]

    def _count(self, schema: Any, level: int) -> float:
        """Count the ways from a schema to a part that lies `level` levels below the value that it is applied to."""
        if not isinstance(schema, dict):
            return 0.0 if level else 1.0
        place = id(schema), level
        if place not in self._known:
            # Until it is counted: a schema that leads to itself finds this.
            self._known[place] = NOBODY_KNOWS
            self._known[place] = self._add_up(schema, level)
        return self._known[place]

    def _add_up(self, schema: dict[str, Any], level: int) -> float:
        if not _UNREAD.isdisjoint(schema) and schema is not self._root:
            return NOBODY_KNOWS
        same = sum(self._count(each, level) for each in self._schemas_of_same(schema))
        if not _LOOKING_AGAIN.isdisjoint(schema):
            same *= 2
        if not level:
            return 1 + same
        parts = sum(self._count(each, level - 1) for each in _schemas(schema, _OF_PARTS))
        # No two of these apply to the same part.
        named = (self._count(each, level - 1) for each in _values(schema.get("properties")))
        return same + parts + max(named, default=0.0)

    def _schemas_of_same(self, schema: dict[str, Any]) -> Iterator[Any]:
        yield from _schemas(schema, _OF_SAME)
        if "$ref" in schema:
            yield self._find(schema["$ref"])

    def _find(self, reference: Any) -> Any:
        """Resolve a `$ref` within the schema; for one that cannot be resolved, return a schema that cannot be counted."""
        found = self._root
        try:
            start, *names = unquote(reference).split("/")
            for name in names:
                key = name.replace("~1", "/").replace("~0", "~")
                found = found[int(key) if isinstance(found, list) else key]
        except (TypeError, ValueError, LookupError, AttributeError):
            return _UNCOUNTABLE
        return found if start == "#" else _UNCOUNTABLE


_UNCOUNTABLE: Final = {"$dynamicRef": "#"}


def weigh(value: Any) -> tuple[int, int]:
    """Say how many visits it takes to look at all parts of a JSON value once, and how many levels it nests."""
    depth, weight = 0, 0
    parts = [value]
    while parts:
        depth += 1
        weight += len(parts)
        below: list[Any] = []
        for part in parts:
            if isinstance(part, str):
                weight += len(part) // CHARS_PER_VISIT
            elif isinstance(part, dict):
                below += part
                below += part.values()
            elif isinstance(part, list):
                below += part
        parts = below
    return weight, depth


def _schemas(schema: dict[str, Any], keywords: tuple[tuple[str, ...], ...]) -> Iterable[Any]:
    single, listed, named = keywords
    return chain(
        (schema[name] for name in single if isinstance(schema.get(name), dict | bool)),
        *(schema[name] for name in listed if isinstance(schema.get(name), list)),
        *(_values(schema.get(name)) for name in named),
    )


def _values(schemas: Any) -> Iterable[Any]:
    return schemas.values() if isinstance(schemas, dict) else ()
