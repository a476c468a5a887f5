"""The jailer: a process beside a child, with one thread, that forks the first process of each jail.

It reads requests from its socket, each with five descriptors, and keeps nothing: jails are spoken to through their own
descriptors. It ends when the socket closes or the child dies, and with it end all jails.
"""

import gc
import json
import os
import signal
import socket
import sys
from typing import Final

from worker.sandbox import syscalls
from worker.sandbox.init import Descriptors, run_first
from worker.sandbox.jail import namespaces
from worker.sandbox.request import JailRequest

MAX_REQUEST_BYTES: Final = 128 * 1024
DESCRIPTOR_COUNT: Final = 5


def serve(requests: socket.socket) -> None:
    """Answer requests until the other end closes."""
    uid, gid = os.getuid(), os.getgid()
    while True:
        text, numbers, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, DESCRIPTOR_COUNT)
        if not text:
            return
        descriptors = Descriptors(numbers)
        try:
            _start(JailRequest.from_json(text), descriptors, uid, gid)
        finally:
            for number in numbers:
                os.close(number)


def _start(request: JailRequest, descriptors: Descriptors, uid: int, gid: int) -> None:
    flags = namespaces(allow_network=request.allow_network) if request.is_jailed else 0
    try:
        pid = syscalls.clone(flags)
    except OSError as error:
        os.write(descriptors.status, json.dumps({"refused": str(error)}).encode())
        return
    if pid == 0:
        run_first(request, descriptors, uid, gid)


def main() -> None:
    """Be a jailer; the socket is descriptor `argv[1]`."""
    parent = os.getppid()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # jails tell their ends themselves
    if os.getuid() == 0:
        os.setgroups([])
    os.umask(0o022)
    gc.disable()
    gc.freeze()  # a fork then copies fewer pages: the collector does not write to what is there
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        requests.set_inheritable(False)
        serve(requests)
