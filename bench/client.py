"""A lean HTTP client: one protocol object a connection, no library between it and the bytes.

What it costs itself is on the same two cores as the server, so it does as little as it can: it looks for marks in what
has come and reads events only where a workload asks for them afterwards.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Self, cast

REQUEST_LIMIT_S = 30.0
STREAM_LIMIT_S = 300.0
END_OF_CHUNKS = b"0\r\n\r\n"
END_MARK = b'{"type":"RunFinished"'
OVERLAP = 40  # a mark may be cut in two by the network


class Unexpected(Exception):
    """The server answered with something that the workload does not allow."""


@dataclass
class Stream:
    """What was seen of a run's event stream; times are of time.perf_counter."""

    first_at: float | None = None
    end_at: float | None = None
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)  # wall time, bytes


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[None] | None = None
        self._stream: Stream | None = None
        self._is_keeping = False
        self._first_event = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server has gone"))

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            return  # who asked has gone, as a viewer that was cancelled
        looked_to = max(0, len(self._buffer) - OVERLAP)
        self._buffer += data
        if self._stream is None:
            if self._is_whole():
                self._done()
            return
        self._see(self._stream, data, looked_to)
        if self._buffer.endswith(END_OF_CHUNKS):
            self._done()

    async def call(
        self, method: str, path: str, body: Any = None, *, limit_s: float = REQUEST_LIMIT_S
    ) -> Any:
        """Send a request and return its JSON; anything but a success is Unexpected."""
        payload = b"" if body is None else json.dumps(body).encode()
        async with asyncio.timeout(limit_s):
            await self._exchange(method, path, payload)
        status, content = int(self._buffer[9:12]), bytes(self._buffer).partition(b"\r\n\r\n")[2]
        if status not in {200, 202}:
            raise Unexpected(f"{method} {path}: {status} {content[:300]!r}")
        return json.loads(content)

    async def follow(self, run_id: str, *, is_keeping: bool = False) -> Stream:
        """Follow a run to its end; `is_keeping`: with all that came and when."""
        stream = self._stream = Stream()
        self._is_keeping = is_keeping
        self._first_event.clear()
        try:
            async with asyncio.timeout(STREAM_LIMIT_S):
                await self._exchange("GET", f"/v1/runs/{run_id}/events", b"")
        finally:
            self._stream = None
        if stream.end_at is None:
            raise Unexpected(f"run {run_id} did not finish: {bytes(self._buffer[-600:])!r}")
        return stream

    async def until_first_event(self) -> None:
        """Wait until the stream that is followed has begun."""
        async with asyncio.timeout(REQUEST_LIMIT_S):
            await self._first_event.wait()

    async def _exchange(self, method: str, path: str, payload: bytes) -> None:
        if self._transport is None:
            await self.__aenter__()
        assert self._transport is not None
        self._buffer.clear()
        self._answer = asyncio.get_running_loop().create_future()
        kind = "Content-Type: application/json\r\n" if payload else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        self._transport.write(head.encode() + payload)
        await self._answer

    def _is_whole(self) -> bool:
        head, found, content = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        return len(content) >= int(length)

    def _see(self, stream: Stream, data: bytes, looked_to: int) -> None:
        if self._is_keeping:
            stream.arrivals.append((time.time(), data))
        if stream.first_at is None and self._buffer.find(b"data: ", looked_to) >= 0:
            stream.first_at = time.perf_counter()
            self._first_event.set()
        if stream.end_at is None and self._buffer.find(END_MARK, looked_to) >= 0:
            stream.end_at = time.perf_counter()

    def _done(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


async def start_run(connection: Connection, flow: str, given: dict[str, Any] | None = None) -> str:
    """Start a run of a workflow in bench/flows and return its id."""
    answer = await connection.call(
        "POST", "/v1/runs", {"workflowPath": f"{flow}.py", "input": given or {}}
    )
    run_id: str = answer["runId"]
    return run_id
