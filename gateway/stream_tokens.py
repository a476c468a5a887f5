"""Tokens for one run's event stream: a browser's EventSource cannot send headers, so these may be in the URL.

Unlike headers, URLs are often logged. So a token opens one stream and nothing else, and not for long. It is signed,
not stored: every gateway of a database accepts another's tokens (HMAC-SHA256, RFC 2104, with the database's key).
"""

import binascii
import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from smithers.ids import RunId
from smithers.store.connections import Pool
from smithers.store.stream_keys import read_stream_key

LIFETIME_S: Final = 300.0
KEPT_S: Final = 60.0  # how long a deleted key may still be accepted
KEY_BYTES: Final = 32
EXPIRY_BYTES: Final = 8
_PURPOSE: Final = b"smithers stream token 1"


class StreamTokens:
    """Makes and checks tokens; one for each process."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._key = b""
        self._read_at = float("-inf")

    async def make(self, run_id: RunId) -> tuple[str, int]:
        """Make a token; return it, and its expiry in ms since 1970."""
        expires_ms = int((time.time() + LIFETIME_S) * 1000)
        expiry = expires_ms.to_bytes(EXPIRY_BYTES)
        signature = _sign(await self._read_key(), run_id, expiry)
        return urlsafe_b64encode(expiry + signature).decode().rstrip("="), expires_ms

    async def fits(self, token: str, run_id: str) -> bool:
        """Say whether a token is valid for this run's stream now."""
        try:
            content = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            return False
        expiry, signature = content[:EXPIRY_BYTES], content[EXPIRY_BYTES:]
        # Before the key is read: a request without a token costs no query.
        if int.from_bytes(expiry) <= time.time() * 1000:
            return False
        return hmac.compare_digest(signature, _sign(await self._read_key(), run_id, expiry))

    async def _read_key(self) -> bytes:
        now = time.monotonic()
        if now - self._read_at > KEPT_S:
            self._key = await read_stream_key(self._pool, fresh=secrets.token_bytes(KEY_BYTES))
            self._read_at = now
        return self._key


def _sign(key: bytes, run_id: str, expiry: bytes) -> bytes:
    return hmac.digest(key, b"\0".join((_PURPOSE, expiry, run_id.encode())), "sha256")
