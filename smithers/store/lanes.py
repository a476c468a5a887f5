"""Natural batching: items that arrive during a call are sent together in the next one.

There is no timer. At low load a batch is one item and waits for nothing; at high load batches grow by themselves. A timer
of 2 ms reduced the rate sixfold at low load, and gained nothing at high load.

A lane has one hot connection, from its first batch until it has been idle for a while; it reopens one that is lost, and
never runs two batches on it concurrently.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf
from typing import Final, Generic, Self, TypeVar

import asyncpg
import structlog

from smithers.complaints import Complaint
from smithers.errors import RowsHeld, StoreError, StoreUnavailable
from smithers.service_loops import ServiceLoops
from smithers.store.connections import COMMAND_TIMEOUT_S, IDLE_S, connect_hot, driver_errors

Item = TypeVar("Item")
Result = TypeVar("Result")
Link = TypeVar("Link", bound=asyncpg.Connection | asyncpg.Pool)

LOG: Final = structlog.get_logger(__name__)
MAX_BATCH: Final = 128
HELD_S: Final = 10.0  # as long as any call waits for a lock
IN_TURN_AFTER_S: Final = 1.0  # by then, who only looks may never find the rows free
MIN_PAUSE_S: Final = 0.005  # about a worker's commit
MAX_PAUSE_S: Final = 0.5
IDLE_LOOK_S: Final = 30.0

# Takes a lane's role, how many items went out, for how many seconds the first had waited and the call took, and why the
# database did not take them; None: it did.
Meter = Callable[[str, int, float, float, StoreUnavailable | None], None]


class Lane(Generic[Item, Result]):
    """One hot statement behind a queue."""

    def __init__(
        self,
        dsn: str,
        *,
        role: str,
        flush: Callable[
            [asyncpg.Connection, Sequence[Item]], Awaitable[Sequence[Result | Exception]]
        ],
        max_batch: int = MAX_BATCH,
        limit_s: float | None = None,
        in_turn: Callable[[Item], Awaitable[Result]] | None = None,
    ) -> None:
        """`flush` returns one result for each item, in order; an exception among them is that item's alone.

        `limit_s`: how long a statement of it may take, by default the usual limit. `in_turn` does the same as `flush` for one
        item, over another connection, but waits for rows that others hold.
        """
        self._dsn = dsn
        self._role = role
        self._flush = flush
        self._max_batch = max_batch
        self._limit_s = limit_s or COMMAND_TIMEOUT_S
        self._in_turn = in_turn
        self._turn = asyncio.Lock()  # one item at a time waits
        self._room = max_batch  # of the next batch: one after a failure, later twice as many
        # Items to send by themselves before that: as many as a batch that failed had.
        self._alone = 0
        self._is_closed = False
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._arrived = asyncio.Event()
        self._connection: asyncpg.Connection | None = None
        self._loops = ServiceLoops()
        self._waiting_since = 0.0
        self._idle_since = inf  # by time.monotonic(); infinity during a batch
        self._complaint = Complaint()
        self.meter: Meter | None = None  # called for every batch

    async def __aenter__(self) -> Self:
        self._loops.start(self._run, name=f"lane-{self._role}")
        self._loops.start(self._close_idle, name=f"lane-{self._role}-idle")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._is_closed = True
        await self._loops.stop()
        for _, future in self._queue:
            future.cancel()
        if self._connection is not None:
            self._connection.terminate()

    async def submit(self, item: Item) -> Result:
        """Put an item on the lane and wait for its result.

        If `flush` reports that others hold the item's rows, it is sent again, up to HELD_S, while the lane serves the rest.
        After IN_TURN_AFTER_S one such item at a time waits for them instead, if there is an `in_turn`.
        Raises what `flush` returns for this item, and StoreUnavailable if the connection broke: then it is unknown whether
        the item was committed. Also raises that once the lane is closed.
        """
        began, pause_s = time.monotonic(), MIN_PAUSE_S
        while True:
            if self._is_closed:
                raise StoreUnavailable("this process has closed its connections")
            result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            if not self._queue:
                self._waiting_since = time.perf_counter()
            self._queue.append((item, result))
            self._arrived.set()
            try:
                return await result
            except RowsHeld:
                held_s = time.monotonic() - began
                if held_s > HELD_S:
                    raise
            if self._in_turn is not None and held_s > IN_TURN_AFTER_S and not self._turn.locked():
                async with self._turn:
                    with suppress(RowsHeld):
                        return await self._in_turn(item)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = [entry for entry in self._queue[: self._room] if not entry[1].cancelled()]
            del self._queue[: self._room]
            if not self._queue:
                self._arrived.clear()
            if batch:
                self._idle_since = inf
                began, since = time.perf_counter(), self._waiting_since
                self._waiting_since = began  # of those that this batch has no room for: about
                failure = await self._flush_batch(batch)
                self._idle_since = time.monotonic()
                if self.meter is not None:
                    took_s = time.perf_counter() - began
                    self.meter(self._role, len(batch), began - since, took_s, failure)

    async def _close_idle(self) -> None:
        """Close a connection over which nothing was sent for a while; the next batch opens another.

        It costs the server a process with its plans, and what is in between may drop it without a word: then whoever comes
        next would wait for an answer in vain.
        """
        while True:
            await asyncio.sleep(IDLE_LOOK_S)
            if time.monotonic() - self._idle_since > IDLE_S:
                self._drop_connection()

    async def _flush_batch(
        self, batch: list[tuple[Item, asyncio.Future[Result]]]
    ) -> StoreUnavailable | None:
        """Answer all of a batch; return why the database did not take it, if so."""
        results: Sequence[Result | Exception]
        failure = None
        try:
            with driver_errors():
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect_hot(
                        self._dsn, role=self._role, limit_s=self._limit_s
                    )
                results = await self._flush(self._connection, [item for item, _ in batch])
            self._grow(len(batch))
        except StoreUnavailable as error:
            self._begin_anew(error, len(batch))
            failure = error
            results = [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - the lane outlives any batch; the submitters are told
            if not isinstance(error, StoreError):
                self._drop_connection()  # even in the middle of a call
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        return failure

    def _grow(self, count: int) -> None:
        self._alone = max(0, self._alone - count)
        if not self._alone:
            self._room = min(2 * self._room, self._max_batch)

    def _begin_anew(self, error: StoreUnavailable, count: int) -> None:
        """Send the next item over a new connection, and log why: submitters retry, or do not report a reason."""
        # A batch may always take too long as a whole: send each item on its own.
        self._room, self._alone = 1, max(self._alone, count)
        self._drop_connection()
        if self._complaint.may_be_said():
            LOG.warning("lane_failed", lane=self._role, error=str(error))

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def each_on_its_own(
    connection: Link,
    items: Sequence[Item],
    call: Callable[[Link, Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
) -> Sequence[Result | Exception]:
    """Call once for all items; if the database refuses that, once for each: only the culprit fails.

    The same if others hold the rows of one: its sender retries.
    """
    try:
        with driver_errors():
            return await call(connection, items)
    except StoreError as error:
        if isinstance(error, StoreUnavailable) and not isinstance(error, RowsHeld):
            raise
        if len(items) == 1:
            return [error]
    return await one_by_one(items, lambda alone: each_on_its_own(connection, alone, call))


async def one_by_one(
    items: Sequence[Item], call: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]
) -> Sequence[Result | Exception]:
    """Call for each item by itself; all of these calls together may take as long as one."""
    with driver_errors():
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return [(await call([item]))[0] for item in items]
