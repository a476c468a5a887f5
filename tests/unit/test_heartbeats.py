"""Heartbeats of an attempt: the newest is kept, at most once a second, whoever beats."""

import asyncio

import pytest

from smithers.errors import InvalidOutput
from worker import heartbeats
from worker.heartbeats import MAX_BYTES, Heartbeats
from worker.loop_thread import LoopThread


async def test_the_first_goes_on_at_once_and_the_newest_at_the_end() -> None:
    kept: list[str] = []
    beats = Heartbeats(kept.append, LoopThread())

    def beat_ten() -> None:
        for page in range(10):
            beats.beat(page)

    for page in range(50):
        beats.beat({"page": page})
    assert kept == ['{"page":0}']
    beats.flush()
    assert kept == ['{"page":0}', '{"page":49}']
    beats.flush()
    assert len(kept) == 2


async def test_the_newest_goes_on_when_the_second_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "EVERY_S", 0.05)
    kept: asyncio.Queue[str] = asyncio.Queue()
    beats = Heartbeats(kept.put_nowait, LoopThread())
    for page in range(3):
        beats.beat(page)
    assert [await kept.get(), await kept.get()] == ["0", "2"]
    beats.beat(3)
    assert await kept.get() == "3"


async def test_a_thread_beats_as_well() -> None:
    kept: list[str] = []
    beats = Heartbeats(kept.append, LoopThread())

    def beat_ten() -> None:
        for page in range(10):
            beats.beat(page)

    await asyncio.to_thread(beat_ten)
    beats.flush()
    assert kept[-1] == "9"
    assert len(kept) <= 2


async def test_one_that_is_too_large_is_none() -> None:
    kept: list[str] = []
    beats = Heartbeats(kept.append, LoopThread())

    def beat_ten() -> None:
        for page in range(10):
            beats.beat(page)

    with pytest.raises(InvalidOutput, match="at most"):
        beats.beat("x" * MAX_BYTES)
    beats.flush()
    assert kept == []
