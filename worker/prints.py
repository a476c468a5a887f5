"""Route what a task's body prints to its run, and everything else to the original streams.

The streams of the process are replaced once. A write finds its attempt by a context variable, which threads and tasks that
the body starts through asyncio inherit; what child processes write to descriptor 1 is not caught here.
"""

import io
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, TextIO

from smithers.texts import encodable

MAX_PRINTED_CHARS: Final = 65_536  # of one attempt; the rest is dropped, which is reported
MIN_LINE_CHARS: Final = 5  # the least that a line counts: each is an event

PrintSink = Callable[[str, str], None]  # (text, stream); called from any thread

# Takes what the current attempt's body prints.
PRINTS: Final[ContextVar[PrintSink | None]] = ContextVar("smithers_prints", default=None)


class Prints:
    """Printed text of one attempt, not passed on yet."""

    def __init__(self, sink: PrintSink) -> None:
        """`sink` gets whole lines, or the rest at a flush."""
        self._sink = sink
        self._lock = threading.Lock()
        self._pending: dict[str, str] = {}
        self._room = MAX_PRINTED_CHARS
        self._is_cut = False

    def write(self, text: str, stream: str) -> None:
        """Add text; complete lines are passed on at once."""
        with self._lock:
            if self._is_cut:
                return
            self._is_cut = len(text) >= self._room
            text = encodable(text[: max(0, self._room)])
            self._room -= len(text)
            if self._is_cut:
                text += "\n[more was printed, and dropped]\n"
            whole, newline, rest = (self._pending.get(stream, "") + text).rpartition("\n")
            self._pending[stream] = rest
            if newline:
                self._room -= max(0, MIN_LINE_CHARS - len(whole))
        if newline:
            self._sink(whole + newline, stream)

    def flush(self) -> None:
        """Pass on the rest, at the attempt's end."""
        with self._lock:
            pending, self._pending = self._pending, {}
        for stream, text in pending.items():
            if text:
                self._sink(text, stream)


class _Bytes(io.BufferedIOBase):
    """The `buffer` of such a stream: bytes arrive where its text does."""

    def __init__(self, text: "_Routed") -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any, /) -> int:
        # Each write by itself: a character that is spread over two of them is lost.
        self._text.write(str(data, "utf-8", "replace"))
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._text.flush()


class _Routed(io.TextIOBase):
    """A process's stream that finds the attempt of each write; it has what a process's stream has."""

    mode = "w"
    line_buffering = True
    write_through = False

    def __init__(self, original: TextIO, stream: str) -> None:
        self._original = original
        self._stream = stream
        self.name = f"<{stream}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]  # TextIOBase declares a plain attribute
        return self._original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # as above
        return self._original.errors

    @property
    def buffer(self) -> _Bytes:
        """A new one each time: a wrapper that is thrown away closes what it wraps."""
        return _Bytes(self)

    def detach(self) -> _Bytes:  # type: ignore[override]  # TextIOBase declares a BinaryIO, which is no base class
        return self.buffer

    def reconfigure(self, **_options: object) -> None:
        """Do nothing: the text is passed on as text, for all bodies alike."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._original.fileno()

    def write(self, text: str) -> int:
        take = PRINTS.get()
        if take is not None:
            take(text, self._stream)
        else:
            with suppress(OSError):  # closed by some body: the text is lost
                self._original.write(text)
        return len(text)

    def flush(self) -> None:
        if PRINTS.get() is None:
            with suppress(OSError):
                self._original.flush()

    def close(self) -> None:
        """Stay open: it is the other bodies' stream, too."""


def route_prints() -> None:
    """Replace this process's stdout and stderr."""
    sys.stdout = _Routed(sys.stdout, "stdout")
    sys.stderr = _Routed(sys.stderr, "stderr")
