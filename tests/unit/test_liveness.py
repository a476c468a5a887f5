"""The session by which other hosts know that a pool lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from smithers.errors import StoreUnavailable
from worker import liveness


async def test_a_database_that_stays_away_is_complained_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries, is_tried, is_held = 0, asyncio.Event(), asyncio.Event()

    def fail() -> None:
        nonlocal tries
        tries += 1
        if tries == 4:  # what the third one says is said by now
            is_tried.set()
        raise StoreUnavailable("away")

    @asynccontextmanager
    async def refuse(_dsn: str, _pool_id: UUID) -> AsyncIterator[None]:
        fail()
        yield

    monkeypatch.setattr(liveness, "open_liveness", refuse)
    monkeypatch.setattr(liveness, "RETRY_S", 0.001)
    with capture_logs() as logs:
        keeping = asyncio.create_task(liveness.keep_liveness("", uuid4(), is_held))
        await asyncio.wait_for(is_tried.wait(), 30)
        keeping.cancel()
        await asyncio.wait([keeping])
    assert [(said["event"], said["error"]) for said in logs] == [("liveness_failed", "away")]
    assert not is_held.is_set()
