"""Split a command in two: one half works in the background, the other reports where.

It forks before anything is opened, and before there is a loop or a thread: the background half is the same command
with the same settings, without its terminal.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smithers.cli.console import CommandFailed, Exit, note
from smithers.store.embedded import state_dir

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """The background process, as the foreground half knows it."""

    url: str
    pid: int
    log: Path


def detach(run_id: str) -> Announce | Background:
    """Return in both halves: in the background a function to report the URL, in the foreground the reported values.

    The background's stdout and stderr go to the log. The foreground raises CommandFailed, with the background's exit
    code, if that ended before it reported a URL; its output until then is on stderr.
    """
    log = state_dir(os.environ) / "logs" / f"up-{run_id[:200]}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.touch(mode=0o600)
    before = log.stat().st_size
    hearing, telling = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(hearing)
        _leave_terminal(log)
        return lambda url: _tell(telling, url)
    os.close(telling)
    url = _hear(hearing, pid)
    if url:
        return Background(url=url, pid=pid, log=log)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    note(log.read_bytes()[before:].decode(errors="replace").rstrip())
    raise CommandFailed(
        "the run could not be started in the background",
        hint=f"see {log}",
        exit_code=max(code, Exit.FAILED),
    )


def _leave_terminal(log: Path) -> None:
    os.setsid()
    for number, place in ((0, os.devnull), (1, log), (2, log)):
        descriptor = os.open(place, os.O_RDWR | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)


def _tell(telling: int, url: str) -> None:
    os.write(telling, url.encode())
    os.close(telling)


def _hear(hearing: int, pid: int) -> str:
    """Wait for the URL; empty: the background ended without one. Ctrl-C meanwhile ends both halves."""
    try:
        with os.fdopen(hearing, encoding="utf-8") as pipe:
            return pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise
