"""Make blocking calls in threads cancellable: a cancelled call gets a second to end, with the processes it started.

A call that no thread has begun yet is withdrawn instead: it never begins.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar, cast

from worker.descendants import ThreadChildren, end_all
from worker.forks import end_fork

MAX_THREADS: Final = 512  # of each kind: bodies, imports, calls through the event loop, tools
STOP_GRACE_S: Final = 1.0
AFTER_KILL_S: Final = 0.5  # for a thread that waited for a process which did not react

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Raised:
    """An exception raised in a thread; carried as a value, since a future refuses a StopIteration."""

    error: BaseException


class NoThread(Exception):
    """The system allows this process no more threads."""


class ThreadCall:
    """A call in a thread, and the processes that it starts."""

    def __init__(
        self,
        submit: Callable[[Callable[[], Any]], "Future[Any]"],
        function: Callable[[], Any],
    ) -> None:
        """`submit` makes a thread call a function."""
        self._children: ThreadChildren | None = None  # None: no thread has begun it
        self.future = submit(partial(self._call, function))

    async def end(self) -> None:
        """Withdraw the call, or give it a second to end, with the processes that it has started; it may run on after that."""
        if self.future.cancel() or self.future.done():
            return
        ended = asyncio.wrap_future(self.future)
        ended.add_done_callback(_look_at)
        waiting = asyncio.wait([ended], timeout=STOP_GRACE_S)
        if self._children is not None:
            await asyncio.gather(end_all(self._children.find(), STOP_GRACE_S), waiting)
            waiting = asyncio.wait([ended], timeout=AFTER_KILL_S)
        await waiting

    def _call(self, function: Callable[[], Any]) -> Any:
        self._children = ThreadChildren()
        pid = os.getpid()
        try:
            return function()
        finally:
            end_fork(pid)


def _look_at(ended: "asyncio.Future[Any]") -> None:
    """Retrieve the exception, so that asyncio does not complain."""
    if not ended.cancelled():
        ended.exception()


async def call_in_thread(
    threads: ThreadPoolExecutor,
    function: Callable[[], Result],
    *,
    on_cancel: Callable[[], None],
    on_stuck: Callable[[], None],
) -> Result:
    """Return what a function returns, called in a thread with this task's context variables.

    On a cancellation `on_cancel` is called at once, the processes that the thread has started are ended, and `on_stuck` is
    called if it still runs after that. Raises NoThread if no thread is available.
    """
    try:
        call = ThreadCall(threads.submit, partial(_catch, copy_context(), function))
    except RuntimeError as error:
        raise NoThread(str(error)) from error
    try:
        result = await asyncio.shield(asyncio.wrap_future(call.future))
    except asyncio.CancelledError:
        on_cancel()
        try:
            await call.end()
        finally:  # a second cancellation cuts its time short
            if not call.future.done():
                on_stuck()
        raise
    if isinstance(result, _Raised):
        raise result.error
    return cast("Result", result)


def _catch(variables: Variables, function: Callable[[], object]) -> object:
    try:
        return variables.run(function)
    except BaseException as error:  # noqa: BLE001 - handed to the loop, which judges it
        return _Raised(error)
