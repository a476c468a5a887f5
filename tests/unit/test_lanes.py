"""What comes in during a call goes out together in the next; no batch harms another, whatever becomes of it."""

import asyncio
from collections import Counter as Counting
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from smithers.errors import RowsHeld, StoreError, StoreUnavailable
from smithers.store import lanes
from smithers.store.lanes import Lane, each_on_its_own
from smithers.telemetry.exposition import merge
from smithers.telemetry.lanes import LaneMeter
from smithers.telemetry.names import DB_CALLS_FAILED, Role
from smithers.telemetry.sheet import Sheet


class Line:
    """A connection to nowhere."""

    def __init__(self) -> None:
        self.is_over = False

    def is_closed(self) -> bool:
        return self.is_over

    def terminate(self) -> None:
        self.is_over = True


class Counter:
    """Answers items, when it is let; says what it was given, and over which line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.batches: list[list[int]] = []
        self.began = asyncio.Queue[None]()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.refusal: BaseException | None = None
        self.bad_items: frozenset[int] = frozenset()

    async def open_line(self, _dsn: str, *, role: str, limit_s: float) -> Line:
        assert (role, limit_s) == ("test", vars(lanes)["COMMAND_TIMEOUT_S"])
        self.lines.append(Line())
        return self.lines[-1]

    async def flush(self, line: Any, items: Sequence[int]) -> Sequence[int | Exception]:
        assert line is self.lines[-1]
        assert not line.is_over
        self.batches.append(list(items))
        self.began.put_nowait(None)
        await self.may_answer.wait()
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        return [ValueError(item) if item in self.bad_items else -item for item in items]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(lanes, "connect_hot", counter.open_line)
    return counter


@asynccontextmanager
async def laid(counter: Counter, max_batch: int = lanes.MAX_BATCH) -> AsyncIterator[Lane[int, int]]:
    async with Lane("nowhere", role="test", flush=counter.flush, max_batch=max_batch) as lane:
        yield lane


def submit(lane: Lane[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(lane.submit(item)) for item in items]


@asynccontextmanager
async def under_way(counter: Counter, lane: Lane[int, int]) -> AsyncIterator[asyncio.Task[int]]:
    """Hold up a call with the item 0, as long as the block lasts."""
    counter.may_answer.clear()
    (first,) = submit(lane, 0)
    await counter.began.get()
    yield first
    counter.may_answer.set()


async def until_waiting(lane: Lane[int, int], count: int) -> None:
    while len(lane._queue) < count:
        await asyncio.sleep(0)


async def test_an_item_alone_goes_out_at_once(counter):
    async with laid(counter) as lane:
        assert await lane.submit(7) == -7
        assert await lane.submit(8) == -8
    assert counter.batches == [[7], [8]]
    assert len(counter.lines) == 1


async def test_what_comes_in_during_a_call_goes_out_together_in_order(counter):
    async with laid(counter) as lane:
        async with under_way(counter, lane) as first:
            others = submit(lane, 3, 1, 2)
            await until_waiting(lane, 3)
            assert counter.batches == [[0]]
        assert await asyncio.gather(first, *others) == [0, -3, -1, -2]
    assert counter.batches == [[0], [3, 1, 2]]


async def test_a_batch_is_as_large_as_it_may_be_and_the_rest_follows(counter):
    async with laid(counter, max_batch=4) as lane:
        async with under_way(counter, lane):
            others = submit(lane, *range(1, 11))
            await until_waiting(lane, 10)
        assert await asyncio.gather(*others) == [-item for item in range(1, 11)]
    assert counter.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


async def test_an_items_exception_is_its_own(counter):
    counter.bad_items = frozenset({2})
    async with laid(counter) as lane:
        answers = await asyncio.gather(*submit(lane, 1, 2, 3), return_exceptions=True)
    assert (answers[0], answers[2]) == (-1, -3)
    assert isinstance(answers[1], ValueError)


async def test_a_refused_batch_is_told_to_its_items_only_and_keeps_the_connection(counter):
    async with laid(counter) as lane:
        async with under_way(counter, lane) as first:
            (second,) = submit(lane, 1)
            await until_waiting(lane, 1)
            counter.refusal = StoreError("no")
        with pytest.raises(StoreError, match="no"):
            await first
        assert await second == -1
    assert len(counter.lines) == 1


async def test_what_nobody_expected_costs_the_connection_too(counter):
    async with laid(counter) as lane:
        counter.refusal = RuntimeError("another operation is in progress")
        with pytest.raises(RuntimeError):
            await lane.submit(1)
        assert await lane.submit(2) == -2
    assert len(counter.lines) == 2


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        StoreUnavailable("gone"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation is in progress"),
    ],
)
async def test_a_broken_connection_is_told_to_its_batch_and_the_next_has_a_new_one(counter, error):
    async with laid(counter) as lane:
        counter.refusal = error
        answers = await asyncio.gather(*submit(lane, 1, 2), return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
        assert await lane.submit(3) == -3
    assert [line.is_over for line in counter.lines] == [True, True]


async def test_a_connection_that_died_between_two_calls_is_opened_anew_unnoticed(counter):
    async with laid(counter) as lane:
        assert await lane.submit(1) == -1
        counter.lines[0].is_over = True
        assert await lane.submit(2) == -2
    assert len(counter.lines) == 2


async def test_items_that_go_out_one_by_one_share_the_time_of_one_call(counter, monkeypatch):
    monkeypatch.setattr(lanes, "COMMAND_TIMEOUT_S", 0.01)

    async def answer(_line: Any, items: Sequence[int]) -> Sequence[int]:
        if len(items) > 1:
            raise StoreError("one of them is bad")
        await asyncio.Event().wait()
        return items

    async def flush(line: Any, items: Sequence[int]) -> Sequence[int | Exception]:
        return await each_on_its_own(line, items, answer)

    async with Lane("nowhere", role="test", flush=flush) as lane:
        answers = await asyncio.gather(*submit(lane, 1, 2), return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
        assert counter.lines[0].is_over


async def test_while_no_connection_can_be_opened_every_item_is_told(counter, monkeypatch):
    async def refuse(_dsn: str, *, role: str, limit_s: float) -> Line:
        raise ConnectionRefusedError(role)

    async with laid(counter) as lane:
        with monkeypatch.context() as patch:
            patch.setattr(lanes, "connect_hot", refuse)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await lane.submit(1)
        assert await lane.submit(2) == -2


async def test_what_keeps_a_lane_is_logged_once_a_minute_with_its_reason(counter):
    async with laid(counter) as lane:
        with capture_logs() as logs:
            for _ in range(3):
                counter.refusal = asyncpg.DiskFullError("could not extend file")
                with pytest.raises(StoreUnavailable):
                    await lane.submit(1)
    (line,) = logs
    assert (line["event"], line["lane"]) == ("lane_failed", "test")
    assert "DiskFullError" in line["error"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (asyncpg.DiskFullError("could not extend file"), "disk-full"),
        (asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT"), "read-only"),
        (ConnectionResetError(), "unavailable"),
    ],
)
async def test_calls_that_fail_are_counted_by_reason_from_nothing_on(
    error: Exception, reason: str, counter
):
    with closing(Sheet.create(1)) as sheet:
        meter = LaneMeter(sheet.open_page(Role.CHILD))
        expected = dict.fromkeys(("disk-full", "read-only", "unavailable"), 0.0)
        assert failures_in(sheet) == expected
        async with laid(counter) as lane:
            lane.meter = meter.count
            assert await lane.submit(0) == 0
            counter.refusal = error
            with pytest.raises(StoreUnavailable):
                await lane.submit(1)
            assert await lane.submit(2) == -2
        assert failures_in(sheet) == {**expected, reason: 1.0}


def failures_in(sheet: Sheet) -> dict[str, float]:
    """What is counted of calls that failed, by reason."""
    told = merge(sheet.read())
    return {key[1]: values[0] for key, values in told.items() if key[0] == DB_CALLS_FAILED.name}


async def test_who_gave_up_before_the_call_is_not_sent_and_after_it_harms_nobody(counter):
    async with laid(counter) as lane:
        async with under_way(counter, lane) as first:
            early, kept = submit(lane, 1, 2)
            await until_waiting(lane, 2)
            early.cancel()
            first.cancel()
            await asyncio.wait([early, first])
        assert await kept == -2
        assert await lane.submit(3) == -3
    assert counter.batches == [[0], [2], [3]]


async def test_a_batch_of_which_all_gave_up_is_no_call(counter):
    async with laid(counter) as lane:
        async with under_way(counter, lane) as first:
            gone = submit(lane, 1, 2)
            await until_waiting(lane, 2)
            for task in gone:
                task.cancel()
            await asyncio.wait(gone)
        assert await first == 0
        assert await lane.submit(3) == -3
    assert counter.batches == [[0], [3]]


async def test_a_lane_that_closes_leaves_nobody_waiting(counter):
    async with laid(counter, max_batch=2) as lane:
        counter.may_answer.clear()
        (first,) = submit(lane, 0)
        await counter.began.get()
        others = submit(lane, 1, 2, 3)
        await until_waiting(lane, 3)
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 4
    assert counter.lines[0].is_over
    assert counter.batches == [[0]]


async def test_a_line_that_has_been_idle_is_closed_and_the_next_batch_opens_another(
    counter, monkeypatch
):
    monkeypatch.setattr(lanes, "IDLE_S", -1.0)
    monkeypatch.setattr(lanes, "IDLE_LOOK_S", 0.0)
    async with laid(counter) as lane, asyncio.timeout(10):
        assert await lane.submit(1) == -1
        while not counter.lines[0].is_over:
            await asyncio.sleep(0)
        counter.began.get_nowait()
        async with under_way(counter, lane) as call:
            for _ in range(10):  # looks
                await asyncio.sleep(0)
            assert not counter.lines[1].is_over
        assert await call == 0
        assert len(counter.lines) == 2


async def test_a_line_that_is_used_now_and_then_stays(counter, monkeypatch):
    monkeypatch.setattr(lanes, "IDLE_S", 60.0)
    monkeypatch.setattr(lanes, "IDLE_LOOK_S", 0.0)
    async with laid(counter) as lane, asyncio.timeout(60):
        for item in range(3):
            assert await lane.submit(item) == -item
            for _ in range(10):  # looks
                await asyncio.sleep(0)
        assert len(counter.lines) == 1


async def test_a_meter_that_raises_stops_no_lane(counter, monkeypatch):
    def fail(*_measured: object) -> None:
        lane.meter = None
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("smithers.service_loops.PAUSE_S", 0)
    async with laid(counter) as lane, asyncio.timeout(60):
        lane.meter = fail
        assert await lane.submit(7) == -7
        assert await lane.submit(8) == -8


async def test_of_the_items_whose_rows_others_hold_one_waits_in_turn_and_the_others_look_again(
    counter, monkeypatch
):
    monkeypatch.setattr(lanes, "IN_TURN_AFTER_S", 0.0)
    looked, waiting = Counting[int](), asyncio.Queue[tuple[int, asyncio.Future[int]]]()

    async def look(_line: Any, items: Sequence[int]) -> Sequence[int | Exception]:
        looked.update(items)
        return [RowsHeld() if item else item for item in items]

    async def wait(item: int) -> int:
        turn = asyncio.get_running_loop().create_future()
        waiting.put_nowait((item, turn))
        return await turn

    lane = Lane("nowhere", role="test", flush=look, in_turn=wait)
    async with lane, asyncio.timeout(60):
        tasks = dict(zip((1, 2), submit(lane, 1, 2), strict=True))
        first, turn = await waiting.get()
        second = 3 - first
        seen = looked[second]
        while looked[second] < seen + 3:
            await asyncio.sleep(0)
        assert await lane.submit(0) == 0
        assert waiting.empty()
        turn.set_exception(RowsHeld())  # it goes on looking, and so may the other have its turn
        last, turn = await waiting.get()
        turn.set_result(-last)
        assert await tasks[last] == -last


async def test_who_comes_after_the_close_is_told_so(counter):
    async with laid(counter) as lane:
        assert await lane.submit(1) == -1
    with pytest.raises(StoreUnavailable, match="closed"):
        await lane.submit(2)


async def test_after_a_failure_items_go_out_alone_and_then_in_ever_larger_batches(counter):
    async with laid(counter, max_batch=4) as lane:
        counter.refusal = TimeoutError()
        async with under_way(counter, lane) as first:
            others = submit(lane, *range(1, 12))
            await until_waiting(lane, 11)
        with pytest.raises(StoreUnavailable):
            await first
        assert await asyncio.gather(*others) == [-number for number in range(1, 12)]
    assert [len(batch) for batch in counter.batches] == [1, 1, 2, 4, 4]
