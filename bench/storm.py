"""Viewers that come, are cut at random bytes and come back, and readers that hardly read: a storm for event streams.

A viewer keeps a digest of all that it was given, so that it can be compared with what is stored; nothing is judged by the
server's own words. There is no library between the bytes and the viewer: it must cost less than the server does.
"""

import asyncio
import hashlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import asyncpg

SILENCE_S: Final = 30.0  # the server says something every 10 s
LOOK_EVERY_S: Final = 1.0
PAUSE_S: Final = 0.2
PATIENCE_S: Final = 900.0
TERMINAL: Final = (b'{"type":"RunFinished"', b'{"type":"RunFailed"', b'{"type":"RunCancelled"')
SMALL_WINDOW_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad it is."""

    viewers: int  # of each run, cut again and again
    mean_cut_bytes: int
    slow: int  # readers in all, of which half never read and half take a byte a second


@dataclass(kw_only=True)
class Storm:
    """What all viewers of one server have in common, and what became of them."""

    port: int
    chance: random.Random
    headers: Mapping[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # by how streams ended; and events
    faults: list[str] = field(default_factory=list)

    async def follow(self, run_id: str, *, mean_cut_bytes: int | None) -> "Viewer":
        """Follow a run to its end over as many streams as it takes, each cut after so many bytes in the mean.

        None: a steady viewer, who is never cut and notes how old each event is when it comes.
        """
        viewer = Viewer(run_id, lags_ms=[] if mean_cut_bytes is None else None)
        async with asyncio.timeout(PATIENCE_S):
            while not viewer.is_over:
                room = (
                    None if mean_cut_bytes is None else self.chance.randrange(1, 2 * mean_cut_bytes)
                )
                end = await self._stream(viewer, room)
                self.counts[end] += 1
                if end in {"broken", "refused"}:
                    await asyncio.sleep(self.chance.uniform(0, 2 * PAUSE_S))
        self.counts["events"] += viewer.last_seq + 1
        self.faults += viewer.faults
        return viewer

    async def rage(
        self, runs: list[str], weather: Weather
    ) -> tuple[list["Viewer"], list["Viewer"]]:
        """Have all viewers at once, until each has seen its run's end; return the steady ones, one a run, and the others."""
        cut_bytes = [None, *[weather.mean_cut_bytes] * weather.viewers]
        following = [self.follow(run, mean_cut_bytes=each) for each in cut_bytes for run in runs]
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as slow:
            for number in range(weather.slow):
                run = runs[number % len(runs)]
                slow.create_task(self.dawdle(run, bytes_per_s=number % 2, is_over=is_over))
            try:
                seen = await asyncio.gather(*following)
            finally:
                is_over.set()
        return seen[: len(runs)], seen[len(runs) :]

    async def _stream(self, viewer: "Viewer", room: int | None) -> str:
        """Read one stream, from where the viewer is; say how it ended."""
        query, resume = "", {}
        if viewer.last_seq >= 0 and self.chance.random() < 0.5:
            query = f"?afterSeq={viewer.last_seq}"
        elif viewer.last_seq >= 0:
            resume = {"Last-Event-ID": str(viewer.last_seq)}
        head = _head(f"/v1/runs/{viewer.run_id}/events{query}", {**self.headers, **resume})
        stream = _Stream(viewer, head, room)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: stream, "127.0.0.1", self.port)
        except OSError:
            return "broken"
        return await stream.until_ended()

    async def dawdle(self, run_id: str, *, bytes_per_s: int, is_over: asyncio.Event) -> None:
        """Open a stream and take so many bytes a second of it, 0: none at all, until told that it is over."""
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW_BYTES)
            await loop.sock_connect(connection, ("127.0.0.1", self.port))
            await loop.sock_sendall(connection, _head(f"/v1/runs/{run_id}/events", self.headers))
            while not is_over.is_set():
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await is_over.wait()
                except TimeoutError:
                    if bytes_per_s and not _read_some(connection, bytes_per_s):
                        return


