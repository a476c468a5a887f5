"""What the kernel knows of a process: its identity across restarts, its end, and that it dies with its parent."""

import asyncio
import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from smithers.processes import find_process
from smithers.store.owners import ProcessIdentity

END_LIMIT_S: Final = 2.0
OOM_SCORE: Final = "500"  # of 1000: before processes larger by less than half of all memory

_PR_SET_PDEATHSIG: Final = 1


def identify(pid: int) -> ProcessIdentity | None:
    """Return a process's unique identity; None if it is gone."""
    found = find_process(pid)
    if found is None:
        return None
    return ProcessIdentity(
        boot_id=boot_id(), pid_namespace=pid_namespace(), pid=pid, process_start=str(found.start)
    )


def boot_id() -> str:
    """Return the id of this boot of this kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> str:
    """Return the id of this process's PID namespace."""
    return str(Path("/proc/self/ns/pid").readlink())


def is_here(process: ProcessIdentity) -> bool:
    """Say whether a pid of this identity is valid for this process."""
    return process.boot_id == boot_id() and process.pid_namespace == pid_namespace()


async def end(process: ProcessIdentity) -> None:
    """Kill a process of this host and wait for its end, two seconds at most; do nothing if it is gone.

    One of another user is left alone: it is fenced, and writes nothing.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # Checked after the descriptor was opened: it refers to this process.
        if identify(process.pid) != process:
            return
        with suppress(ProcessLookupError, PermissionError, TimeoutError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            async with asyncio.timeout(END_LIMIT_S):
                await until_readable(descriptor)
    finally:
        os.close(descriptor)


async def until_readable(descriptor: int) -> None:
    """Wait until a descriptor is readable: for a pidfd, the process's end. One waiter for each descriptor."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def volunteer_for_oom() -> None:
    """Make the kernel kill this process, and those that it starts, before others when memory is short."""
    with suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent dies; call from the main thread, at the very start."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died between the two calls
        os._exit(1)
