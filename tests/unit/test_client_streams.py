"""How both clients read a run's events from a server whose streams are cut, late, or end too soon."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from smithers.client import (
    AsyncClient,
    Client,
    Event,
    Run,
    ServerUnreachable,
    UnexpectedAnswer,
)
from smithers.client import streaming as client_streaming

Read = Callable[[str, str], list[Event]]  # from a URL, by a method's name
CUT = object()  # the end of a stream that was not its end
AHEAD_MS = 4_102_444_800_000  # a database's clock is not the client's, and not its gateway's
RUN = {"runId": "r", "workflowName": "w", "status": "running"}


def write_event(seq: int) -> bytes:
    data = json.dumps({"type": "NodeStarted", "runId": "r", "timestampMs": AHEAD_MS})
    return f"id: {seq}\nevent: smithers\ndata: {data}\n\n".encode()


class ScriptedServer(ThreadingHTTPServer):
    """Answers each request for a stream by the next line of a script.

    A line is a tuple of events by their numbers and CUT, a status, or the bytes of a stream; `kind` is the streams' type.
    """

    daemon_threads = True
    request_queue_size = 256
    kind = "text/event-stream"

    def __init__(self, last_seq: int, *script: tuple[Any, ...] | int | bytes) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedAnswers)
        self.run = {**RUN, "lastSeq": last_seq}
        self.script = list(script)
        self.asked: list[str] = []
        self.on_stream: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class ScriptedAnswers(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        if "/events" not in self.path:
            self._answer(200, json.dumps(self.server.run).encode())
            return
        self.server.asked.append(self.path.partition("afterSeq=")[2])
        self.server.on_stream()
        line = self.server.script.pop(0)
        if isinstance(line, int):
            self._answer(line, b"{}" if line >= 400 else b"")
            return
        if isinstance(line, bytes):
            self._answer(200, line, self.server.kind)
            return
        body = b"retry: 1000\n\n" + b"".join(write_event(seq) for seq in line if seq is not CUT)
        self._answer(200, body, self.server.kind, missing_bytes=100 if CUT in line else 0)

    def _answer(
        self, status: int, body: bytes, kind: str = "application/json", *, missing_bytes: int = 0
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body) + missing_bytes))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(last_seq: int, *script: Any) -> ScriptedServer:
        servers.append(ScriptedServer(last_seq, *script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def read_plainly(url: str, method: str) -> list[Event]:
    with Client(url) as client:
        return list(getattr(client, method)("r"))


def read_in_a_coroutine(url: str, method: str) -> list[Event]:
    async def read() -> list[Event]:
        async with AsyncClient(url) as client:
            return [event async for event in getattr(client, method)("r")]

    return asyncio.run(read())


both = pytest.mark.parametrize("read", [read_plainly, read_in_a_coroutine])


@both
def test_a_list_goes_on_where_it_was_cut(serve: Callable[..., ScriptedServer], read: Read) -> None:
    server = serve(3, (0, CUT), (1, 2), (3, 4))  # cut, ended by a drain, live beyond the end
    assert [event.seq for event in read(server.url, "list_events")] == [0, 1, 2, 3]
    assert server.asked == ["-1", "0", "2"]


@both
def test_a_list_of_a_run_without_news_asks_for_no_stream(
    serve: Callable[..., ScriptedServer], read: Read
) -> None:
    server = serve(-1)
    assert read(server.url, "list_events") == []
    assert server.asked == []


@both
def test_a_list_that_ends_too_soon_is_an_error(
    serve: Callable[..., ScriptedServer], read: Read
) -> None:
    server = serve(3, (0, 1), 204)
    with pytest.raises(UnexpectedAnswer, match="ended after event 1, and its last one is 3"):
        read(server.url, "list_events")


@both
def test_a_stream_whose_heads_come_is_taken_up_again_however_long_it_is_silent(
    serve: Callable[..., ScriptedServer], read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says nothing of a run that waits, and each connection is cut in the end."""
    server = serve(0, (CUT,), (CUT,), (CUT,), (0,), 204)
    now = [0.0]
    monkeypatch.setattr(client_streaming, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait_for_hours() -> None:
        now[0] += 7200

    server.on_stream = wait_for_hours
    assert [event.seq for event in read(server.url, "stream")] == [0]


@both
def test_a_server_that_only_fails_is_given_up(
    serve: Callable[..., ScriptedServer], read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(0, 503, 503)
    now = [0.0]
    monkeypatch.setattr(client_streaming, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait_for_a_minute() -> None:
        now[0] += client_streaming.GIVE_UP_S + 1

    server.on_stream = wait_for_a_minute
    with pytest.raises(ServerUnreachable):
        read(server.url, "stream")


@both
def test_a_server_on_this_host_is_asked_without_a_proxy(
    serve: Callable[..., ScriptedServer], read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(0, (0,))
    assert [event.seq for event in read(server.url, "list_events")] == [0]


@both
@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", ""])
def test_an_answer_that_is_no_stream_is_not_asked_for_again(
    serve: Callable[..., ScriptedServer], read: Read, kind: str
) -> None:
    server = serve(0, b"<html>Sign in</html>")
    server.kind = kind
    with pytest.raises(UnexpectedAnswer, match="not an event stream"):
        read(server.url, "stream")
    assert server.asked == ["-1"]


@both
def test_a_stream_that_cannot_be_read_is_not_asked_for_again(
    serve: Callable[..., ScriptedServer], read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_streaming, "MAX_EVENT_BYTES", 1_000)
    for broken in (b"id: x\ndata: {}\n\n", b"data: " + b"a" * 2_000 + b"\n\n"):
        server = serve(0, broken)
        with pytest.raises(UnexpectedAnswer):
            read(server.url, "stream")
        assert server.asked == ["-1"]


def wait_plainly(url: str, count: int) -> list[Run]:
    with Client(url) as client, ThreadPoolExecutor(count) as threads:
        return list(threads.map(client.wait, ["r"] * count))


def wait_in_coroutines(url: str, count: int) -> list[Run]:
    async def wait() -> list[Run]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.wait("r") for _ in range(count)))

    return asyncio.run(wait())


@pytest.mark.parametrize("wait", [wait_plainly, wait_in_coroutines])
def test_one_client_follows_more_runs_at_once_than_a_pool_of_connections_usually_has(
    serve: Callable[..., ScriptedServer], wait: Callable[[str, int], list[Run]]
) -> None:
    count = 120
    server = serve(0, *[(0,)] * count, *[204] * count)
    # Nobody's stream begins before all have asked for theirs.
    everybody = threading.Barrier(count)
    server.on_stream = lambda: everybody.wait(60)
    assert len(wait(server.url, count)) == count
