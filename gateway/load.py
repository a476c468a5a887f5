"""The load of one process, and admission: a request beyond a limit is refused before it is accepted.

A refused caller is told to retry (429 if others are still admitted, 503 if nobody is), and nothing has been
changed. Admitted work is finished: nothing here drops it. A chunked body is admitted chunk by chunk.
"""

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Self

from gateway.access import Credential
from gateway.errors import Overloaded, TooManyRequests
from smithers.ids import RunId
from smithers.settings import Limits


class Load:
    """The work in progress in one process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._requests = 0
        self._request = Taken(self._end_request)  # of any of them
        self.body_bytes = 0
        self._streams = 0
        self._streams_of: dict[RunId | Credential, int] = {}
        self.connections = 0

    @property
    def has_surplus(self) -> bool:
        """Whether there are too many connections: refuse the newest."""
        return self.connections > self.limits.connections

    @property
    def is_flooded(self) -> bool:
        """Whether there are so many that they are closed without an answer."""
        return self.connections > 2 * self.limits.connections

    def request(self) -> AbstractContextManager[None]:
        """Admit a request; raises Overloaded."""
        if self._requests >= self.limits.requests:
            raise Overloaded(details={"limit": "requests"})
        self._requests += 1
        return self._request

    def stream(self, run_id: RunId, credential: Credential) -> AbstractContextManager[None]:
        """Count a request as a stream from now on; raises Overloaded, TooManyRequests."""
        if self._streams >= self.limits.streams:
            raise Overloaded(details={"limit": "streams"})
        of_run, of_caller = self._streams_of.get(run_id, 0), self._streams_of.get(credential, 0)
        if of_run >= self.limits.streams_per_run:
            raise TooManyRequests(details={"limit": "streams-per-run"})
        if of_caller >= self.limits.streams_per_credential:
            raise TooManyRequests(details={"limit": "streams-per-credential"})
        self._streams += 1
        self._requests -= 1
        self._streams_of[run_id] = of_run + 1
        self._streams_of[credential] = of_caller + 1
        return Taken(partial(self._end_stream, run_id, credential))

    def _end_request(self) -> None:
        self._requests -= 1

    def _end_stream(self, run_id: RunId, credential: Credential) -> None:
        self._streams -= 1
        self._requests += 1
        for key in (run_id, credential):
            if left := self._streams_of.pop(key) - 1:
                self._streams_of[key] = left


class Room:
    """The memory reserved for a request's body, released at the end of a block."""

    __slots__ = ("_load", "_size_bytes")

    def __init__(self, load: Load) -> None:
        self._load = load
        self._size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._load.body_bytes -= self._size_bytes

    def grow(self, more_bytes: int) -> None:
        """Reserve more; raises Overloaded if other bodies leave no room. A single one is admitted whatever its size."""
        load = self._load
        is_alone = load.body_bytes == self._size_bytes
        if not is_alone and load.body_bytes + more_bytes > load.limits.body_bytes:
            raise Overloaded(details={"limit": "body-bytes"})
        load.body_bytes += more_bytes
        self._size_bytes += more_bytes


class Taken:
    """Releases a share at the end of a block. Thousands of streams hold one: a generator is ten times as large."""

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_exc: object) -> None:
        self._give_back()


def raise_file_limit() -> None:
    """Raise this process's limit of descriptors to the system's: the usual one is far lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
