"""Processes: what the kernel knows of one, and what another interpreter needs to import this package."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """A living process."""

    start: int  # in the kernel's ticks since the boot: differs if a pid is reused
    resident_bytes: int


def find_process(pid: int) -> ProcessReading | None:
    """Read a process from /proc; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain anything; field 3, the state, follows it.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return ProcessReading(int(fields[19]), int(fields[21]) * _PAGE_BYTES)


def age_s(start: int) -> float:
    """Say how long ago a process started."""
    up_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return max(0.0, up_s - start / _TICKS_PER_S)


def importing_this(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which `python -P` finds the packages that this process has."""
    packages = Path(__file__).parent.parent
    if packages.name in {"site-packages", "dist-packages"}:
        return dict(environ)
    # A checkout: `-P` keeps the current directory out of the path, so the directory of the packages must be named.
    path = os.pathsep.join(filter(None, [str(packages), environ.get("PYTHONPATH")]))
    return {**environ, "PYTHONPATH": path}
