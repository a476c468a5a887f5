"""Read cached outputs of earlier executions; they are written with the turns that produced them."""

from typing import Final

import asyncpg

from smithers.store.connections import driver_errors

# -- name: find_cached
FIND_CACHED: Final = """
SELECT output FROM smithers.cached_outputs
WHERE cache_key = $1 AND (expires_at IS NULL OR expires_at > smithers.clock())
"""


async def find_cached(pool: asyncpg.Pool, cache_key: str) -> str | None:
    """Read a cached output that has not expired."""
    with driver_errors():
        output: str | None = await pool.fetchval(FIND_CACHED, cache_key)
    return output
