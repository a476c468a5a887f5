"""Nothing in the three packages is used by nobody."""

from pathlib import Path

from vulture import Vulture
from vulture.core import Item

TREE = Path(__file__).resolve().parents[2]

# Who uses what nobody here does: a name, or all below a path.
USERS = {
    "__getattr__": "Python: what a module has on demand",
    "_translate_data": "OpenTelemetry",
    "detach": "whoever prints: io's protocol of a stream",
    "downgrade": "Alembic",
    "eof_received": "asyncio",
    "field_title_should_be_set": "pydantic",
    "for_run": "pydantic-ai",
    "get_durable_operation_backend": "pydantic-ai",
    "get_reset_query": "asyncpg",
    "handle_error": "aiohttp",
    "iteration_count": "authors",
    "latest": "authors",
    "on_end": "OpenTelemetry",
    "output_maybe": "authors",
    "reconfigure": "whoever prints: io's protocol of a stream",
    "smithers/client/": "programs that speak to a server",
    "writable": "whoever prints: io's protocol of a stream",
}
# What a class declares is read by its instances' readers, by SQL and by JSON: vulture cannot tell, and takes any
# field of the same name for it.
DECLARATIONS = {"attribute", "variable"}


def place_of(item: Item) -> str:
    return Path(item.filename).relative_to(TREE).as_posix()


def test_nothing_is_there_that_nobody_uses():
    vulture = Vulture()
    vulture.scavenge(
        [TREE / package for package in ("gateway", "migrations", "smithers", "worker")]
    )
    found = [
        f"{place_of(item)}:{item.first_lineno}: {item.typ} {item.name}"
        for item in vulture.get_unused_code(min_confidence=60)
        if item.typ not in DECLARATIONS
        and item.name not in USERS
        and not place_of(item).startswith(tuple(USERS))
    ]
    assert found == []
