"""End a fork of a child where it comes back from what an author wrote.

A body may fork, and do in the fork what it likes (multiprocessing does). What it must not do is return there: the fork has
the child's event loop and the child's connections, and whatever it said on them would garble what the child says.
"""

import os
from collections.abc import Callable, Coroutine
from typing import Any, Self


def end_fork(pid: int) -> None:
    """End this process, at once, if it is a fork of the process `pid`."""
    if os.getpid() != pid:
        os._exit(0)


class Steps(Coroutine[Any, Any, Any]):
    """An author's coroutine, to be awaited or made a task: a fork of this process ends after the step that made it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, is_task: bool = False) -> None:
        """`is_task`: asyncio itself takes the steps, and would end its loop for a SystemExit: it gets a RuntimeError."""
        self._coroutine = coroutine
        self._is_task = is_task
        self._pid = os.getpid()

    def send(self, value: Any) -> Any:
        """Take the next step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """Take the next step by raising there."""
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        """Take no further step."""
        self._coroutine.close()

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def __getattr__(self, name: str) -> Any:
        # What inspect and anyio ask of a coroutine: cr_running, cr_frame and the like.
        return getattr(self._coroutine, name)

    def _step(self, step: Callable[..., Any], *given: Any) -> Any:
        try:
            return step(*given)
        except (SystemExit, KeyboardInterrupt) as error:
            if not self._is_task:
                raise
            raise RuntimeError(f"{type(error).__name__}({error}) in a task of a body") from error
        finally:
            end_fork(self._pid)
