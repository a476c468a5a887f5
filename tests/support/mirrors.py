"""A server's database with a workflow's own beside it, and what must be equal in both."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tests.support.postgres import fresh_database
from tests.support.world import World, until

NAME = "ORDERS"

# What a mirror keeps of each table, in the order of its key.
COPIED = {
    "events": "SELECT run_id, seq, epoch, payload FROM smithers.events ORDER BY run_id, seq",
    "nodes": "SELECT to_jsonb(n) FROM smithers.nodes n ORDER BY run_id, node_id, iteration",
    "frames": "SELECT to_jsonb(f) FROM smithers.frames f ORDER BY run_id, frame_no",
    "approvals": "SELECT to_jsonb(a) FROM smithers.approvals a ORDER BY run_id, node_id, iteration",
    "run_requests": "SELECT to_jsonb(q) FROM smithers.run_requests q ORDER BY run_id",
    "runs": """SELECT run_id, status, queue, priority, era, last_seq, last_frame_no, created_at, started_at, finished_at,
        error, output_node_id, output_iteration FROM smithers.runs ORDER BY run_id""",
}
COUNT_BEHIND = "SELECT run_id, last_seq FROM smithers.runs ORDER BY run_id"


@asynccontextmanager
async def two_worlds(
    home: str, server: str, template: str, root: Path
) -> AsyncIterator[tuple[World, World]]:
    """Give the world of a server's database, and that of a workflow's own, on one root."""
    async with (
        fresh_database(server, template) as own,
        World(home, root) as server_world,
        World(own, root) as own_world,
    ):
        yield server_world, own_world


async def until_mirrored(home: World, own: World) -> None:
    """Wait until the mirror has every event, and see that all is as it is there."""

    async def is_level() -> bool:
        return await home.sql.fetch(COUNT_BEHIND) == await own.sql.fetch(COUNT_BEHIND)

    await until(is_level, "the mirror has every event")
    await assert_equal(home.sql, own.sql)


async def assert_equal(home: asyncpg.Connection, own: asyncpg.Connection) -> None:
    """Check that nothing is missing, out of order or there twice."""
    for table, query in COPIED.items():
        assert await home.fetch(query) == await own.fetch(query), table
