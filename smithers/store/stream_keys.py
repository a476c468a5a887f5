"""The key that signs stream tokens: one for all gateways of a database, created by the first that needs it.

Deleting its row revokes every token: gateways reload it once a minute.
"""

from typing import Final

import asyncpg

from smithers.store.connections import driver_errors

# -- name: keep_stream_key
# Two gateways may be first at the same time: the constraint chooses one key, and both read it.
KEEP_STREAM_KEY: Final = """
    INSERT INTO smithers.stream_keys (key_no, secret) VALUES (1, $1) ON CONFLICT DO NOTHING"""

# -- name: read_stream_key
READ_STREAM_KEY: Final = "SELECT secret FROM smithers.stream_keys WHERE key_no = 1"


async def read_stream_key(pool: asyncpg.Pool, *, fresh: bytes) -> bytes:
    """Return the current key; if there is none, `fresh` becomes it."""
    with driver_errors():
        async with pool.acquire() as connection:
            while True:
                secret: bytes | None = await connection.fetchval(READ_STREAM_KEY)
                if secret is not None:
                    return secret
                await connection.execute(KEEP_STREAM_KEY, fresh)
