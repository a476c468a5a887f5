"""The gateway as a process: it says when it listens, and ends as it should when it is told to."""

import asyncio
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gateway import app
from gateway.app import open_gateway
from gateway.protocol import ACCEPTED_COUNT
from smithers.listener import bind
from tests.support.canary import TOKEN
from tests.support.gateway import LIMIT_S, Client, Port, Rows, parse_answer, settings_for, until
from tests.support.serving import clean_environment

LISTENING = re.compile(r"http://127\.0\.0\.1:(\d+)")


@asynccontextmanager
async def serving(
    database: str, root: Path, *, drain_s: float = 10
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "smithers.cli.main", "gateway", "--port", "0",
        "--root-dir", str(root), "--drain-timeout", str(drain_s),
        env=clean_environment(DATABASE_URL=database, SMITHERS_API_KEY=TOKEN),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        while (said := LISTENING.search((await process.stderr.readline()).decode())) is None:
            assert process.returncode is None
        port = int(said[1])
        yield process, Client(Port(port))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_sigterm_ends_streams_after_a_whole_event_and_then_the_process(
    database: str, rows: Rows
) -> None:
    await rows.add_run("r", events=5)
    async with serving(database, rows.root) as (process, client), client.stream("r") as stream:
        assert await stream.take(5) == list(range(5))
        process.send_signal(signal.SIGTERM)
        assert await stream.rest() == []
        assert await process.wait() == 0


@pytest.mark.parametrize("is_impatient", [True, False])
async def test_what_does_not_end_is_cut_by_a_second_signal_or_the_drain_timeout(
    database: str, rows: Rows, is_impatient: bool
) -> None:
    async with serving(database, rows.root, drain_s=60 if is_impatient else 0.5) as (
        process,
        client,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(f"{head}Content-Length: 10\r\n\r\n".encode())  # and the body never comes
        await writer.drain()
        assert (await client.get("/health")).status == 200
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if is_impatient:
            await until_refused(client)
            process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert time.monotonic() - began < 50
        writer.close()


async def until_refused(client: Client) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await client.get("/health")
            except (OSError, IndexError):  # refused, reset, or closed without an answer
                return


async def test_a_gateway_that_is_killed_loses_no_run_that_it_answered(
    database: str, rows: Rows
) -> None:
    await rows.describe()
    answered: list[str] = []
    async with serving(database, rows.root) as (process, client):

        async def start() -> None:
            while True:
                try:
                    answer = await client.post("/v1/runs", {"workflowPath": "hello.py"})
                    answered.append(answer.json["runId"])
                # Refused, reset, or cut before the answer.
                except (OSError, IndexError, ValueError):
                    return

        starting = [asyncio.create_task(start()) for _ in range(8)]
        while len(answered) < 100:
            await asyncio.sleep(0)
        process.kill()
        await asyncio.gather(*starting)
    kept = await rows.connection.fetch(
        """SELECT r.run_id FROM smithers.runs r JOIN smithers.run_requests USING (run_id)
        JOIN smithers.events e ON e.run_id = r.run_id AND e.seq = 0"""
    )
    count = await rows.connection.fetchval("SELECT count(*) FROM smithers.runs")
    assert {row["run_id"] for row in kept} >= set(answered)
    assert len(kept) == count


async def test_a_drain_answers_what_the_kernel_has_connected_and_nobody_has_accepted(
    database: str, rows: Rows
) -> None:
    loop, callers = asyncio.get_running_loop(), [socket.socket() for _ in range(3)]
    async with open_gateway(settings_for(database, rows.root)) as gateway:
        for caller in callers:  # without an await: the gateway's loop, which is this one, sees none
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", gateway.port))
            caller.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await gateway.drain()
        for caller in callers:
            with caller:
                assert (await loop.sock_recv(caller, 1000)).startswith(b"HTTP/1.1 200 ")


async def test_a_connection_made_while_a_drain_of_a_shared_socket_stops_accepting_is_answered(
    database: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, stop = asyncio.get_running_loop(), web.SockSite.stop
    callers: list[socket.socket] = []

    async def stop_and_connect(site: web.SockSite) -> None:
        await stop(site)
        caller = socket.create_connection(("127.0.0.1", gateway.port))
        caller.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        caller.setblocking(False)
        callers.append(caller)

    monkeypatch.setattr(web.SockSite, "stop", stop_and_connect)
    settings = settings_for(database, rows.root)
    async with open_gateway(settings, listener=bind("127.0.0.1", 0)) as gateway:
        await gateway.drain()
        assert len(callers) == ACCEPTED_COUNT
        for caller in callers:
            with caller:
                assert (await loop.sock_recv(caller, 1000)).startswith(b"HTTP/1.1 200 ")


async def test_a_drain_still_answers_on_a_connection_that_is_kept(
    database: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "GRACE_S", LIMIT_S)
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with open_gateway(settings_for(database, rows.root)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request)
        answer = parse_answer(await reader.readuntil(b"}"))
        assert "connection" not in answer.headers
        draining = asyncio.create_task(gateway.drain())
        await until(lambda: gateway._front.services.readiness.is_draining)
        writer.write(request)
        answer = parse_answer(await reader.read())
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        writer.close()
        draining.cancel()


async def test_a_drain_waits_for_nobody_where_no_connection_is_kept(
    database: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "GRACE_S", 10 * LIMIT_S)
    async with asyncio.timeout(LIMIT_S), open_gateway(settings_for(database, rows.root)) as gateway:
        assert (await Client(gateway).get("/health")).status == 200
        await gateway.drain()
