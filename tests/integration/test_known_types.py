"""What processes ask again and again has parameters of types that the driver knows: it looks up no other."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from smithers.ids import RunId, WorkerId
from smithers.store import claims, node_reads, owners, tails
from smithers.store.connections import open_pool

RUN = RunId("r")
WORKER = WorkerId(uuid4())


async def list_nodes(pool: asyncpg.Pool) -> None:
    await pool.execute(
        "INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, created_at)"
        " VALUES ('r', 'n', 0, 'task', 'pending', now())"
    )
    rows, _ = await node_reads.list_nodes(pool, RUN, after=None, limit=1, max_bytes=1, page_bytes=1)
    assert rows


async def read_tails(pool: Any) -> None:  # which stands for a connection
    await tails.read_tails(pool, [(tails.Cursor(RUN, 0),)])


CALLS: dict[str, Callable[[asyncpg.Pool], Awaitable[object]]] = {
    "beat": lambda pool: owners.beat(pool, [WORKER], [WORKER]),
    "find moved": lambda pool: tails.find_moved(pool, [tails.Cursor(RUN, 0)]),
    "find news": lambda pool: claims.find_news(pool, WORKER, {RUN: 0}),
    "list nodes": list_nodes,
    "read tails": read_tails,
}


async def count_look_ups(pool: asyncpg.Pool) -> int:
    count: int = await pool.fetchval(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'WITH RECURSIVE typeinfo_tree%'"
    )
    return count


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_the_driver_looks_up_no_types(
    database: str, call: Callable[[asyncpg.Pool], Awaitable[object]]
) -> None:
    async with open_pool(database, role="test", max_size=1) as pool:
        await call(pool)
        assert await count_look_ups(pool) == 0
        # It would be seen.
        await pool.fetchval("SELECT cardinality($1::bigint[])", [1])
        assert await count_look_ups(pool) == 1
