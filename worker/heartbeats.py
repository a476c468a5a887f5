"""The heartbeats of one attempt: only the newest counts, and is passed on at most once a second."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pydantic_core import to_json

from smithers.errors import InvalidOutput
from worker.loop_thread import LoopThread

EVERY_S: Final = 1.0
MAX_BYTES: Final = 16_384


class Heartbeats:
    """An attempt's heartbeats; flushed in the loop's thread, made and beaten in any."""

    def __init__(self, sink: Callable[[str], None], loop_thread: LoopThread) -> None:
        """`sink` gets JSON text, in the loop's thread."""
        self._sink = sink
        self._loop_thread = loop_thread
        self._lock = threading.Lock()
        self._newest: str | None = None  # not passed on yet
        self._is_awaited = False  # passing it on is scheduled
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = time.monotonic()  # of the last one, passed on or not; at first the start
        self._handed_on_at = float("-inf")

    @property
    def silent_s(self) -> float:
        """The time since the last one, in seconds."""
        return time.monotonic() - self._heard_at

    def beat(self, data: Any) -> None:
        """Record one; raises InvalidOutput if it is too large."""
        text = to_json(data)
        if len(text) > MAX_BYTES:
            raise InvalidOutput(f"a heartbeat's data has at most {MAX_BYTES} bytes")
        self._heard_at = time.monotonic()
        with self._lock:
            self._newest = text.decode()
            if self._is_awaited:
                return
            self._is_awaited = True
        self._loop_thread.call(self._hand_on)

    def flush(self) -> None:
        """Pass on the rest, at the attempt's end."""
        if self._timer is not None:
            self._timer.cancel()
        self._hand_on_newest()

    def _hand_on(self) -> None:
        """Pass on the newest now, or when a second is over."""
        wait_s = self._handed_on_at + EVERY_S - time.monotonic()
        if wait_s > 0:
            self._timer = self._loop_thread.loop.call_later(wait_s, self._hand_on_newest)
        else:
            self._hand_on_newest()

    def _hand_on_newest(self) -> None:
        with self._lock:
            text, self._newest = self._newest, None
            self._is_awaited = False
        if text is not None:
            self._handed_on_at = time.monotonic()
            self._sink(text)
