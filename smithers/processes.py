"""What the kernel says of a process: when it started, and how much memory it holds."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """A process that lives."""

    start: int  # in the kernel's ticks since the boot: a pid that was used again has another one
    resident_bytes: int


def find_process(pid: int) -> ProcessReading | None:
    """Look at a process; None where there is none any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; field 3, the state, comes right after it.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return ProcessReading(int(fields[19]), int(fields[21]) * _PAGE_BYTES)


def age_s(start: int) -> float:
    """Say how long ago a process started."""
    up_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return max(0.0, up_s - start / _TICKS_PER_S)
