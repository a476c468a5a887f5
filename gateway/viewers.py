"""One reader of an event stream: its socket, how far it is, and when it is to be let go.

Writes go to the transport as they are: the bytes of an event are made once for all viewers of a run. A reader that does
not read is dropped, and comes back with the last id it saw; it never makes another wait.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from smithers.telemetry.names import DropReason

MAX_BUFFERED_BYTES: Final = 1024 * 1024
STALLED_S: Final = 30.0
KEEP_ALIVE: Final = b": keep-alive\n\n"


def frame_events(first_seq: int, payloads: Sequence[str]) -> bytes:
    """Write events as an event stream has them, numbered from `first_seq`."""
    return "".join(
        [
            f"id: {seq}\nevent: smithers\ndata: {payload}\n\n"
            for seq, payload in enumerate(payloads, first_seq)
        ]
    ).encode()


def as_chunk(data: bytes) -> bytes:
    """Wrap bytes as a chunk of HTTP/1.1's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


KEEP_ALIVE_CHUNK: Final = as_chunk(KEEP_ALIVE)


class Viewer:
    """A stream that has caught up, and is written to by the hub."""

    __slots__ = (
        "_ended",
        "_moved_at",
        "_taken_bytes",
        "_written_bytes",
        "cursor",
        "is_chunked",
        "last_words",
        "transport",
        "written_at",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        is_chunked: bool,
        now: float,
    ) -> None:
        self.transport = transport
        self.is_chunked = is_chunked
        self.cursor = -1
        # The run's last events: its handler writes them, and the end with them.
        self.last_words = b""
        self.written_at = now
        self._written_bytes = 0
        self._taken_bytes = -1
        self._moved_at = now
        self._ended: asyncio.Future[DropReason | None] | None = None

    async def until_ended(self) -> DropReason | None:
        """Wait until nothing more is to come; None: cleanly."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return await self._ended

    def write(self, data: bytes, now: float) -> DropReason | None:
        """Write whole events; says why the viewer is to be dropped, if it is."""
        transport = self.transport
        if transport.is_closing():
            return DropReason.GONE
        # Before the write: after it even a reader that has read everything would have all of `data` before it.
        buffered = transport.get_write_buffer_size()
        if buffered and buffered + len(data) > MAX_BUFFERED_BYTES:
            return DropReason.BUFFER
        try:
            transport.write(data)
        except RuntimeError:  # uvloop, on a transport that closed meanwhile
            return DropReason.GONE
        self.written_at = now
        self._written_bytes += len(data)
        return None

    def look_after(self, now: float) -> DropReason | None:
        """See whether the reader still takes what was written."""
        if self.transport.is_closing():
            return DropReason.GONE
        buffered = self.transport.get_write_buffer_size()
        taken = self._written_bytes - buffered
        if not buffered or taken != self._taken_bytes:
            self._taken_bytes = taken
            self._moved_at = now
            return None
        return DropReason.STALLED if now - self._moved_at > STALLED_S else None

    def end(self, reason: DropReason | None = None) -> None:
        """Let the stream's handler go on: to its end, or to nothing where the reader is lost."""
        if reason is not None and not self.transport.is_closing():
            self.transport.abort()
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        if not self._ended.done():
            self._ended.set_result(reason)
