"""What a task's body may ask about the attempt that it runs in."""

import logging
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from smithers.errors import SmithersError
from smithers.ids import NodeId, RunId


class HeartbeatSink(Protocol):
    """Where heartbeats go: the worker's attempt, or nothing in a test."""

    def __call__(self, data: Any) -> None:
        """Take one heartbeat; may be called from any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentTask:
    """The attempt under way."""

    run_id: RunId
    node_id: NodeId
    iteration: int
    attempt: int  # from 1
    root_dir: Path
    last_heartbeat: Any = None  # what an earlier attempt of this node last reported
    cancelled: threading.Event = field(default_factory=threading.Event)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("smithers.task"))
    _send_heartbeat: HeartbeatSink

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
