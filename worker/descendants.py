"""The processes that a body started itself, without the tools: they end with its attempt when that is stopped.

For a plain function the kernel lists the children of its thread; processes that an async body starts through asyncio
pass through the child's loop (worker.loops). Both include all descendants.
A process that has detached itself from its parents (a double fork) is not covered: see docs/sandbox.md.
"""

import asyncio
import os
import select
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import structlog

from smithers.ids import WorkerId

MARK: Final = "SMITHERS_WORKER_ID"  # in the environment of programs that a worker's bodies start
LOOK_EVERY_S: Final = 0.02

LOG: Final = structlog.get_logger(__name__)

# The processes of the current attempt.
STARTED: Final[ContextVar["list[Process] | None"]] = ContextVar("smithers_started", default=None)


class Process:
    """A process held by a pidfd, so that its pid cannot become another's."""

    def __init__(self, pid: int) -> None:
        """Open it; ProcessLookupError if it is gone."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to this process or to none: a process of another user (setuid) refuses ours."""
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._pidfd)


def mark_this_process(worker_id: WorkerId) -> None:
    """Mark everything that this process starts from now on: programs by their environment, forks by a file."""
    os.environ[MARK] = str(worker_id)
    os.memfd_create(_mark(worker_id))  # stays open; a program does not inherit it, a fork does


class ThreadChildren:
    """The processes that the calling thread starts from now on: it may have served other attempts before."""

    def __init__(self) -> None:
        self._thread_id = threading.get_native_id()
        self._before = frozenset(_children_of_task(os.getpid(), self._thread_id))

    def find(self) -> list[Process]:
        """Return those still alive; from any thread."""
        pids = _children_of_task(os.getpid(), self._thread_id)
        return [held for pid in pids if pid not in self._before and (held := _hold(pid))]


def note_started(started: Any) -> Any:
    """Record a process that the current attempt started through asyncio."""
    processes = STARTED.get()
    if processes is not None:
        process = _hold(started[0].get_pid())
        if process is not None:
            processes.append(process)
    return started


async def end_all(processes: Iterable[Process], grace_s: float) -> None:
    """Terminate processes and their descendants; kill those still alive after `grace_s`. Closes all of them."""
    held = list(processes)
    for process in held:  # grows while it is walked
        held += [child for pid in _living_children(process) if (child := _hold(pid))]
    loop = asyncio.get_running_loop()
    kill_at = loop.time() + grace_s
    try:
        for process in held:
            process.send(signal.SIGTERM)
        while any(process.is_alive for process in held) and loop.time() < kill_at:  # noqa: ASYNC110 - many at once
            await asyncio.sleep(LOOK_EVERY_S)
    finally:  # a second cancellation cuts the grace short, not the end
        for process in held:
            process.send(signal.SIGKILL)
            process.close()


async def sweep(worker_id: WorkerId) -> None:
    """Kill what a dead worker's bodies have left on this host: its runs are about to resume."""
    count = await asyncio.to_thread(_kill_marked, worker_id)
    if count:
        LOG.warning("strays_killed", worker_id=str(worker_id), count=count)


def _kill_marked(worker_id: WorkerId) -> int:
    mark = _mark(worker_id)
    count = 0
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with suppress(OSError):  # gone meanwhile, or of another user
            if _has_mark(place, mark):
                os.kill(int(place.name), signal.SIGKILL)
                count += 1
    return count


def _mark(worker_id: WorkerId) -> str:
    return f"{MARK}={worker_id}"


def _has_mark(place: Path, mark: str) -> bool:
    """Say whether a process, by its directory in /proc, was started by such a worker."""
    if mark.encode() in (place / "environ").read_bytes().split(b"\0"):
        return True
    with os.scandir(place / "fd") as entries:
        links = (os.readlink(entry.path) for entry in entries)  # noqa: PTH115 - there may be thousands
        return any(link.startswith(f"/memfd:{mark} ") for link in links)


def _hold(pid: int | None) -> Process | None:
    if pid is None:  # over already
        return None
    try:
        return Process(pid)
    except ProcessLookupError:
        return None


def _living_children(process: Process) -> list[int]:
    return _children(process.pid) if process.is_alive else []


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += _children_of_task(pid, int(task.name))
    return found


def _children_of_task(pid: int, thread_id: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{thread_id}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]
