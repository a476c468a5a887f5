"""The key that stream tokens are signed with: one for all gateways of a database, made by the first that needs it.

Who deletes its row makes every token worthless: gateways look again once a minute.
"""

from typing import Final

import asyncpg

from smithers.store.connections import driver_errors

# -- name: keep_stream_key
# Two gateways may come first at once: the constraint chooses, and both read what it chose.
KEEP_STREAM_KEY: Final = """
    INSERT INTO smithers.stream_keys (key_no, secret) VALUES (1, $1) ON CONFLICT DO NOTHING"""

# -- name: read_stream_key
READ_STREAM_KEY: Final = "SELECT secret FROM smithers.stream_keys WHERE key_no = 1"


async def read_stream_key(pool: asyncpg.Pool, *, fresh: bytes) -> bytes:
    """Return the key that is in force; where there is none, `fresh` becomes it."""
    with driver_errors():
        async with pool.acquire() as connection:
            while True:
                secret: bytes | None = await connection.fetchval(READ_STREAM_KEY)
                if secret is not None:
                    return secret
                await connection.execute(KEEP_STREAM_KEY, fresh)
