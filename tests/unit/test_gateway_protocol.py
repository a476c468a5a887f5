"""What a connection does for callers that send no more, send no chunk, or do not read, on both of a gateway's event loops."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvloop
from aiohttp import web

from gateway.load import Load
from gateway.protocol import GatewayProtocol, GatewayRunner
from gateway.settings import GatewaySettings
from smithers.listener import bind
from smithers.settings import Limits
from tests.support.gateway import until

Run = Callable[[Coroutine[Any, Any, None]], None]
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
ASK = b"GET /a?padding=%d HTTP/1.1\r\nHost: x\r\n%b\r\n"
NO_CHUNK = b"zz\r\n"
UPGRADE = b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CONNECT = b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"
SETTINGS = GatewaySettings(
    dsn="", direct_dsn="", root_dir=None, headers_timeout_s=60, request_timeout_s=60
)


class Site:
    """A server on one port, whose answers say how many came before and wait for a moment that the test chooses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.load = Load(Limits())
        self.answered = 0
        self.connection: tuple[GatewayProtocol, asyncio.Transport]
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.set()
        assert isinstance(request.protocol, GatewayProtocol)
        assert request.transport is not None
        self.connection = (request.protocol, request.transport)
        try:
            body = b"" if request.path == "/unread" else await request.read()
        except web.RequestPayloadError as error:
            return web.Response(status=400, text=str(error))
        await self.may_answer.wait()
        self.answered += 1
        padding = "." * int(request.query.get("padding", 0))
        return web.Response(text=f"{padding}<{self.answered - 1}:{body.decode()}>")

    @property
    def unsent_bytes(self) -> int:
        """What of the answers on the newest connection no kernel has."""
        return self.connection[1].get_write_buffer_size() if self.answered else 0

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
        runner = GatewayRunner(site.answer, SETTINGS, site.load, drain_s=60)
        await runner.setup()
        await runner.listen(listener)
        try:
            async with asyncio.timeout(60):
                yield site
        finally:
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
def test_several_connections_are_accepted_in_a_turn_of_the_loop(run: Run) -> None:
    async def main() -> None:
        async with serving() as site, AsyncExitStack() as stack:
            for _ in range(64):
                stack.enter_context(socket.create_connection(("127.0.0.1", site.port)))
            turn_count = 0
            while site.load.connections < 64:
                turn_count += 1
                await asyncio.sleep(0)
            assert turn_count < 32

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


@both_loops
@pytest.mark.parametrize("stays", [True, False])
def test_a_body_that_breaks_off_within_its_coding_is_waited_for_no_longer(
    run: Run, stays: bool
) -> None:
    async def main() -> None:
        async with serving() as site:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(CHUNKED)
            await site.asked.wait()
            writer.write(NO_CHUNK)
            if not stays:
                writer.write_eof()
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
            await writer.wait_closed()

    run(main())


@both_loops
def test_what_follows_the_answer_to_half_a_body_is_no_news(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving() as site:
            site.may_answer.set()
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(CHUNKED.replace(b"/a", b"/unread"))
            assert b"<0:>" in await reader.readuntil(b">")
            writer.write(NO_CHUNK)
            await reader.read()
            writer.close()
            await writer.wait_closed()

    run(main())
    assert caplog.messages == []


@both_loops
@pytest.mark.parametrize("head", [GET.replace(b"\r\n\r\n", UPGRADE), GET + CONNECT])
def test_what_follows_a_request_for_another_protocol_is_not_waited_for(
    run: Run, head: bytes
) -> None:
    async def main() -> None:
        async with serving() as site:
            site.may_answer.set()
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(head + POST % 9 + b"{")
            assert b"Connection: close" in await reader.read()
            writer.close()
            await writer.wait_closed()

    run(main())


@both_loops
@pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("padding", [60_000, 9_000_000])
def test_a_caller_that_does_not_read_its_answers_is_cut(
    run: Run, padding: int, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.protocol.STALLED_S", 0.2)

    async def main() -> None:
        async with serving() as site:
            site.may_answer.set()
            with socket.create_connection(("127.0.0.1", site.port)) as caller:
                await fill(site, caller, padding)
                # Of large answers the first is still being written; the end of small ones is less than the transport
                # pauses for, so that the connection is closed with them in it.
                caller.sendall(ASK % (0, end))
                await until(lambda: not site.load.connections)

    run(main())


@both_loops
def test_a_caller_that_reads_slowly_is_not_cut(run: Run) -> None:
    async def main() -> None:
        async with serving() as site:
            site.may_answer.set()
            with socket.create_connection(("127.0.0.1", site.port)) as caller:
                await fill(site, caller, 60_000)
                caller.setblocking(False)
                left_bytes = site.unsent_bytes
                while site.unsent_bytes == left_bytes:
                    await asyncio.get_running_loop().sock_recv(caller, 65_536)
                protocol, transport = site.connection
                protocol._look_after_reader(transport, left_bytes)
                assert not transport.is_closing()
                protocol._look_after_reader(transport, site.unsent_bytes)
                assert transport.is_closing()

    run(main())


async def fill(site: Site, caller: socket.socket, padding: int) -> None:
    """Ask on a connection, reading nothing, until the kernel takes no more of the answers."""
    asked = 0
    while not site.unsent_bytes:
        caller.sendall(ASK % (padding, b""))
        asked += 1
        await until(lambda: site.answered == asked)  # noqa: B023 - awaited in its round
