"""What a release asks of its database, written down: a later schema can be held to it without the release's code.

`python -m tests.support.released` writes down this version: its statements with what goes in and what comes out, the
functions that they call, and of tables the columns that either names. A name counts as used where it stands as a word.
"""

import asyncio
import hashlib
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

import smithers.store
from smithers.store.schema import find_revision
from tests.support.postgres import fresh_database, make_template, open_server

SNAPSHOT = Path(__file__).resolve().parents[1] / "migrations" / "released.json"
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CALL)\b")
OURS = re.compile(r"\bsmithers\.(\w+)")

LIST_FUNCTIONS = """
    SELECT p.proname AS name, p.prosrc AS body,
           pg_get_function_identity_arguments(p.oid) || coalesce(' -> ' || pg_get_function_result(p.oid), '') AS signature
    FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('smithers') AND p.prokind IN ('f', 'p')"""

LIST_COLUMNS = """
    SELECT c.relname AS relation, c.relkind = 'c' AS is_type, a.attname AS name,
           format_type(a.atttypid, a.atttypmod) AS type, NOT a.attnotnull AS is_nullable,
           a.atthasdef OR a.attidentity <> '' OR NOT a.attnotnull AS may_be_left_out
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = to_regnamespace('smithers') AND c.relkind IN ('r', 'p', 'c')
        AND c.relname <> 'alembic_version'
    ORDER BY c.relname, a.attnum"""

Released = dict[str, Any]


def collect_statements() -> dict[str, str]:
    """All statements of the store, by `module.CONSTANT`; one that several modules have by the first of them."""
    found: dict[str, str] = {}
    for place in pkgutil.iter_modules(smithers.store.__path__):
        if not place.ispkg:
            module = importlib.import_module(f"smithers.store.{place.name}")
            for name, value in vars(module).items():
                is_whole = name.isupper() and not name.startswith("_")
                if is_whole and isinstance(value, str) and STATEMENT.match(value):
                    found.setdefault(value, f"{place.name}.{name}")
    return {name: text for text, name in found.items()}


async def write_down(connection: asyncpg.Connection) -> Released:
    """Describe what this version asks, on a database with this version's schema."""
    statements: dict[str, dict[str, Any]] = {
        name: {"sql": sql, **await _shape(connection, sql)}
        for name, sql in sorted(collect_statements().items())
        if not name.startswith("rehearsals.")  # on a database of its own
    }
    functions = {row["name"]: row for row in await connection.fetch(LIST_FUNCTIONS)}
    called = _called("\n".join(told["sql"] for told in statements.values()), functions)
    texts = "\n".join(
        [told["sql"] for told in statements.values()] + [functions[name]["body"] for name in called]
    )
    words = set(re.findall(r"\w+", texts))
    tables: dict[str, dict[str, Any]] = {}
    types: dict[str, list[list[str]]] = {}
    for row in await connection.fetch(LIST_COLUMNS):
        if row["is_type"]:
            types.setdefault(row["relation"], []).append([row["name"], row["type"]])
        elif row["relation"] in words:
            table = tables.setdefault(row["relation"], {"used": {}, "unused": []})
            if row["name"] in words:
                table["used"][row["name"]] = [row["type"], row["is_nullable"]]
            else:
                table["unused"].append(row["name"])
    return {
        "revision": await find_revision(connection),
        "statements": statements,
        "functions": {
            name: {"signature": row["signature"], "body": _hash(row["body"])}
            for name, row in sorted(functions.items())
            if name in called
        },
        "types": {name: fields for name, fields in types.items() if name in words},
        "tables": tables,
    }


async def find_breaks(connection: asyncpg.Connection, released: Released) -> list[str]:
    """Say what a release would not find, or not be able to do, on this schema."""
    breaks = []
    for name, told in released["statements"].items():
        try:
            shape = await _shape(connection, told["sql"])
        except asyncpg.PostgresError as error:
            breaks.append(f"statement {name}: {error}")
            continue
        if shape != {key: told[key] for key in shape}:
            breaks.append(f"statement {name} takes or gives something else")
    functions = {row["name"]: row for row in await connection.fetch(LIST_FUNCTIONS)}
    for name, told in released["functions"].items():
        row = functions.get(name)
        if (
            row is None
            or row["signature"] != told["signature"]
            or _hash(row["body"]) != told["body"]
        ):
            breaks.append(f"function {name} is gone or another")
    return breaks + list(_missing(await connection.fetch(LIST_COLUMNS), released))


def _missing(rows: list[asyncpg.Record], released: Released) -> Iterator[str]:
    found: dict[str, dict[str, asyncpg.Record]] = {}
    for row in rows:
        found.setdefault(row["relation"], {})[row["name"]] = row
    for name, fields in released["types"].items():
        if [[row["name"], row["type"]] for row in found.get(name, {}).values()] != fields:
            yield f"type {name} is gone or another"
    for name, table in released["tables"].items():
        columns = found.get(name, {})
        for column, (kind, was_nullable) in table["used"].items():
            there = columns.get(column)
            if (
                there is None
                or there["type"] != kind
                or (was_nullable and not there["is_nullable"])
            ):
                yield f"column {name}.{column} is gone or another"
        for column in columns.keys() - table["used"].keys() - set(table["unused"]):
            if not columns[column]["may_be_left_out"]:
                yield f"column {name}.{column} is new and must be given"


async def _shape(connection: asyncpg.Connection, sql: str) -> dict[str, list[Any]]:
    prepared = await connection.prepare(sql)
    return {
        "parameters": [kind.name for kind in prepared.get_parameters()],
        "columns": [[column.name, column.type.name] for column in prepared.get_attributes()],
    }


def _called(text: str, functions: dict[str, asyncpg.Record]) -> set[str]:
    """The functions that a text calls, and those that they call."""
    called: set[str] = set()
    named = set(OURS.findall(text)) & functions.keys()
    while named:
        name = named.pop()
        called.add(name)
        named |= set(OURS.findall(functions[name]["body"])) & functions.keys() - called
    return called


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def _write_down(server: str, template: str) -> Released:
    async with fresh_database(server, template) as dsn:
        connection = await asyncpg.connect(dsn)
        try:
            return await write_down(connection)
        finally:
            await connection.close()


def main() -> None:
    """Write down this version."""
    with open_server() as server:
        released = asyncio.run(_write_down(server, make_template(server)))
    SNAPSHOT.write_text(json.dumps(released, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
