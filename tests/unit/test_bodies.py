"""Where authors' code runs: what is done for it, and what it cannot do to its process."""

import asyncio
import io
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import pytest

from worker import outlets
from worker.descendants import Process, end_all
from worker.loops import RUNNER, BodyLoop, KeptTask
from worker.outlets import BURST_BYTES, DROPPED, Outlet
from worker.prints import PRINTS, Prints, route_prints
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


async def test_a_call_that_no_thread_has_taken_up_is_withdrawn_when_it_is_cancelled():
    done: list[str] = []
    go = threading.Event()

    def call(function):
        def stuck():
            done.append("stuck")

        return asyncio.ensure_future(
            call_in_thread(threads, function, on_cancel=lambda: None, on_stuck=stuck)
        )

    with ThreadPoolExecutor(max_workers=1) as threads:
        first = call(go.wait)
        second = call(lambda: done.append("begun"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        assert await first
    assert done == []


def test_a_process_that_may_not_be_ended_keeps_no_other_alive(monkeypatch):
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    foreign, own = (Process(process.pid) for process in started)
    send = signal.pidfd_send_signal

    def refuse(pidfd, number):
        if pidfd == foreign._pidfd:
            raise PermissionError
        send(pidfd, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    try:
        asyncio.run(end_all([foreign, own], 0.05))
        assert started[1].wait(60) in {-signal.SIGTERM, -signal.SIGKILL}
    finally:
        for process in started:
            process.kill()
            process.wait()


async def test_what_a_child_writes_is_passed_on_up_to_a_limit(capfd, monkeypatch):
    monkeypatch.setattr(outlets, "BYTES_PER_S", 0)  # however long this takes
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
    assert BURST_BYTES * 0.9 < passed.count("x") <= BURST_BYTES
    assert passed.count(DROPPED.decode()) >= 1


async def test_what_a_childs_code_writes_gives_a_terminal_no_orders():
    reader, writer = multiprocessing.Pipe(duplex=False)
    terminal, its_end = pty.openpty()
    before = os.dup(2)
    os.dup2(its_end, 2)
    try:
        outlet = Outlet(reader)
        os.write(writer.fileno(), b"a\x1b[2J\xff\xc2\x9bb")
        writer.close()
        outlet.close()
    finally:
        os.dup2(before, 2)
        for number in (before, its_end):
            os.close(number)
    shown = os.read(terminal, 1_000)
    os.close(terminal)
    assert shown.decode() == "a\\u001b[2J\N{REPLACEMENT CHARACTER}\\u009bb"


def run_on_body_loop(coroutine):
    with asyncio.Runner(loop_factory=BodyLoop) as runner:
        return runner.run(coroutine)


def test_a_body_cancels_its_own_tasks_and_nobody_elses():
    async def body(others):
        RUNNER.set(asyncio.current_task())
        own = asyncio.ensure_future(asyncio.sleep(60))
        blank = asyncio.create_task(asyncio.sleep(60), context=Context())
        said = [task.cancel() for task in (*others, own, blank)]
        for task in (own, blank):
            with pytest.raises(asyncio.CancelledError):
                await task
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
        parts: list[asyncio.Future[Any]] = []
        another = asyncio.ensure_future(another_body(parts))
        await asyncio.sleep(0)
        said = await asyncio.ensure_future(body([kept, asyncio.current_task(), another, *parts]))
        return said, await kept, await another

    assert run_on_body_loop(main()) == ([False] * 4 + [True] * 2, "done", "part")


def test_a_body_that_waits_for_anothers_task_is_cancelled_alone():
    async def one_body(shared, go):
        RUNNER.set(asyncio.current_task())
        shared.append(asyncio.ensure_future(go.wait()))
        return await shared[0]

    async def another_body(shared):
        RUNNER.set(asyncio.current_task())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await shared[0]
        await shared[0]

    async def a_body_that_gathers(shared):
        RUNNER.set(asyncio.current_task())
        await asyncio.gather(shared[0])

    async def main():
        shared: list[asyncio.Future[Any]] = []
        go = asyncio.Event()
        one = asyncio.ensure_future(one_body(shared, go))
        await asyncio.sleep(0)
        waiting = [
            asyncio.ensure_future(each(shared)) for each in (another_body, a_body_that_gathers)
        ]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        return await one

    assert run_on_body_loop(main()) is True


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


@contextmanager
def routed():
    """Yield what a body prints, by stream."""
    before = sys.stdout, sys.stderr
    taken = {"stdout": "", "stderr": ""}

    def take(text, stream):
        taken[stream] += text

    route_prints()
    token = PRINTS.set(take)
    try:
        yield taken
    finally:
        PRINTS.reset(token)
        sys.stdout, sys.stderr = before


def test_bytes_that_a_body_writes_arrive_where_its_text_does():
    with routed() as printed:
        sys.stdout.write("text ")
        count = sys.stdout.buffer.write("bytes ü".encode())
        sys.stdout.buffer.write(memoryview(b" and \xff\n"))
        sys.stdout.buffer.flush()
        sys.stderr.buffer.writelines([b"a", b"b"])
        text: Any = "text"
        with pytest.raises(TypeError):
            sys.stdout.buffer.write(text)
    assert count == len("bytes ü".encode())
    assert printed == {"stdout": "text bytes ü and \N{REPLACEMENT CHARACTER}\n", "stderr": "ab"}


def test_a_bodys_stream_has_what_streams_have():
    with routed() as printed:
        stream: Any = sys.stdout
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
        assert (stream.name, stream.mode, stream.isatty()) == ("<stdout>", "w", False)
        assert stream.encoding
        assert stream.errors
        assert stream.buffer.writable()
        assert not stream.buffer.isatty()
    assert printed == {"stdout": "", "stderr": ""}


def test_a_body_that_wraps_or_closes_its_stream_closes_nobodys():
    with routed() as printed:
        wrapped = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        wrapped.write("wrapped\n")
        wrapped.close()
        stdout: Any = sys.stdout
        io.TextIOWrapper(stdout.detach(), encoding="utf-8").close()
        sys.stdout.close()
        sys.stdout.writelines(["lines\n"])
        sys.stdout.buffer.write(b"bytes\n")
    assert printed["stdout"] == "wrapped\nlines\nbytes\n"


def test_bytes_without_an_attempt_go_to_the_original(capsys):
    with routed():
        PRINTS.set(None)
        sys.stdout.buffer.write(b"bytes\n")
        sys.stdout.buffer.flush()
    assert capsys.readouterr().out == "bytes\n"
