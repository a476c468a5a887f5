"""The first process of a jail: it starts the command, and its end ends everything that the command started.

It reads one descriptor that the child holds: `T` means to terminate everything (SIGTERM), anything else,
and its closing, to kill everything now. The child's death closes it too; at the jailer's death the kernel kills this
process. Without namespaces (tools declared unsafe) it is the subreaper, and kills orphans one by one. It drops its rights
and sets its own limits before it starts the command, which therefore never has more.
"""

import errno
import json
import os
import resource
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from worker.sandbox import syscalls
from worker.sandbox.jail import Mould, build_jail
from worker.sandbox.request import JailPolicy, JailRequest
from worker.sandbox.seccomp import install_filter

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KILL_ROUNDS: Final = 1000
_LOOK_EVERY_MS: Final = 500
_OOM_FIRST: Final = b"1000"
_MAX_NAME_CHARS: Final = 200  # of a program; a model may take a whole script for one
_MAX_REASON_CHARS: Final = 1000  # the report is JSON, and must fit into the kept output


class Descriptors:
    """The descriptors sent with a request, in this order."""

    def __init__(self, numbers: list[int]) -> None:
        self.stdin, self.stdout, self.stderr, self.status, self.control = numbers
        self.all = numbers

    def close(self) -> None:
        """Close them."""
        for number in self.all:
            os.close(number)


def run_first(request: JailRequest, descriptors: Descriptors, mould: Mould) -> None:
    """Run as the first process of a jail; never returns."""
    policy = mould.policy
    try:
        signal.set_wakeup_fd(-1)
        _die_first(mould.proc)
        if policy.is_jailed:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
            build_jail(mould)
        else:  # killed like that, it could not kill the others: it has its lifeline instead
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        _keep_only(descriptors.all)
        # The command has our uid: it must not inspect this process.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _confine(mould)
        if request.argv:
            _tell(descriptors.status, _supervise(request, descriptors, policy))
        else:
            _look_around(descriptors.stdout, mould)
            _tell(descriptors.status, {"exit_code": 0})
    except _NotStarted as error:
        _tell(descriptors.status, {"not_started": str(error)[:_MAX_REASON_CHARS]})
    except OSError as error:
        _tell(descriptors.status, {"refused": str(error)[:_MAX_REASON_CHARS]})
    finally:
        os._exit(0)


def _die_first(proc: int) -> None:
    """Make the kernel kill commands first when the host is short of memory: a preference, not a protection."""
    with suppress(OSError):
        number = os.open("self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(number, _OOM_FIRST)
        finally:
            os.close(number)


def _confine(mould: Mould) -> None:
    """Drop all rights and set the limits; child processes inherit both."""
    _limit(mould.policy)
    if mould.policy.is_jailed:
        syscalls.drop_capabilities()
        install_filter(mould.filter)
    else:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def _supervise(
    request: JailRequest, descriptors: Descriptors, policy: JailPolicy
) -> dict[str, Any]:
    """Run the command to its end; return the report."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    command = _start(request, descriptors, [f"{place}/bin" for place in policy.read_only])
    for number in (descriptors.stdin, descriptors.stdout, descriptors.stderr):
        os.close(number)
    told = _await_end(command, descriptors.control, woken, policy)
    if not policy.is_jailed:
        _kill_descendants(os.getpid())
    return told


def _await_end(command: int, control: int, woken: int, policy: JailPolicy) -> dict[str, Any]:
    """Wait until the command ends, the child wants it killed, or the disk fills; return the report."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        for number, _ in poll.poll(_LOOK_EVERY_MS):
            heard = os.read(number, 512)
            if number == control and heard != b"T":
                return {}
            if number == control:
                _tell_all_to_end()
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == command:
                    return {"exit_code": os.waitstatus_to_exitcode(ended[1])}
        if _is_full(policy):
            return {"stopped": "the filesystem of the root is nearly full"}


def _is_full(policy: JailPolicy) -> bool:
    space = os.statvfs(policy.root)
    # A filesystem that creates inodes on demand reports none.
    has_few_files = space.f_files != 0 and space.f_favail < policy.limits.free_files
    return has_few_files or space.f_bavail * space.f_frsize < policy.limits.free_bytes


def _tell_all_to_end() -> None:
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGTERM)
        return
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _kill_descendants(pid: int) -> None:
    """Kill until nothing is left: processes forked meanwhile are found in the next round."""
    for _ in range(_KILL_ROUNDS):
        living = _descendants(pid)
        for one in living:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not living:
            return


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{one}/task").iterdir():
                below = [int(word) for word in (task / "children").read_text().split()]
                found += below
                waiting += below
    return found


class _NotStarted(Exception):
    """The jail works, but the command or its directory does not exist."""


def _start(request: JailRequest, descriptors: Descriptors, programs: list[str]) -> int:
    """Start the command, in its directory and a session of its own; return its pid."""
    name = request.argv[0]
    path = ":".join([PATH, *programs])
    environment = {"PATH": path, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 - the jail's own
    try:
        os.chdir(request.cwd)
    except OSError as error:
        raise _NotStarted(f"there is no directory to work in: {error.strerror}") from error
    try:
        # Not a fork: the memory of this process, which the command never sees, need not be copied for it.
        return os.posix_spawn(
            _find_program(name, path),
            request.argv,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, descriptors.stdin, 0),
                (os.POSIX_SPAWN_DUP2, descriptors.stdout, 1),
                (os.POSIX_SPAWN_DUP2, descriptors.stderr, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGINT, signal.SIGPIPE],
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise _NotStarted(f"there is no command {name[:_MAX_NAME_CHARS]!r}") from error
        raise _NotStarted(
            f"{name[:_MAX_NAME_CHARS]!r} cannot be executed: {error.strerror}"
        ) from error
    except ValueError as error:  # a NUL in an argument
        raise _NotStarted(str(error)) from error


def _find_program(name: str, path: str) -> str:
    """Return the first executable program of this name, as execvp would choose it."""
    if "/" in name:
        return name
    places = [f"{directory}/{name}" for directory in path.split(":")]
    found = [place for place in places if os.path.isfile(place)]
    return next((place for place in found if os.access(place, os.X_OK)), (found or places)[-1])


def _limit(policy: JailPolicy) -> None:
    limits = policy.limits
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        _lower(kind, value)
    if policy.is_jailed:  # counted in this user namespace; outside of one it would count the host's
        _lower(resource.RLIMIT_NPROC, limits.processes)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _look_around(stdout: int, mould: Mould) -> None:
    """Report what can be reached from inside, instead of running a command."""
    closed = ("/", "/usr", "/etc", "/proc", *mould.policy.closed)
    seen: dict[str, Any] = {
        "uid": os.getuid(),
        "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()],
        "has_proc": Path("/proc/self").exists(),
        "filter": syscalls.prctl(syscalls.PR_GET_SECCOMP),
        "no_new_privileges": syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS),
        "writable": [path for path in closed if os.access(path, os.W_OK)],
        "interfaces": [name for _, name in socket.if_nameindex()] if _may_look() else [],
        "cgroup_limits": mould.cgroup_limits,
    }
    os.write(stdout, json.dumps(seen).encode())


def _may_look() -> bool:
    try:
        socket.socket(socket.AF_INET).close()
    except OSError:
        return False
    return True


def _keep_only(numbers: list[int]) -> None:
    low = 3
    for number in sorted(numbers):
        os.set_inheritable(number, False)
        if low < number:
            os.closerange(low, number)
        low = number + 1
    os.closerange(low, 1 << 16)


def _tell(status: int, told: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        os.write(status, json.dumps(told).encode())
