"""End a fork of a child when it returns from the author's code.

A body may fork, and do anything in the fork (multiprocessing does). But it must not return there: the fork has
the child's event loop and connections, and writing to them would corrupt the child's own messages.
"""

import os
from collections.abc import Callable, Coroutine
from typing import Any, Self


def end_fork(pid: int) -> None:
    """End this process, at once, if it is a fork of the process `pid`."""
    if os.getpid() != pid:
        os._exit(0)


class Steps(Coroutine[Any, Any, Any]):
    """Wraps an author's coroutine or task: a fork of this process ends after the step that forked."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, is_task: bool = False) -> None:
        """`is_task`: asyncio takes the steps, and a SystemExit would end its loop: it becomes a RuntimeError."""
        self._coroutine = coroutine
        self._is_task = is_task
        self._pid = os.getpid()

    def send(self, value: Any) -> Any:
        """Take the next step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """Take the next step by raising in the coroutine."""
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        """Take no further step."""
        self._coroutine.close()

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._step(self._coroutine.send, None)

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
