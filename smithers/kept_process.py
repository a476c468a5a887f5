"""A supervised process: restarted until it is told to drain.

It is `python -P -m MODULE`, and reads its settings from one line on its stdin. The stdin is also its lifeline: while this
process holds the other end it serves, and when that is closed, by drain() or by a kill -9 of this process, it drains.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from smithers.telemetry.sheet import Counter

LOG: Final = structlog.get_logger(__name__)
BACK_OFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0)  # pause before a restart
# How long to wait for our own stop signal after the process exits cleanly: a supervisor usually signals both.
LEAVING_S: Final = 0.5
HEALTHY_S: Final = 30.0  # a process that lived this long resets the back-off


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program that is started."""

    module: str
    environment: Mapping[str, str]
    cwd: Path
    deaths: Counter
    handed_fds: tuple[int, ...] = ()  # descriptors that it inherits, under the same numbers
    says_ready: bool = False  # by a line on its stdout, which nobody reads afterwards


class KeptProcess:
    """One process, and after its death the next one."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._told = b""  # one line, without its end; may hold secrets
        self._process: asyncio.subprocess.Process | None = None
        self._draining = asyncio.Event()
        self._leaving = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Start the process before its settings are known: it loads its modules, and waits."""
        await self._spawn()

    async def start(self, told: bytes) -> None:
        """Send the process its settings, start it unless it runs, and supervise it."""
        self._told = told
        if self._process is None:
            await self._spawn()
        await self._tell()
        self._keeping = asyncio.create_task(self._keep(), name=f"keep-{self._program.module}")

    async def until_ready(self) -> bool:
        """Wait until the first process is ready; false: it died before."""
        assert self._process is not None
        assert self._process.stdout is not None
        return bool(await self._process.stdout.readline())

    def expect_end(self) -> None:
        """Do not restart a process that has drained by itself: its process group was told to stop, and so were we."""
        self._leaving.set()

    def drain(self) -> None:
        """Tell the process to finish its work and exit."""
        self._leaving.set()
        self._draining.set()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def until_ended(self) -> None:
        """Wait until the draining process has exited."""
        if self._keeping is not None:
            await asyncio.shield(self._keeping)
        elif self._process is not None:
            await self._process.wait()

    async def end(self) -> None:
        """Kill the process if it has not exited; nothing is left when this returns."""
        self.kill()
        await self.until_ended()

    def kill(self) -> None:
        """Kill the process at once, with its children."""
        self._draining.set()
        if self._process is not None and self._process.returncode is None:
            # Its children are in its process group, and the kernel ends them with it, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _keep(self) -> None:
        deaths = 0
        while self._process is not None:
            started_at = time.monotonic()
            exit_code = await self._process.wait()
            if self._draining.is_set() or (exit_code == 0 and await self._is_leaving()):
                return
            deaths = 0 if time.monotonic() - started_at > HEALTHY_S else deaths
            pause_s = BACK_OFF_S[min(deaths, len(BACK_OFF_S) - 1)]
            deaths += 1
            self._program.deaths.inc()
            LOG.error(
                "process_died",
                module=self._program.module,
                exit_code=exit_code,
                restart_in_s=pause_s,
            )
            if not await self._respawn(pause_s):
                return

    async def _is_leaving(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                await self._leaving.wait()
        return self._leaving.is_set()

    async def _respawn(self, pause_s: float) -> bool:
        """Restart the process after a pause, until it succeeds; false: a drain came first."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._draining.wait()
            if self._draining.is_set():
                return False
            try:
                await self._spawn()
                await self._tell()
            except OSError as error:  # out of memory or processes: that may pass
                LOG.warning("process_not_started", module=self._program.module, error=str(error))
                pause_s = BACK_OFF_S[-1]
            else:
                return True

    async def _spawn(self) -> None:
        program = self._program
        # A session of its own: Ctrl-C reaches only this process, which then stops the others in order.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            program.module,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if program.says_ready else None,
            cwd=program.cwd,
            env=program.environment,
            pass_fds=program.handed_fds,
            start_new_session=True,
        )
        if self._draining.is_set():
            # Told to drain while it was being started: it has nothing to finish yet.
            self.kill()

    async def _tell(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(self._told + b"\n")
        with contextlib.suppress(ConnectionError):  # it is dead already: _keep sees to that
            await self._process.stdin.drain()
