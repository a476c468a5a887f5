"""What /proc says of processes: who is whose child, what it has used of the processors, what it holds of the memory."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY_S = 0.5


def descendants(root: int) -> list[int]:
    """List the children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        children.setdefault(parent(pid), []).append(pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += born
    return found


def children_of_pool(pool_pid: int) -> list[int]:
    """List the forks of a pool's fork server, which is the pool's child."""
    return [pid for pid in descendants(pool_pid) if parent(parent(pid)) == pool_pid]


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names, and many


def parent(pid: int) -> int:
    """Return who started a process; 0: it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended."""
    fields = _stat(pid)
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS_PER_S if fields else 0.0


def machine_busy_s() -> float:
    """Return the processor time that the whole machine has used, on all cores."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS_PER_S


def pss_bytes(pid: int) -> int:
    """Return a process's memory, what is shared counted in parts."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line[:4] == "Pss:")


def _stat(pid: int) -> list[str]:
    """Read the fields after the name, which may hold spaces; the first is the state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class MemoryPeak:
    """The highest sum of PSS that was seen while open."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(pss_bytes, self._pids())))
            if self._ending.wait(SAMPLE_EVERY_S):
                return
