"""Hints between processes: after a commit, where to look. Truth is in the rows; a lost hint costs one polling interval.

Never sent inside a transaction that matters: a notifying commit takes a lock for the whole cluster and holds it over the
flush, which prevents group commit. One connection of a gateway, or of a pool's parent, both listens and notifies; hints
that arrive during a NOTIFY are sent together in the next one. A child's commit sends its hints in the commit's own round
trip, after it (see migrations/functions/notify_v1.sql), or a fast run's a little later (untold.py). Those, and its
other hints, which are rare, use an existing connection. Postgres wakes all listeners at every notification: a child
receives hints through its parent.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Final, Self

import asyncpg
import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError, StoreUnavailable
from smithers.service_loops import ServiceLoops
from smithers.store.connections import connect_listening, driver_errors, prove

LOG: Final = structlog.get_logger(__name__)
MAX_PAYLOAD_BYTES: Final = 7_900  # Postgres refuses 8,000
RECONNECT_PAUSE_S: Final = 0.2
PROVE_EVERY_S: Final = 10.0  # while there are no hints

# -- name: notify
# It does not wait for a flush, nor fail if the queue is full; see migrations/functions/notify_v1.sql.
NOTIFY: Final = "SELECT smithers.notify_v1($1, $2)"


class Channel(StrEnum):
    """The subject of a hint; the payload is a list of names, separated by spaces."""

    EVENTS = "smithers_events"  # run ids with new events: for streams
    DUE = "smithers_due"  # queues in which a run became claimable
    NEWS = "smithers_news"  # run ids that were decided, signalled or cancelled: for their owners
    SOURCES = "smithers_sources"  # source hashes to describe, or that have been described
    DATABASES = "smithers_databases"  # names of workflows' own databases that came into use


# None: the connection is new, anything may have happened.
Listener = Callable[[frozenset[str] | None], None]


class Hints:
    """One process's connection for hints: it listens and notifies."""

    def __init__(self, dsn: str, *, role: str) -> None:
        """`dsn` must be direct, not through a pooler in transaction mode."""
        self._dsn = dsn
        self._role = role
        self._listeners: dict[Channel, Listener] = {}
        self._pending: dict[Channel, set[str]] = {}
        self._arrived = asyncio.Event()
        self._loops = ServiceLoops()
        self._complaint = Complaint()
        self._has_complained = False  # since it was last connected
        self.is_connected = False
        self.watch: Callable[[bool], None] | None = None  # called on connect and loss

    def listen(self, listeners: Mapping[Channel, Listener]) -> Self:
        """Add callbacks for incoming hints. Call it before entering: `async with hints.listen({...})`."""
        self._listeners.update(listeners)
        return self

    async def __aenter__(self) -> Self:
        self._loops.start(self._run, name=f"hints-{self._role}")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._loops.stop()

    def send(self, channel: Channel, names: Iterable[str]) -> None:
        """Send a hint about these on the channel, soon; returns at once."""
        self._pending.setdefault(channel, set()).update(names)
        self._arrived.set()

    async def _run(self) -> None:
        while True:
            connection: asyncpg.Connection | None = None
            try:
                connection = await connect_listening(self._dsn, role=f"{self._role}-hints")
                await self._serve(connection)
            except StoreError as error:
                if self._complaint.may_be_said():
                    LOG.warning("listening_failed", role=self._role, error=str(error))
                    self._has_complained = True
                await asyncio.sleep(RECONNECT_PAUSE_S)
            finally:
                self._tell(is_connected=False)
                if connection is not None:
                    connection.terminate()

    def _tell(self, *, is_connected: bool) -> None:
        self.is_connected = is_connected
        if self.watch is not None:
            self.watch(is_connected)

    async def _serve(self, connection: asyncpg.Connection) -> None:
        # Nothing is raised when a listening connection dies: only this callback is called.
        connection.add_termination_listener(lambda _connection: self._arrived.set())
        with driver_errors():
            for channel, listener in self._listeners.items():
                await connection.add_listener(channel, _hear(listener))
        self._tell(is_connected=True)
        if self._has_complained:
            LOG.info("listening_again", role=self._role)
            self._has_complained = False
        for listener in self._listeners.values():
            listener(None)
        while not connection.is_closed():
            try:
                async with asyncio.timeout(PROVE_EVERY_S):
                    await self._arrived.wait()
            except TimeoutError:
                await prove(connection)
            self._arrived.clear()
            while self._pending and not connection.is_closed():
                pending, self._pending = self._pending, {}
                try:
                    await notify(connection, pending)
                except StoreUnavailable:
                    for channel, names in pending.items():
                        self.send(channel, names)  # the next connection sends it
                    raise


def _hear(listener: Listener) -> Callable[[object, int, str, object], None]:
    def callback(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        listener(frozenset(str(payload).split(" ")))

    return callback


async def notify(
    connection: asyncpg.Connection | asyncpg.Pool, hints: Mapping[Channel, Iterable[str]]
) -> None:
    """Send all of these hints now, over a connection outside a transaction; raises StoreError."""
    with driver_errors():
        await connection.fetch(NOTIFY, *pack_hints(hints))


def pack_hints(hints: Mapping[Channel, Iterable[str]]) -> tuple[list[str], list[str]]:
    """Return the channels and payloads of the notifications for these hints."""
    channels: list[str] = []
    payloads: list[str] = []
    for channel, names in hints.items():
        packed = _pack(names)
        channels += [channel] * len(packed)
        payloads += packed
    return channels, payloads


def _pack(names: Iterable[str]) -> list[str]:
    """Pack names into as few payloads as Postgres allows."""
    packed: list[str] = []
    room_bytes = 0
    for name in sorted(names):
        size_bytes = len(name.encode()) + 1
        if packed and size_bytes <= room_bytes:
            packed[-1] += f" {name}"
        else:
            packed.append(name)
            room_bytes = MAX_PAYLOAD_BYTES
        room_bytes -= size_bytes
    return packed
