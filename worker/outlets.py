"""Output to a child's descriptors 1 and 2 goes through its parent, which passes on a limited amount.

This is output without an attempt: prints of a builder or of an import, of threads that a body made, of C code
and of programs that a body starts; and the last words of a dying child. The child's own log bypasses it.
"""

import asyncio
import os
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final, TextIO

from smithers.texts import printable

BURST_BYTES: Final = 1 << 20
BYTES_PER_S: Final = 1 << 16
DROPPED: Final = b"\n[a worker's code wrote more than is passed on: dropped]\n"

_READ_BYTES: Final = 1 << 16
_LAST_READS: Final = 32  # more than a pipe holds: stray processes may write for ever


def divert(outlet: Connection) -> TextIO:
    """Redirect this process's descriptors 1 and 2 to its parent; return the stream for its own log."""
    log = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    for number in (1, 2):
        os.dup2(outlet.fileno(), number)
    outlet.close()
    return log


class Outlet:
    """The parent's end of a child's outlet; in the parent's event loop."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._room = float(BURST_BYTES)
        self._looked_at = time.monotonic()
        self._is_dropping = False
        os.set_blocking(pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._pass_on)

    def close(self) -> None:
        """Pass on the child's remaining output, and close: later writers get a SIGPIPE."""
        for _ in range(_LAST_READS):
            if not self._pass_on():
                break
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._pipe.close()

    def _pass_on(self) -> bool:
        """Pass on a piece; say whether there may be more."""
        try:
            text = os.read(self._pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        if not text:  # no writer is left
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            return False
        now = time.monotonic()
        self._room = min(BURST_BYTES, self._room + (now - self._looked_at) * BYTES_PER_S)
        self._looked_at = now
        is_room = len(text) <= self._room
        if is_room:
            self._room -= len(text)
            _write(text)
        elif not self._is_dropping:
            _write(DROPPED)
        self._is_dropping = not is_room
        return True


def _write(text: bytes) -> None:
    # On a terminal, control characters are escaped.
    if os.isatty(2):
        text = printable(text.decode(errors="replace")).encode()
    with suppress(OSError):  # nobody reads the pool's stderr either
        os.write(2, text)
