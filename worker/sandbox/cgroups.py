"""Limit the processes of a command together, if a cgroup (version 2) is delegated to the worker.

Each command starts in a child of the delegated cgroup, which is removed when the command has ended. The delegated cgroup
is the worker's own or the one above it, since a cgroup may have processes or children
with limits, not both (systemd: `Delegate=yes` with `DelegateSubgroup=`). No process is moved, and root uses only a cgroup
that was delegated to it. If there is none, each process has its own limits, and the reason is reported.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker.sandbox import syscalls
from worker.sandbox.request import JailLimits

NEEDED: Final = ("memory", "pids")
WANTED: Final = ("cpu", *NEEDED)
_PREFIX: Final = "smithers-"
_PERIOD_US: Final = 100_000
_OWN_PROCESSES: Final = 1  # the first process of the jail
_MOUNT_ROOT, _MOUNT_POINT = 3, 4  # fields of /proc/self/mountinfo


class NoCgroups(Exception):
    """No cgroup was delegated; the text says why."""


class Cgroups:
    """A delegated cgroup, and the children that this process has made in it."""

    def __init__(self, place: Path) -> None:
        """Use a cgroup that find_place has returned; raise NoCgroups if no process can be started in a child of it."""
        self._directory = os.open(place, os.O_DIRECTORY | os.O_CLOEXEC)
        self.controllers = _read(place / "cgroup.subtree_control")
        self._count = 0
        self._clear(place)
        try:
            self._try()
        except OSError as error:
            os.close(self._directory)
            raise NoCgroups(f"{place}: {error.strerror}") from error

    def make(self, limits: JailLimits) -> tuple[str, int]:
        """Create a child for a command; return its name, and a descriptor for clone. Raises OSError."""
        self._count += 1
        name = f"{_PREFIX}{os.getpid()}-{self._count}"
        os.mkdir(name, dir_fd=self._directory)
        child = os.open(name, os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            for file, value in self._settings(limits):
                _write(file, value, child)
            with suppress(FileNotFoundError):  # a kernel without swap
                _write("memory.swap.max", "0", child)
        except OSError:
            os.close(child)
            os.rmdir(name, dir_fd=self._directory)
            raise
        return name, child

    def remove(self, name: str) -> bool:
        """Kill what is left in a child and remove it; False: it is dying, try again."""
        with suppress(FileNotFoundError):
            _write(f"{name}/cgroup.kill", "1", self._directory)
        try:
            os.rmdir(name, dir_fd=self._directory)
        except OSError as error:
            return error.errno != errno.EBUSY
        return True

    def _settings(self, limits: JailLimits) -> list[tuple[str, str]]:
        settings = [
            ("memory.max", str(limits.memory_bytes)),
            ("memory.oom.group", "1"),  # a partly killed command is useless
            ("pids.max", str(limits.processes + _OWN_PROCESSES)),
        ]
        if "cpu" in self.controllers:
            settings.append(("cpu.max", f"{limits.cpus * _PERIOD_US} {_PERIOD_US}"))
        return settings

    def _try(self) -> None:
        """Start a process in a child: the kernel, and outer filters, must allow that too."""
        name, child = self.make(JailLimits())
        try:
            pid = syscalls.clone(0, cgroup=child)
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        finally:
            os.close(child)
            self.remove(name)

    def _clear(self, place: Path) -> None:
        """Remove what dead jailers have left behind."""
        for left in place.glob(f"{_PREFIX}*-*"):
            pid = left.name.removeprefix(_PREFIX).partition("-")[0]
            if not Path(f"/proc/{pid}").exists():
                self.remove(left.name)


def find_place(*, proc: Path = Path("/proc"), uid: int | None = None) -> Path:
    """Find the cgroup for whose children we may set limits; raise NoCgroups if there is none."""
    top, own = _find_own(proc)
    place = top / own.lstrip("/")
    reasons = []
    for candidate in (place, place.parent) if place != top else (place,):
        reason = _prepare(candidate, top, os.getuid() if uid is None else uid)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise NoCgroups("; ".join(reasons))


def _find_own(proc: Path) -> tuple[Path, str]:
    """Return where version 2 is mounted, and this process's cgroup below it."""
    mounts = [line.split() for line in (proc / "self/mountinfo").read_text().splitlines()]
    tops = [fields for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    for line in (proc / "self/cgroup").read_text().splitlines():
        if line.startswith("0::") and tops:
            root = tops[0][_MOUNT_ROOT].rstrip("/")
            return Path(tops[0][_MOUNT_POINT]), line.removeprefix("0::").removeprefix(root)
    raise NoCgroups("no cgroups of version 2 are mounted")


def _prepare(place: Path, top: Path, uid: int) -> str | None:
    """Enable controllers for a cgroup's children; return what prevents it."""
    if not os.access(place, os.W_OK) or not os.access(place / "cgroup.procs", os.W_OK):
        return "not writable"
    if uid == 0 and place != top and not _is_delegated(place):
        return "not delegated"
    given = _read(place / "cgroup.controllers")
    if missing := [name for name in NEEDED if name not in given]:
        return f"no controller for {' and '.join(missing)}"
    wanted = [name for name in WANTED if name in given]
    if set(wanted) <= set(_read(place / "cgroup.subtree_control")):
        return None
    try:
        (place / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
    except OSError as error:
        return "has processes of its own" if error.errno == errno.EBUSY else str(error.strerror)
    return None


def _is_delegated(place: Path) -> bool:
    """Say whether systemd has delegated this cgroup: needed only for root."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            return os.getxattr(place, name) == b"1"
    return False


def _read(file: Path) -> list[str]:
    return file.read_text().split()


def _write(path: str, text: str, directory: int) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(number, text.encode())
    finally:
        os.close(number)
