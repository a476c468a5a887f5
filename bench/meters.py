"""What the server's processes used while a workload ran, part by part, and Postgres' backends by their names.

And what everybody else used: a figure taken beside a busy neighbour says so.
"""

import asyncio
import os
import resource
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

import asyncpg

from bench.processes import MemoryPeak, cpu_s, machine_busy_s

MIB = 1024 * 1024
QUIET_CORES = 0.1
LOOK_S = 1.0


class Measured(Protocol):
    """A server of several processes."""

    @property
    def dsn(self) -> str:
        """Its database's address."""

    def pids(self) -> dict[str, list[int]]:
        """All its processes, by part; those of Postgres, if it has one, are `postgres`."""


class Meter:
    """Processor time and memory of a server, between two moments, and processor time of others."""

    def __init__(self, server: Measured, *, with_memory: bool = False) -> None:
        """`with_memory`: look at it twice a second, which costs a little itself."""
        self._server = server
        self._peak = MemoryPeak(self._all_pids) if with_memory else None
        self._neighbours = Neighbours(server)
        self._pids: dict[str, list[int]] = {}
        self._before: dict[int, float] = {}
        self._began = 0.0
        self.used_s: dict[str, float] = {}  # by part
        self.backends_s: dict[str, float] = {}  # by application name
        self.took_s = 0.0

    def __enter__(self) -> Self:
        self._pids = self._server.pids()
        self._before = {pid: cpu_s(pid) for pid in self._all_pids()}
        self._began = time.monotonic()
        self._neighbours.__enter__()
        if self._peak is not None:
            self._peak.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._peak is not None:
            self._peak.__exit__()
        self.took_s = time.monotonic() - self._began
        self._neighbours.__exit__()
        self._pids = self._server.pids()
        used = {pid: cpu_s(pid) - self._before.get(pid, 0.0) for pid in self._all_pids()}
        self.used_s = {part: sum(used[pid] for pid in pids) for part, pids in self._pids.items()}
        if "postgres" in self._pids:
            self.backends_s = self._used_by_backends(used)

    def _used_by_backends(self, used: dict[int, float]) -> dict[str, float]:
        with ThreadPoolExecutor(1) as other:  # the caller may have a loop in this thread
            names = other.submit(asyncio.run, _backend_names(self._server.dsn)).result()
        backends: defaultdict[str, float] = defaultdict(float)
        for pid in self._pids["postgres"]:
            backends[names.get(pid, "postmaster")] += used[pid]
        return dict(sorted(backends.items(), key=lambda item: -item[1]))

    def per_run(self, run_count: int) -> dict[str, Any]:
        """Return milliseconds of processor time for each run, the peak of memory, and the cores that others used."""
        result = {
            "neighbours_cores": self._neighbours.cores,
            "cpu_ms_per_run": sum(self.used_s.values()) * 1000 / run_count,
            "cpu_ms_per_run_by_part": {
                part: used * 1000 / run_count for part, used in self.used_s.items()
            },
            "cpu_ms_per_run_by_backend": {
                name: used * 1000 / run_count
                for name, used in self.backends_s.items()
                if used >= 0.01
            },
        }
        if self._peak is not None:
            result["pss_peak_mib"] = self._peak.peak_bytes / MIB
        return result

    def _all_pids(self) -> list[int]:
        return [pid for pids in self._pids.values() for pid in pids]


async def _backend_names(dsn: str) -> dict[int, str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT pid, coalesce(nullif(application_name, ''), backend_type) AS name FROM pg_stat_activity"
        )
    finally:
        await connection.close()
    return {row["pid"]: row["name"] for row in rows}


class Neighbours:
    """How many cores were used by what is neither the server nor the bench, between two moments."""

    def __init__(self, server: Measured) -> None:
        self._server = server
        self.cores = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._before = self._others_s()
        return self

    def __exit__(self, *_exc: object) -> None:
        took_s = time.monotonic() - self._began
        self.cores = max(0.0, (self._others_s() - self._before) / took_s)

    def _others_s(self) -> float:
        server = sum(cpu_s(pid) for pids in self._server.pids().values() for pid in pids)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        bench = sum(os.times()[:2]) + children.ru_utime + children.ru_stime
        return machine_busy_s() - server - bench


def wait_for_quiet(server: Measured, patience_s: float) -> None:
    """Wait until others leave the processors alone for a second, or until patience has ended."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with Neighbours(server) as neighbours:
            time.sleep(LOOK_S)
        if neighbours.cores <= QUIET_CORES:
            return
