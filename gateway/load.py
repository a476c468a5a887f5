"""How much one process has taken on, and whether it takes on more: what is too much is refused before it is accepted.

Whoever is refused is told to come back (429 where others may still come in, 503 where nobody may), and nothing has been
changed. What was let in is finished: nothing here drops anything. A body that comes in chunks is let in chunk by chunk.
"""

import resource
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Self

from gateway.access import Credential
from gateway.errors import Overloaded, TooManyRequests
from smithers.ids import RunId
from smithers.settings import Limits


class Load:
    """What is under way in one process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._requests = 0
        self.body_bytes = 0
        self._streams = 0
        self._streams_of: Counter[RunId | Credential] = Counter()
        self.connections = 0

    @property
    def has_surplus(self) -> bool:
        """Whether there are more connections than there should be: the newest are to be sent away."""
        return self.connections > self.limits.connections

    @property
    def is_flooded(self) -> bool:
        """Whether there are so many of them that they cannot even be told so."""
        return self.connections > 2 * self.limits.connections

    def request(self) -> AbstractContextManager[None]:
        """Have a request under way; raises Overloaded."""
        if self._requests >= self.limits.requests:
            raise Overloaded(details={"limit": "requests"})
        self._requests += 1
        return _Taken(self._end_request)

    def body(self, size_bytes: int) -> "Room":
        """Have a request's body in memory; raises Overloaded. One is let in whatever its size."""
        room = Room(self)
        room.grow(size_bytes)
        return room

    def stream(self, run_id: RunId, credential: Credential) -> AbstractContextManager[None]:
        """Count a request as a stream, no longer as a request under way; raises Overloaded, TooManyRequests."""
        if self._streams >= self.limits.streams:
            raise Overloaded(details={"limit": "streams"})
        if self._streams_of[run_id] >= self.limits.streams_per_run:
            raise TooManyRequests(details={"limit": "streams-per-run"})
        if self._streams_of[credential] >= self.limits.streams_per_credential:
            raise TooManyRequests(details={"limit": "streams-per-credential"})
        self._streams += 1
        self._requests -= 1
        self._streams_of.update((run_id, credential))
        return _Taken(partial(self._end_stream, run_id, credential))

    def _end_request(self) -> None:
        self._requests -= 1

    def _end_stream(self, run_id: RunId, credential: Credential) -> None:
        self._streams -= 1
        self._requests += 1
        for key in (run_id, credential):
            self._streams_of[key] -= 1
            if not self._streams_of[key]:
                del self._streams_of[key]


class Room:
    """The memory that a request's body may fill, given back at the end of a block."""

    __slots__ = ("_load", "_size_bytes")

    def __init__(self, load: Load) -> None:
        self._load = load
        self._size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._load.body_bytes -= self._size_bytes

    def grow(self, more_bytes: int) -> None:
        """Have room for so much more; raises Overloaded where other bodies leave none."""
        load = self._load
        is_alone = load.body_bytes == self._size_bytes
        if not is_alone and load.body_bytes + more_bytes > load.limits.body_bytes:
            raise Overloaded(details={"limit": "body-bytes"})
        load.body_bytes += more_bytes
        self._size_bytes += more_bytes


class _Taken:
    """What is given back at the end of a block. Thousands of streams hold some: a generator is ten times as large."""

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_exc: object) -> None:
        self._give_back()


def raise_file_limit() -> None:
    """Let this process have as many connections as the system allows it: the usual limit is far lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
