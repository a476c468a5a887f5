"""The smallest front that a rival can have: Restate's own three calls, in aiohttp, so that all are spoken to alike.

    POST /WORKFLOW/ID/run/send                 start a run; the body is its input
    GET  /restate/workflow/WORKFLOW/ID/attach  answer when it has finished, with what it made
    POST /gate/ID/approve                      say yes

It runs in a rival's own environment, and imports nothing of this repository.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import uvloop
from aiohttp import web


class Rival(Protocol):
    """What a front does its calls with."""

    async def start(self, workflow: str, run_id: str, given: Any) -> None:
        """Start a run, durably."""

    async def end(self, workflow: str, run_id: str) -> Any:
        """Wait for a run's end."""

    async def approve(self, run_id: str) -> None:
        """Say yes to a run of `gate`."""


def begin() -> dict[str, Any]:
    """Read what this process is told, one line of JSON, and end with stdin from now on."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return order


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)


def serve(
    port: int,
    opening: Callable[[], AbstractAsyncContextManager[Rival]],
    *,
    is_shared: bool = False,
) -> None:
    """Serve and say the port; `is_shared`: other processes listen there, too."""

    async def main() -> None:
        async with opening() as rival:
            app = web.Application()
            app.add_routes(_routes(rival))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, reuse_port=is_shared).start()
            print(runner.addresses[0][1], flush=True)
            await asyncio.Event().wait()

    uvloop.run(main())


def _routes(rival: Rival) -> list[web.RouteDef]:
    def answering(call: Callable[[web.Request], Awaitable[Any]]) -> Any:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(await call(request))

        return answer

    async def start(request: web.Request) -> None:
        at = request.match_info
        await rival.start(at["workflow"], at["run_id"], await request.json())

    async def end(request: web.Request) -> Any:
        return await rival.end(request.match_info["workflow"], request.match_info["run_id"])

    async def approve(request: web.Request) -> None:
        await rival.approve(request.match_info["run_id"])

    return [
        web.post("/gate/{run_id}/approve", answering(approve)),
        web.post("/{workflow}/{run_id}/run/send", answering(start)),
        web.get("/restate/workflow/{workflow}/{run_id}/attach", answering(end)),
    ]
