"""W4's raw limit: a bare aiohttp server that writes the same line to all its viewers at a steady pace.

`python -m bench.fan_out VIEWERS COUNT PAUSE_S` says its port, begins when all have come, and ends with the last line.
"""

import asyncio
import sys
import time

import uvloop
from aiohttp import web

from gateway.load import raise_file_limit

EVENT = '{{"type":"{type}","runId":"r","timestampMs":{now_ms},"correlation":{{"runId":"r"}}}}'


class FanOut:
    """Its viewers, and the clock that writes to them."""

    def __init__(self, viewer_count: int, count: int, pause_s: float) -> None:
        self._viewer_count = viewer_count
        self._count = count
        self._pause_s = pause_s
        self._viewers: list[web.StreamResponse] = []
        self._all_here = asyncio.Event()
        self.ended = asyncio.Event()

    async def view(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self._viewers.append(response)
        if len(self._viewers) == self._viewer_count:
            self._all_here.set()
        await self.ended.wait()
        return response

    async def write(self) -> None:
        await self._all_here.wait()
        for number in range(self._count + 1):
            await asyncio.sleep(self._pause_s)
            kind = "NodeFinished" if number < self._count else "RunFinished"
            event = EVENT.format(type=kind, now_ms=time.time_ns() // 1_000_000)
            line = f"id: {number}\nevent: smithers\ndata: {event}\n\n".encode()
            for viewer in self._viewers:
                await viewer.write(line)
        self.ended.set()


async def serve(viewer_count: int, count: int, pause_s: float) -> None:
    raise_file_limit()
    fan = FanOut(viewer_count, count, pause_s)
    app = web.Application()
    app.router.add_get("/{path:.*}", fan.view)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    async with asyncio.timeout(300):
        await fan.write()
    await runner.cleanup()


def main() -> None:
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))


if __name__ == "__main__":
    main()
