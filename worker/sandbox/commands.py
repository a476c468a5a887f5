"""Run commands in jails, from a child's loop; or without one, if tools were declared unsafe.

Every command has an end: its own, its time limit's, or its attempt's. However it ends, none of its processes is alive when
`run` returns: they are told to end (SIGTERM), and a second later killed with their namespace.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from smithers.tools.errors import SandboxUnavailable, ToolError, ToolTimedOut
from smithers.tools.toolbox import Captured, Command, CommandEnd
from worker.sandbox.jailer import MAX_REQUEST_BYTES
from worker.sandbox.own_code import find_closed, find_exposure
from worker.sandbox.request import JailLimits, JailPolicy, JailRequest

TERM_GRACE_S: Final = 1.0
KILL_GRACE_S: Final = 2.0
MAX_COMMANDS: Final = 64  # at a time; a child has only so many descriptors
MAX_PRINTED_BYTES: Final = 64 << 20  # of a stream, past what is kept
STATUS_BYTES: Final = 16_384
SEND_PAUSE_S: Final = 0.005
SEND_PATIENCE_S: Final = 5.0
CHUNK_BYTES: Final = 65_536
ADVICE: Final = (
    "commands cannot be jailed here: {reason}. See docs/sandbox.md for what the host or the container must grant, "
    "or start the server with --unsafe-tools to run them without a jail"
)
# If they were writable, they would no longer be the system's.
UNFIT_ROOTS: Final = frozenset(
    {"/", "/bin", "/dev", "/etc", "/lib", "/proc", "/sbin", "/sys", "/usr"}
)
PROGRAM: Final = (
    "import sys; sys.path.append(sys.argv[2]); from worker.sandbox.jailer import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What commands may touch; only the worker decides this."""

    root: Path
    is_jailed: bool = True
    allow_network: bool = False
    limits: JailLimits = field(default_factory=JailLimits)


class Commands:
    """A jailer, and the commands that it started for this child."""

    def __init__(self, policy: SandboxPolicy) -> None:
        self._policy = policy
        self._exposure = find_exposure(policy.root) if policy.is_jailed else None
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._room = asyncio.Semaphore(MAX_COMMANDS)

    def close(self) -> None:
        """End the jailer, and with it all jailed processes."""
        if self._requests is not None:
            self._requests.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._requests = self._process = None

    async def run(self, command: Command) -> CommandEnd:
        """Run a command to its end.

        Raises SandboxUnavailable if no jail is possible; ToolTimedOut; ToolError for a program that cannot be
        started, and for one that was stopped because the disk is nearly full. A program that prints without end
        is ended by SIGPIPE.
        """
        async with self._room:
            running = _Running(command)
            try:
                await self._send(self._request(command), running)
            except BaseException:
                running.close()
                raise
            finally:
                running.close_far_ends()
            try:
                return await _follow(running, command)
            finally:
                running.close()

    async def look_around(self) -> dict[str, Any]:
        """Report what can be reached from inside a jail; raises SandboxUnavailable."""
        looking = Command(argv=(), timeout_s=30, max_output_bytes=CHUNK_BYTES)
        end = await self.run(looking)
        found: dict[str, Any] = json.loads(end.stdout.content)
        return found

    def _request(self, command: Command) -> bytes:
        root = str(self._policy.root)
        if root in UNFIT_ROOTS:
            raise SandboxUnavailable(ADVICE.format(reason=f"the root directory is {root}"))
        if self._exposure is not None:
            raise SandboxUnavailable(ADVICE.format(reason=self._exposure))
        cwd = f"{root}/{command.cwd}" if command.cwd else root
        request = JailRequest(argv=command.argv, cwd=cwd).to_json()
        if len(request) > MAX_REQUEST_BYTES:
            raise ToolError(f"a command has at most {MAX_REQUEST_BYTES} bytes, escapes included")
        return request

    async def _send(self, request: bytes, running: "_Running") -> None:
        """Send a command to the jailer; to a new one if the last has died."""
        is_new = False
        give_up_at = time.monotonic() + SEND_PATIENCE_S
        while True:
            if self._requests is None or self._process is None or self._process.poll() is not None:
                if is_new:
                    raise SandboxUnavailable(ADVICE.format(reason="the jailer does not live"))
                self.close()
                self._start_jailer()
                is_new = True
                continue
            try:
                socket.send_fds(self._requests, [request], running.far_ends)
            except BlockingIOError:  # it is busy
                await asyncio.sleep(SEND_PAUSE_S)
            except (BrokenPipeError, ConnectionResetError):
                self.close()
            except OSError as error:
                # The kernel counts this user's descriptors in transit over all its processes, jailed ones too.
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > give_up_at:
                    raise ToolError(f"a command cannot be started: {error.strerror}") from error
                await asyncio.sleep(SEND_PAUSE_S)
            else:
                return

    def _start_jailer(self) -> None:
        # In the loop's own thread, which lives as long as the process: the kernel ties the jailer to the thread that made it.
        requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        packages = Path(__file__).parents[2]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, fixed words
                [sys.executable, "-I", "-S", "-c", PROGRAM, str(theirs.fileno()), str(packages)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={},
            )
        policy = JailPolicy(
            root=str(self._policy.root),
            read_only=tuple(sorted({sys.base_prefix, sys.prefix})),
            closed=tuple(str(place) for place in find_closed(self._policy.root)),
            is_jailed=self._policy.is_jailed,
            allow_network=self._policy.allow_network,
            limits=self._policy.limits,
        )
        requests.setblocking(False)
        requests.send(policy.to_json())
        self._requests = requests


