"""Natural batching: what came in while the last call was under way goes out together in the next one.

There is no timer. At low load a batch is one item and waits for nothing; at high load batches grow by themselves. A timer
of 2 ms was measured to cost six times the rate at low load and to gain nothing at high load.

A lane keeps one hot connection, opens it anew when it is gone, and never runs two batches at once on it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Self, TypeVar

import asyncpg
import structlog

from smithers.complaints import Complaint
from smithers.errors import RowsHeld, StoreError, StoreUnavailable
from smithers.service_loops import ServiceLoops
from smithers.store.connections import COMMAND_TIMEOUT_S, connect_hot, driver_errors

Item = TypeVar("Item")
Result = TypeVar("Result")
Link = TypeVar("Link", bound=asyncpg.Connection | asyncpg.Pool)

LOG: Final = structlog.get_logger(__name__)
MAX_BATCH: Final = 128
HELD_S: Final = 10.0  # as long as any call waits for a lock
MIN_PAUSE_S: Final = 0.005  # about a worker's commit
MAX_PAUSE_S: Final = 0.5

# Takes a lane's role, how many items went out, and for how many seconds the first had waited and the call took.
Meter = Callable[[str, int, float, float], None]


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
    ) -> None:
        """`flush` answers one result for each item, in order; an exception there is that item's alone.

        `limit_s`: how long a call may take, by default as long as any.
        """
        self._dsn = dsn
        self._role = role
        self._flush = flush
        self._max_batch = max_batch
        self._limit_s = limit_s or COMMAND_TIMEOUT_S
        self._room = max_batch  # of the next batch: one after a failure, then twice as many
        self._is_closed = False
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._arrived = asyncio.Event()
        self._connection: asyncpg.Connection | None = None
        self._loops = ServiceLoops()
        self._waiting_since = 0.0
        self._complaint = Complaint()
        self.meter: Meter | None = None  # told of every batch

    async def __aenter__(self) -> Self:
        self._loops.start(self._run, name=f"lane-{self._role}")
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

        Where `flush` says that others have the item's rows, it goes out again, up to HELD_S, while the lane serves the rest.
        Raises what `flush` says of this item, and StoreUnavailable where the connection broke: whether the item was
        kept is then not known. So it does once the lane is closed.
        """
        give_up_at, pause_s = time.monotonic() + HELD_S, MIN_PAUSE_S
        while True:
            try:
                return await self._submit_once(item)
            except RowsHeld:
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _submit_once(self, item: Item) -> Result:
        if self._is_closed:
            raise StoreUnavailable("this process has closed its connections")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if not self._queue:
            self._waiting_since = time.perf_counter()
        self._queue.append((item, future))
        self._arrived.set()
        return await future

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = [entry for entry in self._queue[: self._room] if not entry[1].cancelled()]
            del self._queue[: self._room]
            if not self._queue:
                self._arrived.clear()
            if batch:
                began, since = time.perf_counter(), self._waiting_since
                self._waiting_since = began  # of those that this batch has no room for: about
                await self._flush_batch(batch)
                if self.meter is not None:
                    took_s = time.perf_counter() - began
                    self.meter(self._role, len(batch), began - since, took_s)

    async def _flush_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | Exception]
        try:
            with driver_errors():
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect_hot(
                        self._dsn, role=self._role, limit_s=self._limit_s
                    )
                async with asyncio.timeout(self._limit_s):
                    results = await self._flush(self._connection, [item for item, _ in batch])
            self._room = min(2 * self._room, self._max_batch)
        except StoreUnavailable as error:
            self._begin_anew(error)
            results = [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - the lane outlives any batch; the submitters are told
            if not isinstance(error, StoreError):
                self._drop_connection()  # whatever it is in the midst of
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

    def _begin_anew(self, error: StoreUnavailable) -> None:
        """Have the next item go out over a new connection, and log why: those who submit try again, or tell no reason."""
        # It may be that all of a batch together take too long, whenever they are tried: each will be on its own.
        self._room = 1
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
    """Call once for all items; where the database refuses that, once for each: only the culprit fails.

    So it is where others have the rows of one: whoever sent it asks again.
    """
    try:
        with driver_errors():
            return await call(connection, items)
    except StoreError as error:
        if isinstance(error, StoreUnavailable) and not isinstance(error, RowsHeld):
            raise
        if len(items) == 1:
            return [error]
    return [(await each_on_its_own(connection, [item], call))[0] for item in items]