@dataclass
class Viewer:
    """How far one reader is, and a digest of all that it was given."""

    run_id: str
    lags_ms: list[float] | None = None
    last_seq: int = -1
    is_over: bool = False
    faults: list[str] = field(default_factory=list)
    seen: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def see(self, block: bytes) -> None:
        """Take in an event of a stream; a comment or another field is none."""
        if not block.startswith(b"id: "):
            return
        head, _, payload = block.partition(b"\ndata: ")
        seq = int(head[4 : head.index(b"\n")])
        if seq != self.last_seq + 1:
            self.faults.append(f"{self.run_id}: {seq} after {self.last_seq}")
        self.last_seq = seq
        self.seen.update(payload)
        self.is_over = payload.startswith(TERMINAL)
        if self.lags_ms is not None:
            self.lags_ms.append(time.time() * 1000 - json.loads(payload)["timestampMs"])


class _Stream(asyncio.Protocol):
    """One connection with one stream on it, in HTTP/1.1's chunked coding."""

    def __init__(self, viewer: Viewer, head: bytes, room: int | None) -> None:
        self._viewer = viewer
        self._head = head
        self._room = room  # bytes until it is cut; None: never
        self._raw = b""
        self._chunk_left = 0
        self._line_end_left = 0  # behind a chunk
        self._event = b""  # what has come of one whose end has not
        self._has_body = False
        self._heard_at = time.monotonic()
        self._end = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport.write(self._head)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._finish("broken")

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        if self._room is not None:
            data = data[: self._room]
            self._room -= len(data)
        self._raw += data
        if self._has_body or self._take_head():
            self._take_chunks()
        if self._room == 0:
            self._finish("cut")

    async def until_ended(self) -> str:
        """Wait for the end, or for a silence that the server does not keep."""
        while not self._end.done():
            await asyncio.wait([self._end], timeout=SILENCE_S)
            if time.monotonic() - self._heard_at > SILENCE_S:
                self._finish("silent")
        how: str = self._end.result()
        return how

    def _take_head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        status = int(head[9:12])
        if status != 200:
            if status not in {429, 503}:
                self._viewer.faults.append(f"{self._viewer.run_id}: status {status}")
                self._viewer.is_over = True
            self._finish("refused")
        self._raw, self._has_body = rest, status == 200
        return self._has_body

    def _take_chunks(self) -> None:
        while self._raw:
            if self._line_end_left:
                skipped = min(self._line_end_left, len(self._raw))
                self._raw = self._raw[skipped:]
                self._line_end_left -= skipped
                continue
            if not self._chunk_left:
                size, found, rest = self._raw.partition(b"\r\n")
                if not found:
                    return
                if size == b"0":
                    self._finish("whole")
                    return
                self._raw, self._chunk_left = rest, int(size, 16)
            part = self._raw[: self._chunk_left]
            self._raw = self._raw[len(part) :]
            self._chunk_left -= len(part)
            self._line_end_left = 0 if self._chunk_left else 2
            *blocks, self._event = (self._event + part).split(b"\n\n")
            for block in blocks:
                self._viewer.see(block)

    def _finish(self, end: str) -> None:
        if not self._end.done():
            self._end.set_result(end)
            self._transport.abort()


async def read_digest(sql: asyncpg.Pool | asyncpg.Connection, run_id: str) -> str:
    """Read what a viewer of a whole run must have seen."""
    rows = await sql.fetch(
        "SELECT payload FROM smithers.events WHERE run_id = $1 ORDER BY seq", run_id
    )
    return hashlib.sha256("".join(row["payload"] for row in rows).encode()).hexdigest()


def _head(path: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()


def _read_some(connection: socket.socket, size: int) -> bool:
    """Read what is there, so much at most; False: the stream has ended."""
    try:
        return bool(connection.recv(size))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
