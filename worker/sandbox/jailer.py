"""The jailer: a process beside a child, with one thread, that forks the first process of each jail.

From its socket it reads a policy, and then requests, each with five descriptors. It builds the shared part of all jails once,
around itself; jails communicate through their own descriptors. It ends when the socket closes or the child dies, and all
jails end with it.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

from worker.sandbox import syscalls
from worker.sandbox.cgroups import Cgroups, NoCgroups, find_place
from worker.sandbox.init import Descriptors, run_first
from worker.sandbox.jail import Mould, make_mould, namespaces
from worker.sandbox.request import JailPolicy, JailRequest

MAX_REQUEST_BYTES: Final = 128 * 1024
DESCRIPTOR_COUNT: Final = 5
Asked = tuple[JailRequest, Descriptors]


class Jailer:
    """The mould of all jails, and the jails that have not ended."""

    def __init__(self, mould: Mould, cgroups: Cgroups | None) -> None:
        self._mould = mould
        self._cgroups = cgroups
        self._cgroup_of: dict[int, str] = {}  # by the pid of a jail's first process
        self._dying: list[str] = []

    def serve(self, requests: socket.socket, asked: Asked | None) -> None:
        """Serve requests in their order, until the other end closes."""
        woken = _wake_on_child_ends()
        poll = select.poll()
        poll.register(requests, select.POLLIN)
        poll.register(woken, select.POLLIN)
        while asked is not None:
            self._start(*asked)
            while requests.fileno() not in dict(poll.poll()):
                os.read(woken, 512)
                self._see_ends()
            asked = _receive(requests)

    def _start(self, request: JailRequest, descriptors: Descriptors) -> None:
        try:
            name, cgroup = self._make_cgroup()
            try:
                pid = syscalls.clone(namespaces(self._mould.policy), cgroup=cgroup)
            finally:
                if cgroup is not None:
                    os.close(cgroup)
        except OSError as error:
            _refuse(descriptors, str(error))
            return
        if pid == 0:
            run_first(request, descriptors, self._mould)
        descriptors.close()
        if name is not None:
            self._cgroup_of[pid] = name

    def _make_cgroup(self) -> tuple[str, int] | tuple[None, None]:
        if self._cgroups is None:
            return None, None
        return self._cgroups.make(self._mould.policy.limits)

    def _see_ends(self) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid in self._cgroup_of:
                    self._dying.append(self._cgroup_of.pop(pid))
        if self._cgroups is not None:
            self._dying = [name for name in self._dying if not self._cgroups.remove(name)]


def run(requests: socket.socket) -> None:
    """Build the mould when the first command comes, and serve; if that fails, report why to the callers."""
    policy = JailPolicy.from_json(requests.recv(MAX_REQUEST_BYTES))
    asked = _receive(requests)
    if asked is None:
        return
    cgroups, told = _find_cgroups()
    try:
        mould = make_mould(policy, cgroup_limits=told)
    except OSError as error:
        # Later callers find the socket closed and start another jailer, which may succeed.
        requests.shutdown(socket.SHUT_RD)
        while asked is not None:
            _refuse(asked[1], str(error))
            asked = _receive(requests)
        return
    gc.disable()
    gc.freeze()  # a fork then copies fewer pages: the collector does not write to existing objects
    Jailer(mould, cgroups).serve(requests, asked)


def _find_cgroups() -> tuple[Cgroups | None, str]:
    try:
        cgroups = Cgroups(find_place())
    except NoCgroups as reason:
        return None, f"no, because {reason}"
    except OSError as error:
        return None, f"no, because {error}"
    return cgroups, f"yes ({', '.join(cgroups.controllers)})"


def _receive(requests: socket.socket) -> Asked | None:
    text, numbers, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, DESCRIPTOR_COUNT)
    return (JailRequest.from_json(text), Descriptors(numbers)) if text else None


def _refuse(descriptors: Descriptors, reason: str) -> None:
    with suppress(BrokenPipeError):
        os.write(descriptors.status, json.dumps({"refused": reason}).encode())
    descriptors.close()


def _wake_on_child_ends() -> int:
    woken, waking = os.pipe()
    for number in (woken, waking):
        os.set_blocking(number, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def main() -> None:
    """Run a jailer; the socket is descriptor `argv[1]`."""
    parent = os.getppid()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if os.getuid() == 0:
        os.setgroups([])
    os.umask(0o022)
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        requests.set_inheritable(False)
        run(requests)
