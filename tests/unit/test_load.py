"""What a process takes on, and what it says to the one that is too many."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from gateway import backlog as backlog_module
from gateway.access import Credential
from gateway.backlog import BacklogEstimate
from gateway.envelope import problem
from gateway.errors import Overloaded, TooManyRequests
from gateway.load import Load, Room
from smithers.errors import StoreUnavailable
from smithers.ids import RunId
from smithers.settings import InvalidSettings, Limits, read_server_options

ANN = Credential("ann", ("*",))
BOB = Credential("bob", ("*",))
ONE, OTHER = RunId("one"), RunId("other")


def limit_of(error: pytest.ExceptionInfo[Any]) -> str:
    return str(error.value.details["limit"])


@contextmanager
def body(load: Load, size_bytes: int) -> Iterator[None]:
    with Room(load) as room:
        room.grow(size_bytes)
        yield


def test_requests_are_let_in_up_to_the_limit_and_again_when_one_is_done() -> None:
    load = Load(Limits(requests=2))
    with load.request():
        with load.request(), pytest.raises(Overloaded) as error, load.request():
            pass
        assert limit_of(error) == "requests"
        with load.request():
            pass


def test_a_request_that_fails_gives_its_place_back() -> None:
    load = Load(Limits(requests=1))
    for _ in range(3):
        with pytest.raises(RuntimeError), load.request():
            raise RuntimeError


def test_bodies_are_let_in_by_their_size_and_one_alone_always() -> None:
    load = Load(Limits(body_bytes=100))
    with body(load, 500):
        with pytest.raises(Overloaded) as error, body(load, 1):
            pass
        assert limit_of(error) == "body-bytes"
    with body(load, 60), body(load, 40), pytest.raises(Overloaded), body(load, 1):
        pass


def test_a_body_of_unknown_length_takes_what_has_come_and_gives_all_of_it_back() -> None:
    load = Load(Limits(body_bytes=100))
    with ExitStack() as stack:
        rooms = [stack.enter_context(Room(load)) for _ in range(50)]
        for room in rooms:
            room.grow(2)
        with pytest.raises(Overloaded) as error:
            rooms[0].grow(1)
        assert limit_of(error) == "body-bytes"
    with Room(load) as alone:
        alone.grow(100)
        alone.grow(100)
        with pytest.raises(Overloaded), body(load, 1):
            pass
    with body(load, 100):
        pass


def test_a_stream_is_no_request_under_way() -> None:
    load = Load(Limits(requests=1))
    with load.request(), load.stream(ONE, ANN), load.request():
        pass
    # What is over has given back what it took, and no more.
    with load.request(), pytest.raises(Overloaded), load.request():
        pass


def test_streams_are_counted_in_all_by_run_and_by_credential() -> None:
    load = Load(Limits(streams=3, streams_per_run=2, streams_per_credential=2))
    with ExitStack() as stack:
        stack.enter_context(load.stream(ONE, ANN))
        stack.enter_context(load.stream(ONE, BOB))
        with pytest.raises(TooManyRequests) as error, load.stream(ONE, ANN):
            pass
        assert limit_of(error) == "streams-per-run"
        stack.enter_context(load.stream(OTHER, ANN))
        with pytest.raises(Overloaded) as full, load.stream(OTHER, BOB):
            pass
        assert limit_of(full) == "streams"
    with ExitStack() as stack:  # all places are free again
        for run_id in (ONE, OTHER):
            stack.enter_context(load.stream(run_id, ANN))
        with pytest.raises(TooManyRequests) as error, load.stream(RunId("third"), ANN):
            pass
        assert limit_of(error) == "streams-per-credential"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Overloaded(), 503, "UNAVAILABLE"), (TooManyRequests(), 429, "TOO_MANY_REQUESTS")],
)
def test_who_is_refused_is_told_to_come_back(error: Exception, status: int, code: str) -> None:
    response = problem(error)
    assert (response.status, response.headers["Retry-After"]) == (status, "1")
    assert code.encode() in response.body  # type: ignore[operator]  # it is bytes


class Counting:
    """Stands for the database: says how many runs are queued, or that it is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queued: int | None = 0
        self.asked = asyncio.Event()
        self.ask_count = 0
        monkeypatch.setattr(backlog_module, "count_queued", self._count)
        monkeypatch.setattr(backlog_module, "PAUSE_S", 0)

    async def _count(self, _pool: Any, *, limit: int) -> int:
        self.ask_count += 1
        self.asked.set()
        if self.queued is None:
            raise StoreUnavailable("it is away")
        return min(self.queued, limit)

    async def again(self) -> None:
        """Wait until it was asked and the answer was taken."""
        self.asked.clear()
        await self.asked.wait()
        await asyncio.sleep(0)


def start(backlog: BacklogEstimate) -> None:
    """Start a run, and be done with it."""
    with backlog.starting():
        pass


async def test_starts_are_let_in_until_too_many_runs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    async with BacklogEstimate(None, 3) as backlog:  # type: ignore[arg-type]  # there is no database
        for _ in range(3):
            start(backlog)
        with pytest.raises(Overloaded) as error:
            start(backlog)
        assert limit_of(error) == "queued-runs"
        await counting.again()  # all three were taken up at once
        for _ in range(3):
            start(backlog)
        counting.queued = 3
        await counting.again()
        with pytest.raises(Overloaded):
            start(backlog)
        counting.queued = 2
        await counting.again()
        start(backlog)


async def test_what_is_under_way_while_it_is_counted_still_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = Counting(monkeypatch)
    async with BacklogEstimate(None, 2) as backlog:  # type: ignore[arg-type]  # there is no database
        with backlog.starting(), backlog.starting():
            await counting.again()  # which has seen neither
            with pytest.raises(Overloaded):
                start(backlog)
        with pytest.raises(Overloaded):
            start(backlog)
        await counting.again()
        start(backlog)


async def test_what_was_known_holds_while_the_database_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = Counting(monkeypatch)
    counting.queued = None
    async with BacklogEstimate(None, 2) as backlog:  # type: ignore[arg-type]  # there is no database
        start(backlog)
        await counting.again()
        start(backlog)
        with pytest.raises(Overloaded):
            start(backlog)


async def test_the_first_start_after_a_quiet_time_is_not_refused_for_an_old_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = Counting(monkeypatch)
    async with BacklogEstimate(None, 2) as backlog:  # type: ignore[arg-type]  # there is no database
        counting.queued = 2
        start(backlog)
        await counting.again()
        await counting.again()
        counting.queued = 0  # and nobody has started or been refused since
        await counting.again()
        asked = counting.ask_count
        for _ in range(10):
            await asyncio.sleep(0)
        assert counting.ask_count <= asked + 1
        start(backlog)


async def test_nothing_is_counted_while_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    async with BacklogEstimate(None, 2):  # type: ignore[arg-type]  # there is no database
        for _ in range(10):
            await asyncio.sleep(0)
    assert counting.ask_count == 0


def test_limits_are_read_by_name_and_the_last_one_counts() -> None:
    told = {"limits": ["streams=7,queued-runs=9", "streams=8"]}
    assert read_server_options(told, {}).limits == Limits(streams=8, queued_runs=9)
    assert read_server_options({}, {"SMITHERS_LIMITS": "requests=5"}).limits.requests == 5
    assert read_server_options({}, {}).limits == Limits()


@pytest.mark.parametrize("text", ["streams", "stream=1", "streams=0", "streams=x", "streams=", ","])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="--limit: must be NAME=N"):
        read_server_options({"limits": [text]}, {})
