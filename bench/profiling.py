"""Where the time goes: py-spy on a process while it works, summed up by function."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

RATE_HZ = 200
SHOWN = 25
# Threads that wait in a lock or a read without Python's knowing; py-spy takes some of them for busy.
WAITING = ("_worker (concurrent/futures/thread.py", "end_with_stdin (")


class Profile:
    """py-spy on one process for some seconds."""

    def __init__(self, name: str, pid: int, *, seconds: int, directory: Path) -> None:
        self.name = name
        self._file = directory / f"{name}.txt"
        py_spy = Path(sys.executable).with_name("py-spy")
        self._process = subprocess.Popen(
            [
                *(str(py_spy), "record", "--format", "raw", "--rate", str(RATE_HZ)),
                *("--duration", str(seconds), "--pid", str(pid), "--output", str(self._file)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def table(self) -> str:
        """Wait for its end and return the functions that cost most."""
        _, complaints = self._process.communicate(timeout=120)
        if not self._file.exists():
            return f"{self.name}: py-spy failed: {complaints.decode()[-500:]}"
        own: Counter[str] = Counter()
        cumulative: Counter[str] = Counter()
        for line in self._file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            if stack.rpartition(";")[2].startswith(WAITING):
                continue
            frames = [_function(frame) for frame in stack.split(";")]
            own[frames[-1]] += int(count)
            for frame in set(frames):
                cumulative[frame] += int(count)
        total = own.total() or 1
        return (
            f"== {self.name}: {total} samples at {RATE_HZ} Hz\n"
            + _top("self", own, total)
            + _top("cumulative", cumulative, total)
        )


def _function(frame: str) -> str:
    """Leave the line number out: a function is one thing."""
    name, _, place = frame.rpartition(" (")
    return f"{name} ({place.rstrip(')').rpartition(':')[0]})" if ":" in place else frame


def _top(title: str, counts: Counter[str], total: int) -> str:
    lines = [f"{100 * count / total:6.1f} %  {name}" for name, count in counts.most_common(SHOWN)]
    return f"-- {title}\n" + "\n".join(lines) + "\n"
