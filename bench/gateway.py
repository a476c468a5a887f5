"""A gateway in a process of its own: `python -m bench.gateway`, told by a line of JSON, says its port and serves.

It ends when its stdin does, so that a bench that was killed leaves nothing behind.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

import uvloop

import smithers.telemetry.without_rich  # noqa: F401 - first
from gateway.app import GatewaySettings, open_gateway
from smithers.collector import settle_collector
from smithers.telemetry.logs import configure_logging


def main() -> None:
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_stdin, daemon=True).start()
    configure_logging("json", "INFO")
    settings = GatewaySettings(
        dsn=order["dsn"],
        direct_dsn=order["dsn"],
        root_dir=Path(order["root_dir"]),
        port=order["port"],
    )
    uvloop.run(serve(settings, order.get("otel")))


async def serve(settings: GatewaySettings, otel: dict[str, str] | None) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with open_gateway(settings, otel=otel) as gateway:
        settle_collector()
        print(gateway.port, flush=True)
        await stopping.wait()


def end_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
