"""What an attempt has started in the threads of its event loop ends with it when it is stopped, or is told of."""

import asyncio
import subprocess
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from worker import started as starting
from worker import threads
from worker.started import LoopThreads, Started


class Attempt:
    """A body at work in a task of its own, and how often it was said to be stuck."""

    def __init__(self, body: Callable[[], Awaitable[Any]]) -> None:
        self.stuck_count = 0
        self.started = Started(self._hear)
        self.runner = asyncio.ensure_future(self._run(body))

    async def stop(self) -> None:
        self.runner.cancel()
        self.started.stop()
        await asyncio.wait([self.runner])
        await self.started.close()

    async def _run(self, body: Callable[[], Awaitable[Any]]) -> None:
        self.started.note_here()
        await body()

    def _hear(self) -> None:
        self.stuck_count += 1


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "STOP_GRACE_S", 0.1)
    monkeypatch.setattr(starting, "OUTLIVE_S", 0.1)


def open_threads() -> None:
    premises: Any = SimpleNamespace(enter_thread=lambda: None, call=lambda body: body())
    asyncio.get_running_loop().set_default_executor(LoopThreads(premises))


async def begun(event: threading.Event) -> None:
    async with asyncio.timeout(60):
        while not event.is_set():
            await asyncio.sleep(0.01)


async def test_a_call_that_goes_on_when_its_attempt_was_stopped_is_told_of() -> None:
    open_threads()
    has_begun, go = threading.Event(), threading.Event()

    def work() -> None:
        has_begun.set()
        go.wait()

    attempt = Attempt(lambda: asyncio.to_thread(work))
    await begun(has_begun)
    await attempt.stop()
    go.set()
    assert attempt.stuck_count == 1


async def test_a_program_that_a_call_waits_for_ends_with_the_attempt() -> None:
    open_threads()
    has_begun = threading.Event()

    def work() -> None:
        with subprocess.Popen(["sleep", "60"]) as program:
            has_begun.set()
            program.wait()

    attempt = Attempt(lambda: asyncio.to_thread(work))
    await begun(has_begun)
    async with asyncio.timeout(60):
        await attempt.stop()
    assert attempt.stuck_count == 0


async def test_what_a_stopped_body_does_to_clean_up_is_done() -> None:
    open_threads()
    done: list[str] = []

    async def body() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(done.append, "cleaned up")

    attempt = Attempt(body)
    await asyncio.sleep(0)
    await attempt.stop()
    assert (done, attempt.stuck_count) == (["cleaned up"], 0)


async def test_a_call_that_a_body_has_not_waited_for_may_end_and_not_go_on_for_ever() -> None:
    open_threads()
    ending, lasting = threading.Event(), threading.Event()

    def work(go: threading.Event) -> Callable[[], Awaitable[Any]]:
        async def body() -> None:
            asyncio.get_running_loop().run_in_executor(None, go.wait)

        return body

    attempts = [Attempt(work(go)) for go in (ending, lasting)]
    for attempt in attempts:
        await attempt.runner
        await attempt.started.close()
    assert [attempt.stuck_count for attempt in attempts] == [0, 0]
    ending.set()
    async with asyncio.timeout(60):
        while attempts[1].stuck_count == 0:
            await asyncio.sleep(0.01)
    lasting.set()
    assert [attempt.stuck_count for attempt in attempts] == [0, 1]
