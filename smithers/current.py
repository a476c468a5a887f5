"""What a task's body can learn about its attempt."""

import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from smithers.errors import SmithersError
from smithers.ids import NodeId, RunId

_CREATING: Final = threading.Lock()


@dataclass(slots=True, kw_only=True)
class CurrentTask:
    """The current attempt, read-only."""

    run_id: RunId
    node_id: NodeId
    iteration: int
    attempt: int  # from 1
    root_dir: Path
    last_heartbeat: Any = None  # the last report of an earlier attempt of this node
    _send_heartbeat: Callable[[Any], None]  # from any thread
    # Created on first use: most bodies never do.
    _cancelled: threading.Event | None = None

    @property
    def cancelled(self) -> threading.Event:
        """An event that is set when the body must stop: for plain functions, which cannot be interrupted."""
        with _CREATING:
            if self._cancelled is None:
                self._cancelled = threading.Event()
            return self._cancelled

    @property
    def log(self) -> logging.Logger:
        """A logger whose lines carry the attempt's ids."""
        return logging.getLogger("smithers.task")

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this node's iteration: pass it to whatever must happen once."""
        return f"{self.run_id}/{self.node_id}/{self.iteration}"

    def heartbeat(self, data: Any = None) -> None:
        """Report that the body is alive, and its progress; the next attempt finds the newest as `last_heartbeat`."""
        self._send_heartbeat(data)


CURRENT: Final[ContextVar[CurrentTask]] = ContextVar("smithers_current_task")


def current_task() -> CurrentTask:
    """Return the attempt that this code runs in; raise SmithersError outside a task's body."""
    try:
        return CURRENT.get()
    except LookupError:
        raise SmithersError(
            "current_task() is for the body of a task; a builder has its ctx"
        ) from None
