"""What signals do to `smithers serve` and `worker`."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from smithers import foundation, server
from smithers.cli import serve
from smithers.settings import ServerOptions


@pytest.fixture
def hang_ups_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def hang_ups_heeded():
    """Let the suite itself run below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


async def test_a_server_that_nohup_has_started_outlives_its_terminal(hang_ups_ignored):
    with serve.stop_signals(lambda: None) as stopping:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stopping.wait(), 30)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", serve.STOP_SIGNALS)
async def test_a_signal_stops_a_server(number, hang_ups_heeded):
    with serve.stop_signals(lambda: None) as stopping:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopping.wait(), 30)


@pytest.mark.parametrize("command", [serve._serve, serve._work])
async def test_who_is_told_to_stop_while_the_database_starts_ends(command, monkeypatch):
    laying = asyncio.Event()

    @asynccontextmanager
    async def lay(*_: Any) -> AsyncIterator[None]:
        laying.set()
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(foundation, "lay_foundation", lay)
    running = asyncio.create_task(command(ServerOptions()))
    await laying.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def test_who_is_told_to_stop_before_it_serves_lets_its_runs_end_and_hurries_when_told_again(
    monkeypatch,
):
    opening, drained, killed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    pools = SimpleNamespace(drain=drained.set, until_ended=killed.wait, kill=killed.set)

    @asynccontextmanager
    async def lay(*_: Any) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(pools=pools)

    @asynccontextmanager
    async def serve_on(*_: Any) -> AsyncIterator[None]:
        opening.set()
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(foundation, "lay_foundation", lay)
    monkeypatch.setattr(server, "serve_on", serve_on)
    running = asyncio.create_task(serve._serve(ServerOptions()))
    await opening.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(drained.wait(), 30)
    assert not running.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def test_an_embedded_database_that_starts_meanwhile_is_given_back(monkeypatch):
    may_open = asyncio.Event()
    opened: list[Share] = []
    loop = asyncio.get_running_loop()

    def open_late(settings: Any) -> Share:
        loop.call_soon_threadsafe(opening.cancel)
        asyncio.run_coroutine_threadsafe(may_open.wait(), loop).result(30)
        opened.append(Share())
        return opened[0]

    monkeypatch.setattr(foundation, "open_temporary_postgres", open_late)

    async def find() -> None:
        async with foundation.find_database(ServerOptions(no_database=True), {}):
            raise AssertionError("it was cancelled before")

    opening = asyncio.create_task(find())
    loop.call_later(0, may_open.set)
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert [share.is_closed for share in opened] == [True]


class Share:
    """What opening a database returns."""

    is_closed = False
    dsn = ""
    data_dir = None

    def close(self) -> None:
        self.is_closed = True
