"""What a gateway refuses when it has enough to do: before it is accepted, with a word when to come back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from smithers.settings import Limits
from tests.support.canary import TOKEN
from tests.support.gateway import (
    Answer,
    Client,
    Rows,
    make_root,
    parse_answer,
    running,
    settings_for,
    until,
)

START = {"workflowPath": "hello.py"}


@pytest.fixture
async def rows(database: str, tmp_path: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    rows = Rows(connection, make_root(tmp_path))
    await rows.describe()
    yield rows
    await connection.close()


@asynccontextmanager
async def limited(database: str, rows: Rows, **limits: int) -> AsyncIterator[Client]:
    async with running(settings_for(database, rows.root, limits=Limits(**limits))) as client:
        yield client


@asynccontextmanager
async def connected(
    client: Client,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Hold a connection that says nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


HEAD = f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"


@asynccontextmanager
async def slow_body(client: Client, size: int) -> AsyncIterator[None]:
    """Have a request under way whose body does not come to its end."""
    async with connected(client) as (_, writer):
        writer.write(f"{HEAD}Content-Length: {size}\r\n\r\n{{".encode())
        await writer.drain()
        yield


@asynccontextmanager
async def chunked_body(
    client: Client, start: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Have a request under way whose body comes in chunks, the first one now."""
    async with connected(client) as (reader, writer):
        chunk = f"{len(start):x}\r\n{start}\r\n"
        writer.write(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{chunk}".encode())
        await writer.drain()
        yield reader, writer


async def until_refused(client: Client, limit: str) -> Answer:
    """Ask until the limit is felt: what was sent to the gateway just now may not have come in."""
    async with asyncio.timeout(60):
        while (answer := await client.get("/v1/runs")).status == 200:
            await asyncio.sleep(0.01)
    assert_refused(answer, limit)
    return answer


def assert_refused(answer: Answer, limit: str, *, status: int = 503) -> None:
    code = {429: "TOO_MANY_REQUESTS", 503: "UNAVAILABLE"}[status]
    assert (answer.status, answer.code) == (status, code), answer
    assert answer.json["error"]["details"] == {"limit": limit}
    assert answer.headers["retry-after"] == "1"


async def until_served(client: Client) -> None:
    async with asyncio.timeout(60):
        while (await client.get("/v1/runs")).status != 200:
            await asyncio.sleep(0.01)


async def test_connections_beyond_the_limit_are_answered_once_and_closed(
    database: str, rows: Rows
) -> None:
    async with limited(database, rows, connections=3) as client:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(connected(client))
            answer = await until_refused(client, "connections")
            assert answer.headers["connection"] == "close"
            kept = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            assert b" 200 OK" in await client.raw(kept)  # and the gateway closes
            assert (await client.get("/metrics")).status == 200
        await until_served(client)


async def test_a_flood_of_connections_is_cut(database: str, rows: Rows) -> None:
    async with limited(database, rows, connections=2) as client, AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(connected(client))
        async with asyncio.timeout(60):
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
                try:
                    if await reader.read(1) == b"":
                        break
                except ConnectionError:
                    break
                finally:
                    writer.close()


async def test_requests_beyond_the_limit_are_refused_and_those_that_look_after_it_are_not(
    database: str, rows: Rows
) -> None:
    async with limited(database, rows, requests=2) as client:
        async with slow_body(client, 10), slow_body(client, 10):
            await until_refused(client, "requests")
            assert_refused(await client.post("/v1/runs/r/signals/s", {}), "requests")
            client.token = "wrong"
            assert (await client.get("/v1/runs")).code == "UNAUTHORIZED"
            client.token = TOKEN
            for path in ("/health", "/ready", "/metrics"):
                assert (await client.get(path)).status == 200, path
        await until_served(client)


@pytest.mark.parametrize("stays", [True, False])
async def test_bodies_whose_coding_breaks_off_are_refused_and_keep_nothing(
    database: str, rows: Rows, stays: bool
) -> None:
    async with limited(database, rows, requests=2) as client:
        for _ in range(3):
            async with chunked_body(client, "{}") as (reader, writer):
                await until(lambda: client.gateway._front.services.load._requests == 1)
                writer.write(b"zz\r\n")
                if not stays:
                    writer.write_eof()
                answer = parse_answer(await reader.read())
                assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
                assert answer.headers["connection"] == "close"
        load = client.gateway._front.services.load
        await until(lambda: not load._requests and not load.connections)


async def test_bodies_beyond_the_limit_are_refused_unread(database: str, rows: Rows) -> None:
    async with limited(database, rows, body_bytes=1_000) as client:
        async with slow_body(client, 900):
            async with asyncio.timeout(60):
                while (await client.post("/v1/runs", b" " * 200)).status != 503:
                    await asyncio.sleep(0.01)
            assert_refused(await client.post("/v1/runs", b" " * 200), "body-bytes")
            assert (await client.get("/v1/runs")).status == 200
            assert (await client.post("/v1/runs", b" " * 2_000_000)).status == 413
        async with asyncio.timeout(60):
            while (await client.post("/v1/runs", START)).status != 200:
                await asyncio.sleep(0.01)


async def test_bodies_in_chunks_take_what_has_come(database: str, rows: Rows) -> None:
    async with limited(database, rows, body_bytes=1_000) as client:
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(chunked_body(client, "{"))
            assert (await client.post("/v1/runs", START)).status == 200
            await stack.enter_async_context(chunked_body(client, "{" + " " * 900))
            async with asyncio.timeout(60):
                while (await client.post("/v1/runs", b" " * 200)).status != 503:
                    await asyncio.sleep(0.01)
            over = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nc8\r\n{' ' * 200}\r\n"
            assert_refused(parse_answer(await client.raw(over.encode())), "body-bytes")
        async with asyncio.timeout(60):
            while (await client.post("/v1/runs", b" " * 900)).status != 400:
                await asyncio.sleep(0.01)


async def test_streams_beyond_the_limits_are_refused_before_their_head(
    database: str, rows: Rows
) -> None:
    for run_id in ("a", "b", "c"):
        await rows.add_run(run_id)
    limits = {"requests": 1, "streams": 3, "streams_per_run": 2}
    async with limited(database, rows, **limits) as client:
        async with AsyncExitStack() as stack:
            for run_id in ("a", "a", "b"):
                stream = await stack.enter_async_context(client.stream(run_id))
                assert await stream.take(1) == [0]
                assert (await client.get("/v1/runs")).status == 200  # a stream is no such request
            assert_refused(await client.get("/v1/runs/c/events"), "streams")
        async with asyncio.timeout(60):
            while (answer := await client.get("/v1/runs/nothing/events")).status != 404:
                assert_refused(answer, "streams")
        async with client.stream("a") as one, client.stream("a") as two:
            assert [await one.take(1), await two.take(1)] == [[0], [0]]
            refused = await client.get("/v1/runs/a/events")
            assert_refused(refused, "streams-per-run", status=429)


async def test_no_more_runs_are_started_than_wait_for_workers(database: str, rows: Rows) -> None:
    async with limited(database, rows, queued_runs=3) as client:
        for _ in range(3):
            assert (await client.post("/v1/runs", START)).status == 200
        assert_refused(await client.post("/v1/runs", START), "queued-runs")
        assert await rows.connection.fetchval("SELECT count(*) FROM smithers.runs") == 3
        await rows.connection.execute("UPDATE smithers.runs SET status = 'running'")
        async with asyncio.timeout(60):
            while (answer := await client.post("/v1/runs", START)).status != 200:
                assert_refused(answer, "queued-runs")
                await asyncio.sleep(0.05)
