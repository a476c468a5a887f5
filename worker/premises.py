"""The process state that the bodies of a child share besides memory, restored after a body that changed it.

The directory, the umask, signals, the recursion limit, descriptors 0 to 2 and the standard streams belong to the process.
A thread of bodies has a directory and a umask of its own if the kernel allows that (a container's default seccomp
profile does not); all else is restored when an attempt ends. An eighth of the descriptors is reserved until a body has
used up the rest. State that an author may change on purpose (the environment, imported and patched modules,
the locale) is left alone.
"""

# What `signal` wraps: its getsignal tries an enum first, which raises for each function.
import _signal  # type: ignore[import-not-found]  # typeshed leaves it out
import ctypes
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from smithers.engine.rendering import Build, Guard

MAX_USED: Final = 0.8  # of the descriptors that this process may have
RESERVED: Final = 8  # one of so many is reserved

_CLONE_FS: Final = 0x200
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)

Result = TypeVar("Result")


class Premises:
    """The state of this process before any body has run; created in the main thread. A `with` block is an attempt."""

    def __init__(self, root_dir: Path) -> None:
        self._root_dir = str(root_dir)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = tuple(map(_signal.getsignal, _SIGNALS))
        self._recursion_limit = sys.getrecursionlimit()
        self._streams = sys.stdout, sys.stderr
        self._spares = {number: os.dup(number) for number in range(3)}
        self._descriptors = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - soft // RESERVED, hard))
        self._attempt_count = 0

    def __enter__(self) -> None:
        """Begin an attempt, beside others; in the main thread, like its end."""
        self._attempt_count += 1

    def __exit__(self, *_exc: object) -> None:
        self._attempt_count -= 1
        self._restore()

    def lacks_descriptors(self) -> bool:
        """Say whether bodies have left so many descriptors open that connections may soon find none."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            lowest = os.dup(self._spares[0])
        except OSError:
            return True
        os.close(lowest)
        return lowest > limit * MAX_USED

    def hear_error(self, error: BaseException) -> None:
        """Release the reserve for others, if a body found no free descriptor."""
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            with suppress(OSError, ValueError):  # a body may have changed the limits
                resource.setrlimit(resource.RLIMIT_NOFILE, self._descriptors)

    def enter_thread(self) -> None:
        """Give the calling thread a directory and a umask of its own, if permitted."""
        ctypes.CDLL(None).unshare(_CLONE_FS)  # refused: they remain the process's
        self._return()

    def call(self, body: Callable[[], Result]) -> Result:
        """Call a plain function in one of the threads of bodies."""
        try:
            return body()
        except BaseException as error:
            self.hear_error(error)  # at once: others are about to open files
            raise
        finally:
            self._return()

    def around(self, guard: Guard) -> Guard:
        """Do the same after a builder."""

        def call(build: Build) -> Any:
            try:
                return guard(build)
            finally:
                self._restore()

        return call

    def _restore(self) -> None:
        self._return()
        present = map(_signal.getsignal, _SIGNALS)
        for number, handler, ours in zip(_SIGNALS, present, self._handlers, strict=True):
            if handler != ours:
                signal.signal(number, ours)
        for descriptor, spare in self._spares.items():
            try:
                os.fstat(descriptor)
            except OSError:  # closed: the next connection would get it, and all printed text
                os.dup2(spare, descriptor)
        # Otherwise a running one may have set them temporarily.
        if not self._attempt_count:
            sys.stdout, sys.stderr = self._streams

    def _return(self) -> None:
        sys.setrecursionlimit(self._recursion_limit)
        os.umask(self._umask)
        try:  # noqa: SIM105 - after each attempt: `suppress` is three calls more
            os.chdir(self._root_dir)
        except OSError:  # the root may no longer exist
            pass
