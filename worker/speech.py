"""A model's text while it is produced: gathered for a moment, and passed on in pieces."""

import asyncio
import threading
from collections.abc import Callable
from typing import Final

from worker.loop_thread import LoopThread

PAUSE_S: Final = 0.15  # between two pieces
MAX_PIECE_CHARS: Final = 4_096  # a full piece is passed on at once
MAX_SPOKEN_CHARS: Final = 262_144  # of one attempt; the rest is dropped, which is reported
DROPPED: Final = "\n[more was said, and dropped]\n"


class Speech:
    """Text of one attempt's models, not passed on yet; flushed in the loop's thread, made and added to in any."""

    def __init__(self, sink: Callable[[str], None], loop_thread: LoopThread) -> None:
        """`sink` gets a piece, in the loop's thread."""
        self._sink = sink
        self._loop_thread = loop_thread
        self._lock = threading.Lock()
        self._said: list[str] = []
        self._size = 0
        self._room = MAX_SPOKEN_CHARS
        self._timer: asyncio.TimerHandle | None = None

    def say(self, text: str) -> None:
        """Add text; it is passed on within a moment."""
        with self._lock:
            if self._room <= 0 or not text:
                return
            self._room -= len(text)
            if self._room <= 0:
                text = text[: len(text) + self._room] + DROPPED
            before = self._size
            self._said.append(text)
            self._size += len(text)
            is_full_now = before < MAX_PIECE_CHARS <= self._size
        # The loop is notified of a piece's beginning and of its being full, not of each word.
        if before > 0 and not is_full_now:
            return
        self._loop_thread.call(self._hand_on)

    def flush(self) -> None:
        """Pass on the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._size:
            return
        with self._lock:
            text = "".join(self._said)
            self._said.clear()
            self._size = 0
        for start in range(0, len(text), MAX_PIECE_CHARS):
            self._sink(text[start : start + MAX_PIECE_CHARS])

    def _hand_on(self) -> None:
        """Pass on a full piece now, and less in a moment."""
        if self._size >= MAX_PIECE_CHARS:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop_thread.loop.call_later(PAUSE_S, self.flush)
