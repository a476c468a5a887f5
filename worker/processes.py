"""What the kernel knows of a process: who it is across restarts, that it has ended, and that it dies with its parent."""

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
OOM_SCORE: Final = "500"  # of 1000: before whatever is less than half of all memory larger

_PR_SET_PDEATHSIG: Final = 1


def identify(pid: int) -> ProcessIdentity | None:
    """Return what tells this process from every other; None where it is gone."""
    found = find_process(pid)
    if found is None:
        return None
    return ProcessIdentity(
        boot_id=boot_id(), pid_namespace=pid_namespace(), pid=pid, process_start=str(found.start)
    )


def boot_id() -> str:
    """Name this boot of this kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> str:
    """Name the namespace in which this process's pids mean something."""
    return str(Path("/proc/self/ns/pid").readlink())


def is_here(process: ProcessIdentity) -> bool:
    """Say whether a pid of this identity means something to this process."""
    return process.boot_id == boot_id() and process.pid_namespace == pid_namespace()


async def end(process: ProcessIdentity) -> None:
    """Kill a process of this host and wait for its end, two seconds at most; nothing where it is gone.

    One of another account is left alone: it is fenced, and writes nothing.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # Looked at after the descriptor was opened: this is the process that the descriptor is of.
        if identify(process.pid) != process:
            return
        with suppress(ProcessLookupError, PermissionError, TimeoutError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            async with asyncio.timeout(END_LIMIT_S):
                await until_readable(descriptor)
    finally:
        os.close(descriptor)


async def until_readable(descriptor: int) -> None:
    """Wait until there is something to read: of a process, its end. One waits for each descriptor."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def volunteer_for_oom() -> None:
    """Have the kernel take this process, and what it starts, before others of the host when memory is short."""
    with suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; from the main thread, at the very start."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died between the two calls
        os._exit(1)
