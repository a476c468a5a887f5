"""Every call of the database has a time-out of our own: one module gives it, and nobody goes around that module.

A connection that smithers.store.connections has opened bounds what is asked over it: the integration test of a stalled
database tries each way of asking. What it does not bound by itself may stand in that module only, with its time-out.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import asyncpg
import pytest

TREE = Path(__file__).resolve().parents[2]
SEAM = "smithers/store/connections.py"
ENGINES = "smithers/store/schema.py"  # Alembic wants an engine of SQLAlchemy's

# What a connection bounds by itself, and what takes one of a pool's within a time.
BOUNDED = {"fetch", "fetchrow", "fetchval", "execute", "add_listener", "acquire"}
OPENERS = {"connect", "create_pool", "Pool"}
CLEANS_UP = {"Pool", "open_connection", "open_pool"}  # of the seam, for those who speak no SQL
UNBOUNDED = {"connect", "create_pool", "Pool", "acquire", "release", "close", "rollback"}
DRIVER = {
    name
    for kind in (asyncpg.Connection, asyncpg.Pool)
    for name, member in inspect.getmembers(kind, inspect.isfunction)
    if not name.startswith("_")
    and (inspect.iscoroutinefunction(member) or name in {"acquire", "transaction", "cursor"})
}


@cache  # and not while tests are collected: each process of a parallel run collects all of them
def modules() -> dict[str, ast.Module]:
    return {
        path.relative_to(TREE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for package in ("gateway", "smithers", "worker")
        for path in sorted((TREE / package).rglob("*.py"))
    }


def is_of_the_store(name: str) -> bool:
    """The server of the embedded one is spoken to by other means, each with its time-out."""
    return name.startswith("smithers/store/") and not name.startswith("smithers/store/embedded/")


def imports(tree: ast.Module, module: str) -> set[str]:
    """The names that come from a module; its own, where it is imported whole."""
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names if alias.name == module)
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            named.update(alias.name for alias in node.names)
    return named


def going_around(tree: ast.Module) -> Iterator[str]:
    """What would be asked of the driver without a time-out by a module that is not the seam."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        of_driver = isinstance(node.value, ast.Name) and node.value.id == "asyncpg"
        if (of_driver and node.attr in OPENERS - {"Pool"}) or node.attr in DRIVER - BOUNDED:
            yield f"{node.lineno}: {ast.unparse(node)}"
    for call in calls(tree):
        is_asked = isinstance(call.func, ast.Attribute) and call.func.attr in DRIVER
        if is_asked and not all(is_named_limit(limit) for limit in limits(call)):
            yield f"{call.lineno}: {ast.unparse(call)}"
        if ast.unparse(call.func) == "asyncpg.Pool":
            yield f"{call.lineno}: {ast.unparse(call)}"


def unlimited(tree: ast.Module) -> Iterator[str]:
    """What the seam itself asks of the driver without saying how long it may take."""
    timed = {
        call
        for block in ast.walk(tree)
        if isinstance(block, ast.AsyncWith)
        and any("asyncio.timeout" in ast.unparse(item) for item in block.items)
        for call in calls(block)
    }
    for call in calls(tree):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        if name in UNBOUNDED and call not in timed and ast.unparse(call.func) != "connect":
            given = {keyword.arg for keyword in call.keywords}
            wanted = {"timeout", "command_timeout"} if name in OPENERS else {"timeout"}
            if not wanted <= given or any(has_none(limit) for limit in limits(call)):
                yield f"{call.lineno}: {ast.unparse(call)}"


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def limits(call: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]


def is_named_limit(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id.endswith("_S")


def has_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


@pytest.mark.parametrize(
    "planted",
    [
        "await asyncpg.connect(dsn)",
        "pool = asyncpg.create_pool(dsn)",
        "pool = asyncpg.Pool(dsn)",
        "await connection.close()",
        "stack.push_async_callback(connection.close)",
        "async with connection.transaction(): pass",
        "await pool.release(connection)",
        "await connection.fetch(QUERY, timeout=None)",
        "await connection.execute(QUERY, timeout=1e9)",
        "await connection.copy_records_to_table('runs', records=[])",
        "async for row in connection.cursor(QUERY): pass",
    ],
)
def test_a_call_without_a_time_out_would_be_seen(planted: str) -> None:
    module = f"async def planted():\n    {planted}"
    assert list(going_around(ast.parse(module)))


@pytest.mark.parametrize(
    "planted",
    [
        "await asyncpg.connect(dsn, timeout=10.0)",
        "pool = Pool(dsn, command_timeout=30.0)",
        "super().acquire()",
        "await connection.close()",
        "await connection.close(timeout=None)",
        "await begun.rollback()",
    ],
)
def test_the_seam_without_a_time_out_would_be_seen(planted: str) -> None:
    module = f"async def planted():\n    {planted}"
    assert list(unlimited(ast.parse(module)))


def test_the_driver_has_what_is_looked_for() -> None:
    assert DRIVER > BOUNDED
    assert {"transaction", "release", "close", "executemany", "prepare"} <= DRIVER - BOUNDED


def test_nobody_goes_around_the_module_that_gives_time_outs() -> None:
    found = {
        name: list(going_around(tree))
        for name, tree in modules().items()
        if is_of_the_store(name) and name != SEAM
    }
    assert len(found) > 20
    assert {name: places for name, places in found.items() if places} == {}


def test_whoever_speaks_no_sql_opens_only_what_cleans_up_within_a_time() -> None:
    taken = {
        name: imports(tree, "smithers.store.connections") - CLEANS_UP
        for name, tree in modules().items()
        if not is_of_the_store(name)
    }
    assert {name: names for name, names in taken.items() if names} == {}


def test_the_module_that_gives_time_outs_leaves_none_out() -> None:
    assert list(unlimited(modules()[SEAM])) == []


def test_alembic_is_given_a_connection_of_the_module_that_gives_time_outs() -> None:
    makers = {
        name: [call for call in calls(tree) if ast.unparse(call.func) == "create_async_engine"]
        for name, tree in modules().items()
    }
    assert [name for name, found in makers.items() if found] == [ENGINES]
    for call in makers[ENGINES]:
        given = [one for one in ast.walk(call) if isinstance(one, ast.keyword)]
        (make,) = (one.value for one in given if one.arg == "async_creator_fn")
        assert isinstance(make, ast.Lambda)
        assert isinstance(make.body, ast.Call)
        assert ast.unparse(make.body.func) == "connect"
    assert "connect" in imports(modules()[ENGINES], "smithers.store.connections")
