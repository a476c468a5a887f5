"""Several HTTP processes on one socket.

The socket is created here, before any of them, and inherited by all: whichever is free accepts the next connection, and no
connection that waits to be accepted is lost with a process. A process that dies is replaced.
"""

import socket
from typing import Self

from smithers.errors import SmithersError
from smithers.kept_process import KeptProcess, Program
from smithers.listener import end_handshakes


class StartFailed(SmithersError):
    """A process did not start."""


class HttpProcesses:
    """Gateways in processes of their own, on one socket: no connection that waits there is lost with a process."""

    def __init__(self, listener: socket.socket, program: Program, told: bytes, count: int) -> None:
        """`told`: a line for each of them; may hold secrets."""
        self._listener = listener
        self._told = told
        self._processes = [KeptProcess(program) for _ in range(count)]
        self.port: int = listener.getsockname()[1]

    async def __aenter__(self) -> Self:
        """Start them all; raises StartFailed if one does not start."""
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for process in self._processes:
            await process.end()

    async def drain(self) -> None:
        """Make all of them stop taking connections, end their streams, finish open requests, and exit."""
        await end_handshakes(self._listener)
        self._listener.close()
        for process in self._processes:
            process.drain()
        for process in self._processes:
            await process.until_ended()

    def hurry(self) -> None:
        """Stop waiting for open requests."""
        for process in self._processes:
            process.kill()

    async def _start(self) -> None:
        for process in self._processes:
            await process.start(self._told)
        for process in self._processes:
            if not await process.until_ready():
                raise StartFailed("an HTTP process did not start; the log says why")
