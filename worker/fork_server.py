"""The fork server that children are forked from: it has loaded everything that a child needs and done nothing else.

A fork of it takes milliseconds where a new interpreter takes half a second, and shares its memory. Forking is sound
only there: that process has one thread, no event loop, no connection, and never loads workflow code. It
is itself a fork of the pool, made before the pool has any of these, so the pool shares that memory too.

It ends with the pool, and the processes forked from it end with it. If it ends first, so does the pool: with it all of
the pool's children have ended, and another pool is started.
"""

import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import Any, Final

LOST: Final = 256  # in place of an exit code, which is 255 at most: the fork server ended first
MAX_HANDED: Final = 16
_FORKING: Final = multiprocessing.get_context("fork")
_NUMBER: Final = struct.Struct("=q")


class Fork:
    """A process that the fork server has started."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self._status = status  # says the exit code
        self._exit_code: int | None = None

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable when the process has ended."""
        return self._status.fileno()

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        ended, _, _ = select.select([self._status], [], [], 0)
        if not ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the process's end, blocking; return its exit code, which is negative for a signal."""
        if self._exit_code is None:
            try:
                self._exit_code = _receive_number(self._status)
            except (OSError, EOFError):
                self._exit_code = LOST
        return self._exit_code

    def close(self) -> None:
        """Forget the process."""
        self._status.close()


class ForkServer:
    """The pool's end of it."""

    def __init__(self, process: ForkProcess, channel: socket.socket) -> None:
        self._process = process
        self._channel = channel

    def fork(self, target: Callable[..., None], *given: Any, handed: Sequence[int] = ()) -> Fork:
        """Call a function in a new process, with pickled arguments followed by duplicates of descriptors.

        Raises OSError, EOFError if it cannot be forked; SystemExit if the fork server has ended.
        """
        order = pickle.dumps((target, given))
        status, its_status = socket.socketpair()
        try:
            with its_status:
                self._ask([its_status.fileno(), *handed])
            status.sendall(_NUMBER.pack(len(order)) + order)
            return Fork(_receive_number(status), status)
        except BaseException:
            status.close()
            raise

    def close(self) -> None:
        """End the fork server."""
        self._channel.close()
        self._process.join()

    def _ask(self, descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self._channel, [b"fork"], descriptors)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise SystemExit("the fork server has ended") from error


def open_fork_server() -> ForkServer:
    """Fork the fork server from this process, which has one thread, no connection, and has loaded what the forks need."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = _FORKING.Process(target=_serve, args=(ours, its), name="fork-server")
    process.start()
    its.close()
    return ForkServer(process, ours)


def _serve(pools: socket.socket, channel: socket.socket) -> None:
    pools.close()
    # A service manager sends these to the whole group: the pool handles them, and children die with this process.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        _Service(channel).serve()
    finally:
        os._exit(0)  # waits for no fork


class _Service:
    """The fork server itself."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        # With its status, by pidfd: what a fork starts inherits its sentinel, which would outlive it.
        self._forks: dict[int, tuple[ForkProcess, socket.socket]] = {}

    def serve(self) -> None:
        """Fork when asked, and report the ends of the forks, until the pool ends."""
        while True:
            for ready in wait([self._channel, *self._forks]):
                if isinstance(ready, int):
                    os.close(ready)
                    self._report_end(*self._forks.pop(ready))
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        """Fork once; false: the pool has ended."""
        message, descriptors, _, _ = socket.recv_fds(
            self._channel, len(b"fork"), MAX_HANDED, socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return False
        status, handed = socket.socket(fileno=descriptors[0]), descriptors[1:]
        process = _FORKING.Process(target=self._become, args=(status, handed))
        try:
            process.start()
        except OSError:  # too many processes: the pool reads no pid, and tries again
            traceback.print_exc()
            status.close()
        else:
            assert process.pid is not None
            self._forks[os.pidfd_open(process.pid)] = process, status
            _send_number(status, process.pid)
        for descriptor in handed:
            os.close(descriptor)
        return True

    def _report_end(self, process: ForkProcess, status: socket.socket) -> None:
        process.join()
        assert process.exitcode is not None
        _send_number(status, process.exitcode)
        process.close()
        status.close()

    def _become(self, status: socket.socket, handed: Sequence[int]) -> None:
        """Do in a fork what it is for."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._channel.close()
        for pidfd, (_, others_status) in self._forks.items():
            os.close(pidfd)
            others_status.close()
        with status, status.makefile("rb") as orders:
            (size,) = _NUMBER.unpack(orders.read(_NUMBER.size))
            target, given = pickle.loads(orders.read(size))  # noqa: S301 - the pool's
        target(*given, *handed)


def _send_number(receiver: socket.socket, number: int) -> None:
    with suppress(OSError):  # nobody wants it any more
        receiver.sendall(_NUMBER.pack(number))


def _receive_number(sender: socket.socket) -> int:
    received = sender.recv(_NUMBER.size, socket.MSG_WAITALL)
    if len(received) < _NUMBER.size:
        raise EOFError("the fork server has forked no process, or has ended")
    number: int
    (number,) = _NUMBER.unpack(received)
    return number
