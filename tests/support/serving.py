"""A `smithers serve` process for tests: started, heard through its log, stopped; and what is left of one."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from smithers.client import Client
from tests.support import canary
from tests.support.data_dirs import scratch

TREE = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", "-m", "smithers.cli.main"]
LIMIT_S = 60.0
PRCTL = ctypes.CDLL(None).prctl  # found before a fork: afterwards only the call itself is safe
PR_SET_PDEATHSIG = 1
MARK = (
    "TEST_MARK"  # a variable that every process of a server inherits: its processes are found by it
)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without what would steer a command."""
    steering = ("SMITHERS_", "DATABASE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return {**kept, **canary.ENVIRONMENT, "PYTHONPATH": str(TREE), "NO_COLOR": "1", **extra}


def run_command(*arguments: str, cwd: Path = TREE, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `smithers` to its end."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        check=False,
        cwd=cwd,
        env=clean_environment(**env),
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=LIMIT_S,
    )
    canary.look_through(done.stdout + done.stderr, f"what `smithers {arguments[:1]}` printed")
    return done


class Talk:
    """What a process says on its stderr, and waiting for it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self.is_over = False
        self._changed = threading.Condition()
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                canary.look_through(line, "a line of a log")
                self._changed.notify_all()
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def close(self) -> None:
        """Read to the end: nobody holds the other side any more."""
        self._thread.join(LIMIT_S)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def until(self, is_it: Callable[[str], bool]) -> str:
        """Wait for a line, and return it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_over or any(map(is_it, self.lines)), timeout=LIMIT_S
            )
            for line in self.lines:
                if is_it(line):
                    return line
        raise AssertionError("it never said so:\n" + "\n".join(self.lines))


def is_event(name: str) -> Callable[[str], bool]:
    """Say whether a line of a JSON log is of this event."""
    return lambda line: line.startswith("{") and json.loads(line).get("event") == name


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the test run dies."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


class Serving:
    """A server process, or one of its halves."""

    def __init__(
        self, root: Path, data_dir: Path | None, *flags: str, command: str = "serve", **env: str
    ) -> None:
        self.mark = uuid4().hex
        self.data_dir = data_dir
        place = () if data_dir is None else ("--data-dir", str(data_dir))
        if command == "worker" and "--metrics-port" not in flags:
            flags = (*flags, "--metrics-port", "0")
        self.process = subprocess.Popen(
            [*COMMAND, command, "--root-dir", str(root), *place, *flags],
            env=clean_environment(**{"SMITHERS_LOG_FORMAT": "json", MARK: self.mark, **env}),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one call of the kernel; a test run that is killed leaves no server
        )
        self.talk = Talk(self.process)
        ready = "child_started" if command == "worker" else "server_started"
        self.started: dict[str, Any] = json.loads(self.talk.until(is_event(ready)))
        self.url: str = self.started.get("url", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self.talk.close()

    def client(self, token: str | None = None) -> Client:
        """Open a conversation."""
        return Client(self.url, token=token)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        self.talk.close()
        return code


@contextmanager
def serving(root: Path, *flags: str, **env: str) -> Iterator[Serving]:
    """Have a server with a data directory of its own on a free port."""
    with (
        scratch() as data_dir,
        Serving(root, data_dir, "--port", "0", "--workers", "2", *flags, **env) as server,
    ):
        yield server


def find_processes(text: str) -> list[int]:
    """Return the pids of living processes that have a text in their command line or environment."""
    needle = text.encode()
    found = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit() or int(place.name) == os.getpid():
            continue
        try:
            known = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            is_dead = (place / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if needle in known and not is_dead:
            found.append(int(place.name))
    return found


def find_modules(mark: str, module: str) -> list[int]:
    """Return the pids of a server's processes that were started as `python -m MODULE`, without their forks."""
    found = [pid for pid in find_processes(mark) if _is_module(pid, module)]
    return [pid for pid in found if _parent(pid) not in found]


def find_fork_server(mark: str) -> int:
    """Return the pid of the fork server of a server's only pool."""
    (pool,) = find_modules(mark, "worker")
    (pid,) = (pid for pid in find_processes(mark) if _parent(pid) == pool)
    return pid


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_module(pid: int, module: str) -> bool:
    try:
        return f"\0-m\0{module}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until_none(text: str) -> None:
    """Wait until there is no process with this text any more."""
    for pid in find_processes(text):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(descriptor) as file:
            wait_readable(file.fileno())
    assert find_processes(text) == []


def wait_readable(descriptor: int) -> None:
    """Wait for a pidfd: it is readable once its process has ended."""
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(LIMIT_S * 1000), "the process lives on"