class _Running:
    """One command's descriptors on this side: its output, its report, and its lifeline."""

    def __init__(self, command: Command) -> None:
        self.far_ends: list[int] = []
        self._control = -1
        self._captures: list[_Capture] = []
        try:
            self.far_ends.append(_stdin_of(command.stdin))
            self.stdout = self._capture(command.max_output_bytes)
            self.stderr = self._capture(command.max_output_bytes)
            self.status = self._capture(STATUS_BYTES)
            far, self._control = os.pipe()
            self.far_ends.append(far)
        except OSError as error:
            self.close_far_ends()
            self.close()
            raise ToolError(f"no descriptors left for a command: {error.strerror}") from error

    @property
    def captures(self) -> "list[_Capture]":
        """The captured streams."""
        return self._captures

    def tell_to_end(self) -> None:
        """Send SIGTERM to all of its processes."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, b"T")

    def kill(self) -> None:
        """Close the lifeline: the first process of the jail ends, and the kernel kills the others."""
        control, self._control = self._control, -1
        if control >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(control, b"K")  # a body that forks may hold a copy of this end
            os.close(control)

    def close_far_ends(self) -> None:
        """Close the ends that the jailer has copies of: otherwise their end would not be seen."""
        for number in self.far_ends:
            os.close(number)
        self.far_ends = []

    def close(self) -> None:
        """Close all descriptors."""
        self.kill()
        for capture in self._captures:
            capture.close()

    def _capture(self, limit_bytes: int) -> "_Capture":
        near, far = os.pipe()
        self.far_ends.append(far)
        capture = _Capture(near, limit_bytes)
        self._captures.append(capture)
        return capture


class _Capture:
    """Output from a pipe; the beginning is kept, the rest is counted."""

    def __init__(self, number: int, limit_bytes: int) -> None:
        os.set_blocking(number, False)
        self._number = number
        self._limit_bytes = limit_bytes
        self._content = bytearray()
        self._loop = asyncio.get_running_loop()
        self.count = 0
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(number, self._read)

    @property
    def captured(self) -> Captured:
        """The output kept."""
        return Captured(content=bytes(self._content), is_truncated=self.count > len(self._content))

    def close(self) -> None:
        """Stop reading."""
        number, self._number = self._number, -1
        if number >= 0:
            self._loop.remove_reader(number)
            os.close(number)
        if not self.ended.done():
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            chunk = os.read(self._number, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self.close()
            return
        self.count += len(chunk)
        self._content += chunk[: self._limit_bytes - len(self._content)]
        if self.count > self._limit_bytes + MAX_PRINTED_BYTES:
            self.close()


async def _follow(running: _Running, command: Command) -> CommandEnd:
    """Wait for a command's end, or force it."""
    ends = [capture.ended for capture in running.captures]
    try:
        async with asyncio.timeout(command.timeout_s):
            await asyncio.wait([running.status.ended, running.stdout.ended, running.stderr.ended])
    except TimeoutError:
        await _stop(running, ends)
        raise ToolTimedOut(f"{command.argv[0]} took longer than {command.timeout_s:g} s") from None
    except asyncio.CancelledError:
        # The attempt ends: nothing of it may survive, so the cancellation waits up to a second.
        await _stop(running, ends)
        raise
    return _judge(running)


async def _stop(running: _Running, ends: list[asyncio.Future[None]]) -> None:
    """End all of a command's processes; a cancellation meanwhile is raised when that is done."""
    running.tell_to_end()
    was_cancelled = await _wait_through(ends, TERM_GRACE_S)
    running.kill()
    if await _wait_through(ends, KILL_GRACE_S) or was_cancelled:
        raise asyncio.CancelledError


async def _wait_through(ends: list[asyncio.Future[None]], limit_s: float) -> bool:
    """Wait for the ends, despite cancellations; say whether there was one."""
    waiting = asyncio.ensure_future(asyncio.wait(ends, timeout=limit_s))
    was_cancelled = False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            was_cancelled = True
    return was_cancelled


def _judge(running: _Running) -> CommandEnd:
    text = running.status.captured.content
    told: dict[str, Any] = json.loads(text) if text else {}
    if "refused" in told:
        raise SandboxUnavailable(ADVICE.format(reason=told["refused"]))
    if "not_started" in told:
        raise ToolError(told["not_started"])
    if "stopped" in told:
        raise ToolError(f"the command was stopped: {told['stopped']}")
    if "exit_code" not in told:
        raise ToolError(
            "the command was killed from outside, with all that it had started: memory may be short"
        )
    return CommandEnd(
        exit_code=told["exit_code"],
        stdout=running.stdout.captured,
        stderr=running.stderr.captured,
    )


def _stdin_of(content: bytes) -> int:
    """Return a descriptor from which this can be read, then end of file."""
    if not content:
        return os.open(os.devnull, os.O_RDONLY)
    number = os.memfd_create("stdin")
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(content)
    os.lseek(number, 0, os.SEEK_SET)
    return number
