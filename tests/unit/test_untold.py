"""Hints about what was committed without one: together, once, again if the database was away, and at the end."""

import asyncio

import pytest

from smithers.errors import StoreUnavailable
from smithers.ids import RunId
from smithers.store import untold as product
from smithers.store.untold import Untold

PATIENCE_S = 60.0


class Ear:
    """Hears hints, and may refuse or delay them."""

    def __init__(self) -> None:
        self.hints: asyncio.Queue[set[str]] = asyncio.Queue()
        self.failures = 0
        self.is_called = asyncio.Event()
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def tell(self, run_ids) -> None:
        told = set(run_ids)
        self.is_called.set()
        await self.is_open.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        self.hints.put_nowait(told)

    async def hear(self) -> set[str]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.hints.get()


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before the loop's next turn goes together, however long the test's process is off the processor."""
    monkeypatch.setattr(product, "LATE_S", 0.0)
    monkeypatch.setattr(product, "RETRY_S", 0.01)


async def test_runs_are_told_of_together_and_once(ear):
    async with Untold(ear.tell) as untold:
        for run_id in ("a", "b", "a"):
            untold.add(RunId(run_id))
        assert await ear.hear() == {"a", "b"}
        untold.add(RunId("c"))
        assert await ear.hear() == {"c"}
        untold.add(RunId("a"))
        assert await ear.hear() == {"a"}
    assert ear.hints.empty()


async def test_nothing_is_sent_about_a_run_that_was_told_of_meanwhile(ear):
    async with Untold(ear.tell) as untold:
        untold.add(RunId("a"))
        untold.discard(RunId("a"))
        untold.add(RunId("b"))
        assert await ear.hear() == {"b"}
    assert ear.hints.empty()


async def test_what_comes_while_a_hint_is_sent_goes_with_the_next(ear):
    ear.is_open.clear()
    async with Untold(ear.tell) as untold:
        untold.add(RunId("a"))
        await ear.is_called.wait()
        untold.add(RunId("a"))
        untold.add(RunId("b"))
        ear.is_open.set()
        assert await ear.hear() == {"a"}
        assert await ear.hear() == {"a", "b"}


async def test_a_hint_that_could_not_be_sent_is_sent_again(ear):
    ear.failures = 2
    async with Untold(ear.tell) as untold:
        untold.add(RunId("a"))
        assert await ear.hear() == {"a"}


async def test_a_hint_is_late_and_not_sent_at_once(ear, monkeypatch):
    monkeypatch.setattr(product, "LATE_S", 3_600.0)
    async with Untold(ear.tell) as untold:
        untold.add(RunId("a"))
        for _ in range(100):  # turns of the loop; what is due at once takes some five
            await asyncio.sleep(0)
        assert not ear.is_called.is_set()


async def test_what_is_left_at_the_end_is_told(ear, monkeypatch):
    monkeypatch.setattr(product, "LATE_S", 3_600.0)
    async with Untold(ear.tell) as untold:
        untold.add(RunId("a"))
    assert ear.hints.get_nowait() == {"a"}


async def test_what_was_being_told_at_the_end_is_told(ear, monkeypatch):
    monkeypatch.setattr(product, "LAST_S", PATIENCE_S)
    ear.is_open.clear()
    async with Untold(ear.tell) as untold:
        untold.add(RunId("a"))
        await ear.is_called.wait()
        asyncio.get_running_loop().call_later(0.01, ear.is_open.set)
    assert ear.hints.get_nowait() == {"a"}


async def test_the_end_waits_for_no_database(ear, monkeypatch):
    monkeypatch.setattr(product, "LAST_S", 0.01)
    ear.is_open.clear()
    async with asyncio.timeout(PATIENCE_S):
        async with Untold(ear.tell) as untold:
            untold.add(RunId("a"))
    assert ear.hints.empty()
