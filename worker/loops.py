"""The event loop of a child, shared by the bodies of many runs: a body can cancel only its own tasks.

A body may cancel its own attempt's task, as its time limits do, and all tasks that it made. The child's own tasks and those
of other attempts ignore it: `for task in asyncio.all_tasks(): task.cancel()` is common, and meant for the body's own tasks.
A body may await a task that another attempt made (a request that both want): if the body is cancelled, or its
asyncio.timeout ends, it waits no longer, and the task goes on. asyncio.gather, and wait_for before Python 3.12, cancel what
they are given and wait for its end: there the body hears of its own cancellation when the other attempt's task is done.
"""

import asyncio
from collections.abc import Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

import uvloop

from worker.descendants import note_started
from worker.forks import Steps

# The task of the attempt that this code belongs to; None: the child's own code.
RUNNER: Final[ContextVar["asyncio.Task[Any] | None"]] = ContextVar("smithers_runner", default=None)


class BodyLoop(uvloop.Loop):
    """The loop of a child: it also records which attempt started a process."""

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        """Start a task: the child's own are protected from bodies, and the child from bodies' tasks."""
        is_body = RUNNER.get() is not None
        return KeptTask(Steps(coro, is_task=True) if is_body else coro, loop=self, **options)

    def stop(self) -> None:
        """Stop; raise RuntimeError for a body."""
        if RUNNER.get() is not None:
            raise RuntimeError("the event loop is its worker's: a task's body cannot stop it")
        super().stop()

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        """Start a program."""
        return note_started(await super().subprocess_exec(*args, **kwargs))

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:
        """Start a line of shell."""
        return note_started(await super().subprocess_shell(*args, **kwargs))


class KeptTask(asyncio.Task[Any]):
    """A task that bodies cannot cancel, except the one to whose attempt it belongs."""

    def __init__(self, coro: Any, *, context: Context | None = None, **options: Any) -> None:
        self._maker = RUNNER.get()
        # Kept, since an attempt's own task, which the child makes, says in it later whose it is.
        self._variables = copy_context() if context is None else context
        super().__init__(coro, context=self._variables, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel; only return False if a foreign body asks."""
        if self._is_foreign():
            return False
        # What it awaits is cancelled on its behalf, whoever has asked: it may be another attempt's.
        asking = RUNNER.set(self._runner())
        try:
            return super().cancel(msg)
        finally:
            RUNNER.reset(asking)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for it; a body that waits for another attempt's is cancelled alone."""
        return asyncio.shield(self).__await__() if self._is_foreign() else super().__await__()

    def _runner(self) -> "asyncio.Task[Any] | None":
        return self._maker or self._variables.get(RUNNER)

    def _is_foreign(self) -> bool:
        """Say whether the current body may not cancel this task."""
        asking = RUNNER.get()
        return asking is not None and asking is not self._runner()
