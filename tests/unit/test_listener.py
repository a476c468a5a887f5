"""A listener is closed without cutting off anybody who has connected, whatever the moment."""

import asyncio
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from aiohttp import web

from gateway import app
from gateway.app import Gateway
from gateway.front import Front
from gateway.load import Load
from gateway.protocol import GatewayRunner
from gateway.settings import GatewaySettings
from smithers.http_processes import HttpProcesses
from smithers.listener import accept_waiting, bind, end_handshakes
from smithers.settings import Limits

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SETTINGS = GatewaySettings(dsn="", direct_dsn="", root_dir=None)
LIMIT_S = 30.0
TURNS = range(
    6
)  # of a loop: several lie between the kernel's connection and the first byte that is read


def call(port: int) -> socket.socket:
    """Begin to connect; on the loopback that is all, if the listener takes part."""
    caller = socket.socket()
    caller.setblocking(False)
    caller.connect_ex(("127.0.0.1", port))
    return caller


def is_connected(caller: socket.socket) -> bool:
    return bool(select.select([], [caller], [], 0)[1])


async def test_after_the_handshakes_have_ended_nobody_connects_and_who_has_connected_is_heard() -> (
    None
):
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with call(port) as early:
            assert is_connected(early)
            await end_handshakes(listener)
            with call(port) as late:
                assert not is_connected(late)
                (accepted,) = accept_waiting(listener)
                with accepted:
                    early.send(b"heard")
                    loop = asyncio.get_running_loop()
                    assert await loop.sock_recv(accepted, 10) == b"heard"
                    await loop.sock_sendall(accepted, b"answered")
                    assert await loop.sock_recv(early, 10) == b"answered"


async def test_gateways_in_processes_of_their_own_get_no_more_callers_once_they_drain() -> None:
    no_program: Any = None
    with bind("127.0.0.1", 0) as listener:
        processes = HttpProcesses(listener, no_program, b"", 0)
        with listener.dup():  # a process that has not closed it yet
            await processes.drain()
            with call(processes.port) as late:
                assert not is_connected(late)


async def test_a_gateway_gets_no_more_callers_once_it_drains() -> None:
    async with answering(is_shared=False) as gateway:
        with gateway._listener.dup():
            await gateway.drain()
            with call(gateway.port) as late:
                assert not is_connected(late)


@asynccontextmanager
async def answering(*, is_shared: bool) -> AsyncIterator[Gateway]:
    """A gateway that answers everything at once."""

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="answered")

    load = Load(Limits())
    front: Any = SimpleNamespace(services=SimpleNamespace(load=load), drain=lambda: None)
    runner = GatewayRunner(answer, SETTINGS, load, drain_s=LIMIT_S)
    await runner.setup()
    with bind("127.0.0.1", 0) as listener:
        await runner.listen(listener)
        yield Gateway(runner, cast("Front", front), listener, is_shared=is_shared)
        await runner.cleanup()


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_who_connects_as_a_drain_begins_and_asks_a_moment_later_is_answered(
    *, is_shared: bool, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "GRACE_S", LIMIT_S)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LIMIT_S), answering(is_shared=is_shared) as gateway:
            with call(gateway.port) as caller:
                loop.call_later(0.1, caller.send, GET)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await gateway.drain()
                assert (await loop.sock_recv(caller, 1000)).startswith(b"HTTP/1.1 200 ")

    uvloop.run(scenario())
