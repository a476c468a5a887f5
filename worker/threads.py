"""Call what blocks in a thread, so that a cancellation is heard: it gets a second to end, with the processes it started."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar, cast

from worker.descendants import ThreadChildren, end_all
from worker.forks import end_fork

STOP_GRACE_S: Final = 1.0
AFTER_KILL_S: Final = 0.5  # for a thread that waited for a process which did not hear

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Raised:
    """What was raised in a thread; carried as a value, since a future refuses a StopIteration."""

    error: BaseException


class NoThread(Exception):
    """The system gives this process no more threads."""


async def call_in_thread(
    threads: ThreadPoolExecutor,
    function: Callable[[], Result],
    *,
    on_cancel: Callable[[], None],
    on_stuck: Callable[[], None],
) -> Result:
    """Return what a function returns, called in a thread with this task's context variables.

    On a cancellation `on_cancel` is called at once, the processes that the thread has started are ended, and `on_stuck` is
    called where it still runs after that. Raises NoThread where no thread is to be had.
    """
    loop = asyncio.get_running_loop()
    started: list[ThreadChildren] = []
    try:
        future = loop.run_in_executor(threads, partial(_call, copy_context(), function, started))
    except RuntimeError as error:
        raise NoThread(str(error)) from error
    try:
        result = await asyncio.shield(future)
    except asyncio.CancelledError:
        on_cancel()
        waiting = asyncio.wait([future], timeout=STOP_GRACE_S)
        if started and not future.done():  # else the thread is another body's
            await asyncio.gather(end_all(started[0].find(), STOP_GRACE_S), waiting)
            waiting = asyncio.wait([future], timeout=AFTER_KILL_S)
        _, stuck = await waiting
        if stuck:
            on_stuck()
        raise
    if isinstance(result, _Raised):
        raise result.error
    return cast("Result", result)


def _call(
    variables: Variables, function: Callable[[], object], started: list[ThreadChildren]
) -> object:
    started.append(ThreadChildren())
    pid = os.getpid()
    try:
        return variables.run(function)
    except BaseException as error:  # noqa: BLE001 - handed to the loop, which judges it
        return _Raised(error)
    finally:
        end_fork(pid)
