"""One reader of an event stream: its socket, its position, and when to drop it.

Writes go to the transport unchanged: an event is encoded once for all viewers of a run. A reader that does
not read is dropped, and reconnects with the last id it saw; one that is too slow for live events continues at its own
pace. Neither makes another wait.
"""

import asyncio
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from gateway.access import Credential
from smithers.telemetry.names import DropReason

MAX_BUFFERED_BYTES: Final = 1024 * 1024
STALLED_S: Final = 30.0
KEEP_ALIVE: Final = b": keep-alive\n\n"


def frame_events(first_seq: int, payloads: Sequence[str]) -> bytes:
    """Encode events for an event stream, numbered from `first_seq`."""
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


class ReadersPace:
    """Lets a write in its block take as long as its reader makes progress.

    If no buffered data was taken for STALLED_S, or for up to twice as long, the connection is cut, and the block ends with
    TimeoutError.
    """

    __slots__ = ("_has_stalled", "_looking", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._has_stalled = False

    def __enter__(self) -> None:
        # Once the write is buffered: most end at once, and are never looked at.
        self._looking: asyncio.Handle = self._loop.call_soon(self._look, None)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._looking.cancel()
        # A cut connection is reported by ConnectionError, or not at all.
        if self._has_stalled and (error is None or isinstance(error, ConnectionError)):
            raise TimeoutError from error

    def _look(self, left_bytes: int | None) -> None:
        now_left_bytes = self._transport.get_write_buffer_size()
        if now_left_bytes == left_bytes:
            self._has_stalled = True
            self._transport.abort()
        else:
            self._looking = self._loop.call_later(STALLED_S, self._look, now_left_bytes)


class Ending(Enum):
    """Why the hub no longer writes to a viewer."""

    WHOLE = auto()  # there are no more events
    BEHIND = auto()  # more events than its buffer holds: its handler catches up again
    LOST = auto()  # its reader is gone, or does not read


class Viewer:
    """A stream that has caught up, to which the hub writes."""

    __slots__ = (
        "_ended",
        "_moved_at",
        "_taken_bytes",
        "_written_bytes",
        "credential",
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
        credential: Credential,
        cursor: int,
        is_chunked: bool,
        now: float,
    ) -> None:
        self.transport = transport
        self.credential = credential
        self.cursor = cursor
        self.is_chunked = is_chunked
        # The run's last events: its handler writes them, and the end with them.
        self.last_words = b""
        self.written_at = now
        self._written_bytes = 0
        self._taken_bytes = -1
        self._moved_at = now
        self._ended: asyncio.Future[Ending] | None = None

    async def until_ended(self) -> Ending:
        """Wait until the hub no longer writes."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return await self._ended

    def has_room(self, size_bytes: int) -> bool:
        """Say whether this much more may be buffered; a reader that has read everything gets any amount."""
        buffered = self.transport.get_write_buffer_size()
        return not buffered or buffered + size_bytes <= MAX_BUFFERED_BYTES

    def write(self, data: bytes, now: float) -> DropReason | None:
        """Write whole events; says why the viewer is to be dropped, if it is."""
        transport = self.transport
        if transport.is_closing():
            return DropReason.GONE
        try:
            transport.write(data)
        except RuntimeError:  # uvloop, on a transport that closed meanwhile
            return DropReason.GONE
        self.written_at = now
        self._written_bytes += len(data)
        return None

    def look_after(self, now: float) -> DropReason | None:
        """Check whether the reader still makes progress."""
        if self.transport.is_closing():
            return DropReason.GONE
        buffered = self.transport.get_write_buffer_size()
        taken = self._written_bytes - buffered
        if not buffered or taken != self._taken_bytes:
            self._taken_bytes = taken
            self._moved_at = now
            return None
        return DropReason.STALLED if now - self._moved_at > STALLED_S else None

    def end(self, ending: Ending = Ending.WHOLE) -> None:
        """Wake the stream's handler: it ends the stream, or catches up, or, if the reader is lost, does nothing more."""
        if ending is Ending.LOST and not self.transport.is_closing():
            self.transport.abort()
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        if not self._ended.done():
            self._ended.set_result(ending)
