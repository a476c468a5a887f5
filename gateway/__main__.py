"""`python -P -m gateway`: one of several HTTP processes on one socket; its settings are a line of JSON on stdin.

It reports on stdout that it listens, and drains at SIGTERM or when its stdin ends, i.e. when its parent is gone.
"""

import asyncio
import os
import signal
import socket
from typing import Final

import uvloop

import smithers.telemetry.without_rich  # noqa: F401 - first
from gateway.app import open_gateway
from gateway.load import raise_file_limit
from gateway.settings import HttpProcessSettings
from smithers.collector import settle_collector
from smithers.telemetry.logs import configure_logging
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet

STDIN: Final = 0
READY: Final = b"ready\n"


def main() -> None:
    """Read the settings and serve."""
    # Unbuffered: the pipe's end is the parent's life sign, so nothing after the line may be read here.
    with os.fdopen(STDIN, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:
        raise SystemExit("the process was started without settings: use `smithers gateway`")
    told = HttpProcessSettings.from_json(line)
    configure_logging(told.log_format, told.log_level)
    raise_file_limit()
    uvloop.run(_serve(told))


async def _serve(told: HttpProcessSettings) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(STDIN, _hear, loop, stopping)
    page = Sheet(told.sheet_fd).open_page(Role.GATEWAY)
    with socket.socket(fileno=told.listener_fd) as listener:
        async with open_gateway(
            told.gateway, listener=listener, page=page, otel=told.otel
        ) as gateway:
            settle_collector()
            _say_ready()
            await stopping.wait()
            try:
                async with asyncio.timeout(told.gateway.drain_timeout_s):
                    await gateway.drain()
            except TimeoutError:
                gateway.hurry()


def _hear(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    if not os.read(STDIN, 4096):
        loop.remove_reader(STDIN)
        stopping.set()


def _say_ready() -> None:
    os.write(1, READY)
    os.dup2(2, 1)  # nobody reads on: stray prints must not fill the pipe


if __name__ == "__main__":
    main()
