"""The event loop that bodies share, for calls into it from any of their threads."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any


class LoopThread:
    """The running event loop and its thread; created there."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the loop's."""
        return threading.get_ident() == self._thread_id

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the loop's thread: at once if this is it, else soon."""
        if self.is_here:
            function(*args)
        else:
            self.loop.call_soon_threadsafe(function, *args)
