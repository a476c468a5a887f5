"""What a connection does for a caller that sends no more, on both event loops that a gateway runs on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvloop
from aiohttp import web

from gateway.app import bind
from gateway.front import answer_every_path
from gateway.load import Load
from gateway.protocol import GatewayRunner
from smithers.settings import Limits

Run = Callable[[Coroutine[Any, Any, None]], None]
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


class Site:
    """A server on one port, whose answers say how many came before and wait for a moment that the test chooses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = 0
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.set()
        body = await request.read()
        await self.may_answer.wait()
        self.answered += 1
        padding = "." * int(request.query.get("padding", 0))
        return web.Response(text=f"{padding}<{self.answered - 1}:{body.decode()}>")

    @asynccontextmanager
    async def sending(self, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
        """Send bytes, and no more."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        writer.write_eof()
        try:
            yield reader
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    with bind("127.0.0.1", 0) as listener:
        site = Site(listener.getsockname()[1])
        app = web.Application()
        answer_every_path(app, site.answer)
        runner = GatewayRunner(app, load=Load(Limits()), headers_s=20, request_s=20, shutdown_s=5)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        async with asyncio.timeout(20):
            yield site
        await runner.cleanup()


@both_loops
@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (GET, ["<0:>"]),
        (GET * 3, ["<0:>", "<1:>", "<2:>"]),
        (POST % 2 + b"{}", ["<0:{}>"]),
        (GET + b"GET /half HTTP/1.1\r\n", ["<0:>"]),
    ],
)
def test_whole_requests_are_answered_and_then_the_connection_is_closed(
    run: Run, sent: bytes, answers: list[str]
) -> None:
    async def main() -> None:
        async with serving() as site, site.sending(sent) as reader:
            await site.asked.wait()
            site.may_answer.set()
            _, *parts = (await reader.read()).decode().split("HTTP/1.1 200 OK")
            assert [part.split("\r\n\r\n")[1] for part in parts] == answers
            assert "Connection: close" in parts[-1]

    run(main())


@both_loops
def test_a_caller_that_ends_while_its_answer_is_sent_is_not_kept(run: Run) -> None:
    async def main() -> None:
        async with serving() as site:
            site.may_answer.set()
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(b"GET /a?padding=20000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write_eof()
            assert (await reader.read()).endswith(b"<0:>")
            writer.close()
            await writer.wait_closed()

    run(main())


@both_loops
@pytest.mark.parametrize("sent", [b"", b"GET /half HTTP/1.1\r\n", POST % 9 + b"{"])
def test_nothing_is_owed_for_less_than_a_request(run: Run, sent: bytes) -> None:
    async def main() -> None:
        async with serving() as site, site.sending(sent) as reader:
            assert await reader.read() == b""
            assert site.answered == 0

    run(main())


@both_loops
def test_a_drain_waits_for_the_answer_that_is_owed(run: Run) -> None:
    async def main() -> None:
        async with AsyncExitStack() as caller:
            async with serving() as site:
                reader = await caller.enter_async_context(site.sending(GET))
                await site.asked.wait()
                asyncio.get_running_loop().call_later(0.1, site.may_answer.set)
            assert (await reader.read()).endswith(b"<0:>")

    run(main())
