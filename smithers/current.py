"""What a task's body may ask about the attempt that it runs in."""

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
    """The attempt under way; for reading."""

    run_id: RunId
    node_id: NodeId
    iteration: int
    attempt: int  # from 1
    root_dir: Path
    last_heartbeat: Any = None  # what an earlier attempt of this node last reported
    _send_heartbeat: Callable[[Any], None]  # from any thread
    # Made when somebody asks for it: most bodies never do.
    _cancelled: threading.Event | None = None

    @property
    def cancelled(self) -> threading.Event:
        """What is set when the body is to end: for plain functions, which nothing can interrupt."""
        with _CREATING:
            if self._cancelled is None:
                self._cancelled = threading.Event()
            return self._cancelled

    @property
    def log(self) -> logging.Logger:
        """Writes lines that carry the attempt's ids."""
        return logging.getLogger("smithers.task")

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this node's iteration: hand it to whatever must happen once."""
        return f"{self.run_id}/{self.node_id}/{self.iteration}"

    def heartbeat(self, data: Any = None) -> None:
        """Say that the body is alive, and how far it is; the next attempt finds the newest as `last_heartbeat`."""
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
