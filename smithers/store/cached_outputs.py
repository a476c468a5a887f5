"""Read cached outputs of earlier executions; they are written with the turns that produced them."""

from typing import Final

import asyncpg

from smithers.store.connections import driver_errors

# -- name: find_cached
# The reader says how old an output may be. What it was stored with (expires_at) is only for retention. Ages are compared,
# since the time that a long ttl before now was may be none that the database has.
FIND_CACHED: Final = """
SELECT output FROM smithers.cached_outputs
WHERE cache_key = $1 AND ($2::float8 IS NULL OR extract(epoch FROM smithers.clock() - created_at) < $2)
"""


async def find_cached(pool: asyncpg.Pool, cache_key: str, ttl_s: float | None) -> str | None:
    """Read a cached output that is younger than this; None: of any age."""
    with driver_errors():
        output: str | None = await pool.fetchval(FIND_CACHED, cache_key, ttl_s)
    return output
