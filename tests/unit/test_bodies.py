"""Where authors' code runs: what is done for it, and what it cannot do to its process."""

import asyncio
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.loops import RUNNER, BodyLoop, KeptTask
from worker.outlets import BURST_BYTES, DROPPED, Outlet
from worker.prints import Prints
from worker.rendering import install_alarm, render_guard
from worker.threads import NoThread, call_in_thread


class NoneLeft(ThreadPoolExecutor):
    def submit(self, *_args, **_kwargs):
        raise RuntimeError("can't start new thread")


async def test_a_thread_that_is_not_to_be_had_is_no_error_of_the_body():
    def nothing() -> None:
        pass

    with pytest.raises(NoThread, match="can't start"):
        await call_in_thread(NoneLeft(), nothing, on_cancel=nothing, on_stuck=nothing)


async def test_what_a_child_writes_is_passed_on_up_to_a_limit(capfd):
    reader, writer = multiprocessing.Pipe(duplex=False)
    outlet = Outlet(reader)
    piece = b"x" * 4096
    for _ in range(2 * BURST_BYTES // len(piece)):
        os.write(writer.fileno(), piece)
        await asyncio.sleep(0)
    os.write(writer.fileno(), b"last words")
    writer.close()
    outlet.close()
    passed = capfd.readouterr().err
    assert BURST_BYTES <= passed.count("x") <= BURST_BYTES * 1.5
    assert passed.count(DROPPED.decode()) >= 1


def run_on_body_loop(coroutine):
    with asyncio.Runner(loop_factory=BodyLoop) as runner:
        return runner.run(coroutine)


def test_a_body_cancels_its_own_tasks_and_nobody_elses():
    async def body(others):
        RUNNER.set(asyncio.current_task())
        own = asyncio.ensure_future(asyncio.sleep(60))
        said = [task.cancel() for task in (*others, own)]
        with pytest.raises(asyncio.CancelledError):
            await own
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):  # which cancels the attempt's own task
                await asyncio.sleep(60)
        return said

    async def another_body(parts):
        RUNNER.set(asyncio.current_task())
        parts.append(asyncio.ensure_future(asyncio.sleep(0.05, "part")))
        return await parts[0]

    async def main():
        kept = asyncio.ensure_future(asyncio.sleep(0.05, "done"))
        assert isinstance(kept, KeptTask)
        parts = []
        another = asyncio.ensure_future(another_body(parts))
        await asyncio.sleep(0)
        said = await asyncio.ensure_future(body([kept, asyncio.current_task(), another, *parts]))
        return said, await kept, await another

    assert run_on_body_loop(main()) == ([False] * 4 + [True], "done", "part")


def test_an_alarm_ends_a_render_and_nothing_else():
    before = signal.getsignal(signal.SIGALRM)
    try:
        install_alarm()
        os.kill(os.getpid(), signal.SIGALRM)
        assert render_guard(5.0)(lambda: "tree") == "tree"
        os.kill(os.getpid(), signal.SIGALRM)
        with pytest.raises(TimeoutError, match="took longer"):
            render_guard(0.05)(threading.Event().wait)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_is_printed_ends_in_so_many_events_and_says_so():
    texts: list[str] = []
    prints = Prints(lambda text, _stream: texts.append(text))
    for _ in range(100_000):
        prints.write("\n", "stdout")
    prints.flush()
    assert 10_000 < len(texts) < 12_000
    assert texts[-1].endswith("[more was printed, and dropped]\n")
