"""What an attempt has started besides its own task: processes, and calls in the event loop's threads.

Both end with the attempt when it is stopped. A plain function's own thread is not among them: its caller ends it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar

from worker.descendants import STARTED, Process, end_all
from worker.premises import Premises
from worker.threads import MAX_THREADS, STOP_GRACE_S, ThreadCall

OUTLIVE_S: Final = 10.0  # for a call that a body has started and not awaited

Result = TypeVar("Result")
Calls = dict["Future[Any]", ThreadCall]

# The unfinished calls of the current attempt.
_CALLS: Final[ContextVar[Calls | None]] = ContextVar("smithers_loop_calls", default=None)


class LoopThreads(ThreadPoolExecutor):
    """The threads of a child's event loop: an attempt's calls there (asyncio.to_thread) are recorded for it.

    A subclass, since an event loop accepts no other executor.
    """

    def __init__(self, premises: Premises) -> None:
        super().__init__(MAX_THREADS, "loop", initializer=premises.enter_thread)
        self._premises = premises

    def submit(
        self, function: Callable[..., Result], /, *args: Any, **kwargs: Any
    ) -> "Future[Result]":
        """Call a function in a thread."""
        calls = _CALLS.get()
        if calls is None:
            return super().submit(function, *args, **kwargs)
        body = partial(self._premises.call, partial(function, *args, **kwargs))
        call = ThreadCall(super().submit, body)
        calls[call.future] = call
        call.future.add_done_callback(lambda future: calls.pop(future, None))
        return call.future


class Started:
    """What one attempt has started."""

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        """`on_stuck` is called for a call that does not stop."""
        self.endings: list[asyncio.Task[None]] = []
        self._on_stuck = on_stuck
        self._processes: list[Process] = []
        self._calls: Calls = {}

    def note_here(self) -> None:
        """Record what the calling task starts from now on."""
        STARTED.set(self._processes)
        _CALLS.set(self._calls)

    def stop(self) -> None:
        """Begin to stop what is running now; what the body starts after that, to clean up, has until close()."""
        ending = self._end(self._take_processes(), self._take_calls(), STOP_GRACE_S)
        self.endings.append(asyncio.get_running_loop().create_task(ending))

    async def close(self) -> None:
        """Return when nothing of it is left; an unstopped body's leftovers are its author's responsibility."""
        if self.endings:
            await asyncio.wait(self.endings)
            await self._end(self._take_processes(), self._take_calls(), 0)
            return
        for process in self._processes:
            process.close()
        if self._calls:  # they may end, but not keep their threads for ever
            loop = asyncio.get_running_loop()
            loop.call_later(OUTLIVE_S, self._judge, self._take_calls())

    async def _end(self, processes: list[Process], calls: list[ThreadCall], grace_s: float) -> None:
        try:
            await asyncio.gather(end_all(processes, grace_s), *(call.end() for call in calls))
        finally:
            self._judge(calls)

    def _judge(self, calls: list[ThreadCall]) -> None:
        if not all(call.future.done() for call in calls):
            self._on_stuck()

    def _take_processes(self) -> list[Process]:
        taken = [*self._processes]
        self._processes.clear()
        return taken

    def _take_calls(self) -> list[ThreadCall]:
        taken = list(self._calls.values())
        for call in taken:
            self._calls.pop(call.future, None)
        return taken
