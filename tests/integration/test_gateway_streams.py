"""Event streams: every event once, in order, whatever comes when; and readers that do not harm each other."""

import asyncio
import hashlib
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.hub import POLL_S, Hub
from gateway.viewers import MAX_BUFFERED_BYTES, STALLED_S
from smithers.ids import RunId
from smithers.store.tails import PAGE_BYTES, PAGE_EVENTS, Cursor, Tail, read_tails
from smithers.telemetry.names import DropReason
from smithers.telemetry.sheet import Counter
from tests.support.canary import TOKEN
from tests.support.gateway import (
    Answer,
    Client,
    Rows,
    Stream,
    make_root,
    running,
    settings_for,
    until,
)

HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "connection": "keep-alive",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
}


LARGE = 100_000  # bytes of an event


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


@pytest.fixture
async def rows(database: str, root: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    yield Rows(connection, root)
    await connection.close()


@pytest.fixture
async def client(database: str, root: Path) -> AsyncIterator[Client]:
    async with running(settings_for(database, root)) as client:
        await until(lambda: client.gateway._front.services.home.hints.is_connected)
        yield client


def value(counter: Counter) -> float:
    return counter._words[counter._at]


def active(client: Client) -> float:
    return value(client.gateway._front.services.metrics.streams_active)


def stalled(client: Client) -> float:
    return value(client.gateway._front.services.metrics._drops[DropReason.STALLED])


async def attached(client: Client, count: int) -> None:
    await until(lambda: active(client) == count)


async def test_a_finished_run_is_replayed_whole_and_the_stream_ends(
    client: Client, rows: Rows
) -> None:
    count = PAGE_EVENTS * 2 + 7
    await rows.add_run("r", status="finished", events=count)
    async with client.stream("r") as stream:
        assert stream.head.status == 200
        assert stream.head.headers.items() >= HEADERS.items()
        assert await stream.rest() == list(range(count))
        (retry,) = stream.comments
        assert 1000 <= int(retry.removeprefix("retry: ")) <= 3000


async def test_a_page_of_events_ends_by_its_bytes_and_never_before_its_first_event(
    rows: Rows,
) -> None:
    await rows.add_run("r")
    await rows.add_events("r", 9, size=PAGE_BYTES // 4)
    await rows.add_events("r", 2, size=PAGE_BYTES)
    tails: list[Tail] = []
    while not tails or tails[-1].has_more:
        cursor = Cursor(RunId("r"), tails[-1].end_seq if tails else -1)
        (found,) = await read_tails(rows.connection, [(cursor,)])
        tails.append(found[cursor])
        assert tails[-1].first_seq == cursor.seq + 1
    assert [len(tail.payloads) for tail in tails] == [4, 3, 3, 1, 1]


async def test_what_is_sent_is_what_is_stored(client: Client, rows: Rows) -> None:
    await rows.add_run("r", status="finished")
    stored = await rows.connection.fetchval("SELECT payload FROM smithers.events")
    async with client.stream("r") as stream:
        await stream.reader.readline()
        text = await stream.reader.readuntil(b"\r\n")
        assert f"\n\nid: 0\nevent: smithers\ndata: {stored}\n\n".encode() in text
        assert b"\r\n" not in text[:-2]


async def test_a_run_that_waits_or_is_cancelled_later_keeps_its_stream_open(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    async with client.stream("r") as stream:
        assert await stream.take(1) == [0]
        await rows.ask("r", "gate")
        await rows.add_events("r", 2, status="waiting-approval")
        assert await stream.take(2) == [1, 2]
        assert (await client.post("/v1/runs/r/cancel")).status == 200
        rest = await stream.rest()
    assert rest == list(range(3, 3 + len(rest)))
    assert len(rest) == 2  # NodeCancelled, RunCancelled


async def test_last_event_id_and_after_seq_resume_and_the_larger_wins(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r", status="finished", events=10)
    for query, last_id, expected in (
        ("?afterSeq=6", None, [7, 8, 9]),
        ("", "7", [8, 9]),
        ("?afterSeq=2", "8", [9]),
        ("?afterSeq=8", "2", [9]),
        ("?afterSeq=-1", None, list(range(10))),
    ):
        headers: dict[str, Any] = {} if last_id is None else {"Last-Event-ID": last_id}
        async with client.stream("r", query, **headers) as stream:
            assert await stream.rest() == expected


async def test_an_ended_run_that_was_seen_whole_is_204(client: Client, rows: Rows) -> None:
    await rows.add_run("r", status="failed", events=3)
    for query in ("?afterSeq=2", "?afterSeq=99"):
        answer = await client.get(f"/v1/runs/r/events{query}")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("value", ["x", "1.5", "1e3", "0x1", "%EF%BC%91", "-2", "9" * 30, "%2B1"])
async def test_a_cursor_that_is_no_number_is_refused_before_the_head(
    client: Client, rows: Rows, value: str
) -> None:
    await rows.add_run("r")
    answer = await client.get(f"/v1/runs/r/events?afterSeq={value}")
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
    if value.isascii() and value.isalnum():
        answer = await client.get("/v1/runs/r/events", **{"Last-Event-ID": value})
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")


async def test_a_stream_of_no_run_is_not_found(client: Client) -> None:
    assert (await client.get("/v1/runs/none/events")).code == "NOT_FOUND"


async def test_a_stream_of_a_run_that_retention_takes_meanwhile_ends_and_is_not_found_again(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.add_run("r", status="finished", events=PAGE_EVENTS + 1)
    read = Hub.read

    async def read_and_prune(hub: Hub, run_id: RunId, cursor: int) -> Tail | None:
        tail = await read(hub, run_id, cursor)
        await rows.connection.execute("DELETE FROM smithers.runs")
        await rows.connection.execute("DELETE FROM smithers.events")
        return tail

    monkeypatch.setattr(Hub, "read", read_and_prune)
    async with client.stream("r") as stream:
        assert await stream.take(PAGE_EVENTS) == list(range(PAGE_EVENTS))
        assert await stream.next() is None
    last = {"Last-Event-ID": str(PAGE_EVENTS - 1)}
    assert (await client.get("/v1/runs/r/events", **last)).code == "NOT_FOUND"


async def test_http_1_0_gets_the_events_unchunked_until_the_connection_closes(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r", events=2)
    request = f"GET /v1/runs/r/events HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nHost: localhost\r\n\r\n"
    reading = asyncio.create_task(client.raw(request.encode()))
    await attached(client, 1)
    await rows.add_events("r", 1, status="finished")
    head, _, body = (await reading).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    ids = [line for line in body.split(b"\n") if line.startswith(b"id:")]
    assert ids == [b"id: 0", b"id: 1", b"id: 2"]


async def test_silence_is_broken_by_a_comment(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.hub.KEEP_ALIVE_S", 0.0)
    await rows.add_run("r")
    async with client.stream("r") as stream:
        await stream.take(1)
        await stream.until_comment(": keep-alive")


@pytest.mark.parametrize("seed", range(5))
async def test_viewers_that_come_and_go_at_random_lose_nothing_and_see_nothing_twice(
    client: Client, rows: Rows, database: str, seed: int
) -> None:
    chance = random.Random(seed)
    runs = [
        await rows.add_run(f"run-{number}", events=chance.choice([1, 499, 500, 501]))
        for number in range(4)
    ]

    async def write(run_id: str) -> None:
        connection = await asyncpg.connect(database)
        mine = Rows(connection, rows.root)
        for _ in range(60):
            await mine.add_events(run_id, chance.choice([1, 1, 2, 40]), hint=chance.random() < 0.95)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await mine.add_events(run_id, 1, status="finished")
        await connection.close()

    async def watch(run_id: str) -> list[int]:
        seen: list[int] = []
        while True:
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() / 20)
            last: dict[str, Any] = {"Last-Event-ID": str(seen[-1])} if seen else {}
            async with client.stream(run_id, **last) as stream:
                if stream.head.status == 204:
                    return seen
                patience = chance.choice([1, 3, 50, 10_000])
                for _ in range(patience):
                    event = await stream.next()
                    if event is None:
                        return seen
                    seen.append(event[0])

    async with asyncio.TaskGroup() as group:
        for run_id in runs:
            group.create_task(write(run_id))
        watching = [group.create_task(watch(run_id)) for run_id in runs for _ in range(8)]
    found = await rows.connection.fetch("SELECT run_id, last_seq + 1 AS count FROM smithers.runs")
    totals = {row["run_id"]: row["count"] for row in found}
    for task, run_id in zip(watching, [run_id for run_id in runs for _ in range(8)], strict=True):
        assert task.result() == list(range(totals[run_id]))
    await attached(client, 0)
    assert client.gateway._front.services.home.hub._runs == {}


async def test_two_hundred_viewers_share_one_read_of_each_event(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.add_run("r")
    hub = client.gateway._front.services.home.hub
    reads: list[int] = []
    submit = hub._live.submit

    async def counted(cursors):
        reads.append(len(cursors))
        return await submit(cursors)

    monkeypatch.setattr(hub._live, "submit", counted)

    async def watch() -> list[int]:
        async with client.stream("r") as stream:
            return await stream.rest()

    watching = [asyncio.create_task(watch()) for _ in range(200)]
    await attached(client, 200)
    for _ in range(20):
        await rows.add_events("r", 1)
    await rows.add_events("r", 1, status="finished")
    assert await asyncio.gather(*watching) == [list(range(22))] * 200
    assert sum(reads) <= 2 * 22 + 2


async def test_a_lost_listener_and_lost_hints_cost_no_event(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    hints = client.gateway._front.services.home.hints
    async with client.stream("r") as stream:
        await stream.take(1)
        await attached(client, 1)
        for number in range(1, 4):
            await rows.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'smithers-gateway-hints' AND datname = current_database()"
            )
            await rows.add_events("r", 1, hint=False)
            assert await stream.take(1) == [number]
            await until(lambda: hints.is_connected)
        await rows.add_events("r", 1, hint=False)
        assert await stream.take(1) == [4]


async def test_streams_outlive_their_database_connections(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    async with client.stream("r") as stream:
        await stream.take(1)
        await attached(client, 1)
        for number in range(1, 4):
            await rows.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            await rows.add_events("r", 1)
            assert await stream.take(1) == [number]


async def test_a_reader_that_does_not_read_slows_nobody(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    async with client.stream("r") as quick, slow_reader(client):
        await attached(client, 2)
        count = 3 * MAX_BUFFERED_BYTES // LARGE + 10
        reading = asyncio.create_task(quick.take(count + 1))
        for _ in range(count):
            await rows.add_events("r", 1, size=LARGE)
        assert await reading == list(range(count + 1))
        await attached(client, 1)


async def test_a_reader_that_does_not_read_is_dropped_with_no_more_than_the_buffer(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.viewers.STALLED_S", 1.0)
    await rows.add_run("r")
    async with slow_reader(client) as slow:
        transport = await only_transport(client)
        await rows.add_events("r", 3 * MAX_BUFFERED_BYTES // LARGE, size=LARGE)
        await attached(client, 0)
        assert transport.get_write_buffer_size() <= MAX_BUFFERED_BYTES + 1000  # the coding
        await until(lambda: stalled(client) == 1)
        metrics = (await client.get("/metrics")).body.decode()
        assert 'smithers_streams_dropped_total{reason="stalled"} 1.0' in metrics
        got = await asyncio.to_thread(read_all, slow)
        last = got.rindex(b"\nid: ")
        cursor = int(got[last + 5 :].split(b"\n")[0]) - 1
    resume: dict[str, Any] = {"Last-Event-ID": str(cursor)}
    async with client.stream("r", **resume) as again:
        assert (await again.take(1)) == [cursor + 1]


async def test_a_reader_that_reads_slower_than_events_come_gets_all_of_them_by_one_stream(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    async with slow_reader(client, receive_bytes=65_536) as slow:
        await attached(client, 1)
        count = 3 * MAX_BUFFERED_BYTES // LARGE
        await rows.add_events("r", count, size=LARGE)
        await attached(client, 0)
        stream = await stream_of(slow)
        assert await stream.take(count + 1) == list(range(count + 1))
        await attached(client, 1)
        await rows.add_events("r", 1, status="finished")
        assert await stream.rest() == [count + 1]
        stream.writer.close()
    assert stalled(client) == 0


def write_tokens(path: Path, *users: str) -> None:
    """Give each user a token, their name."""
    tokens = [
        {"sha256": hashlib.sha256(user.encode()).hexdigest(), "user": user, "scopes": ["runs:read"]}
        for user in users
    ]
    path.write_text("\n".join(map(json.dumps, tokens)), encoding="utf-8")


@pytest.fixture
async def guarded(
    database: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Client, Path]]:
    """A gateway that looks at its tokens file whenever it may, and that file."""
    monkeypatch.setattr("gateway.access.CHECK_FILE_S", 0.0)
    path = tmp_path / "tokens.jsonl"
    write_tokens(path, "ann", "bob")
    async with running(settings_for(database, root, tokens_file=path)) as client:
        yield client, path


async def test_a_stream_ends_cleanly_when_its_token_is_taken_away(
    guarded: tuple[Client, Path], rows: Rows
) -> None:
    client, path = guarded
    of_ann, of_bob = (Client(client.gateway, token=user) for user in ("ann", "bob"))
    await rows.add_run("r")
    async with of_ann.stream("r") as ending, of_bob.stream("r") as staying:
        await attached(client, 2)
        write_tokens(path, "bob")
        assert await ending.rest() == [0]
        assert (await of_ann.get("/v1/runs/r/events")).status == 401
        await rows.add_events("r", 1)
        assert await staying.take(2) == [0, 1]


async def test_a_slow_readers_stream_ends_within_what_is_stored_when_its_token_is_taken_away(
    guarded: tuple[Client, Path], rows: Rows
) -> None:
    client, path = guarded
    await rows.add_run("r")
    async with slow_reader(Client(client.gateway, token="ann"), receive_bytes=65_536) as slow:
        await attached(client, 1)
        count = 3 * MAX_BUFFERED_BYTES // LARGE
        await rows.add_events("r", count, size=LARGE)
        await attached(client, 0)
        write_tokens(path, "bob")
        stream = await stream_of(slow)
        seen = await stream.rest()
        assert seen == list(range(len(seen)))
        assert len(seen) < count
        stream.writer.close()


async def test_a_reader_that_reads_is_not_dropped_for_what_comes_at_once(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    async with client.stream("r") as stream:
        await attached(client, 1)
        reading = asyncio.create_task(stream.take(1 + 60))
        await rows.add_events("r", 60, size=MAX_BUFFERED_BYTES // 20)
        assert await reading == list(range(1 + 60))
        assert active(client) == 1


async def test_a_reader_that_stalls_in_the_middle_of_its_replay_is_dropped(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.viewers.STALLED_S", 0.3)
    await rows.add_run("r")
    for _ in range(30):
        await rows.add_events("r", 1, size=300_000, hint=False)
    async with slow_reader(client):
        await until(lambda: stalled(client) == 1)
    assert active(client) == 0


async def test_a_reader_that_stalls_behind_a_full_socket_is_dropped(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.viewers.STALLED_S", 0.3)
    await rows.add_run("r")
    async with slow_reader(client):
        await attached(client, 1)
        await rows.add_events("r", 1, size=900_000)
        await attached(client, 0)
    assert stalled(client) == 1


async def test_the_kernel_cuts_a_reader_that_acknowledges_nothing(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    async with client.stream("r"):
        connection = (await only_transport(client)).get_extra_info("socket")
        limit_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit_ms == STALLED_S * 1000


class slow_reader:  # noqa: N801 - reads like the function that it is
    """A viewer with small buffers, that reads the start of its head and then nothing."""

    def __init__(self, client: Client, receive_bytes: int = 4096) -> None:
        self.client = client
        self.receive_bytes = receive_bytes
        self.socket = socket.socket()

    async def __aenter__(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        self.socket.setblocking(False)
        await loop.sock_connect(self.socket, ("127.0.0.1", self.client.port))
        head = f"Host: x\r\nAuthorization: Bearer {self.client.token}"
        request = f"GET /v1/runs/r/events HTTP/1.1\r\n{head}\r\n\r\n"
        await loop.sock_sendall(self.socket, request.encode())
        assert b" 200 " in await loop.sock_recv(self.socket, 20)
        return self.socket

    async def __aexit__(self, *_exc: object) -> None:
        self.socket.close()


async def stream_of(connection: socket.socket) -> Stream:
    """Have a slow reader read on."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 20)
    await reader.readuntil(b"\r\n\r\n")
    return Stream(Answer(200, {}, b""), reader, writer)


async def only_transport(client: Client) -> asyncio.Transport:
    """Return what the gateway writes the only stream to, once that is live."""
    await attached(client, 1)
    (run,) = client.gateway._front.services.home.hub._runs.values()
    (viewer,) = run.viewers
    return viewer.transport


def read_all(connection: socket.socket) -> bytes:
    connection.setblocking(True)
    data = b""
    try:
        while part := connection.recv(1 << 20):
            data += part
    except ConnectionError:
        pass
    return data


async def test_readers_that_leave_are_forgotten_at_once_and_are_no_news(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    with capture_logs() as logs:
        for _ in range(10):
            async with client.stream("r") as stream:
                await stream.take(1)
                await attached(client, 1)
                stream.writer.transport.abort()
                await attached(client, 0)
        await rows.add_events("r", 1)
    assert logs == []
    assert client.gateway._front.services.home.hub._runs == {}


async def test_a_reader_that_sends_no_more_leaves_a_live_stream(client: Client, rows: Rows) -> None:
    await rows.add_run("r", events=2)
    async with client.stream("r") as stream:
        assert await stream.take(2) == [0, 1]
        await until(lambda: active(client) == 1)
        stream.writer.write_eof()
        await until(lambda: active(client) == 0)
        assert await stream.reader.read() == b""


async def test_a_reader_that_sent_no_more_than_its_request_gets_what_is_stored(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r", events=2)
    async with client.stream("r", sends_more=False) as stream:
        assert await stream.rest() == [0, 1]
    assert active(client) == 0


async def test_a_drain_ends_each_stream_after_a_whole_event_and_answers_what_is_under_way(
    database: str, root: Path, rows: Rows
) -> None:
    for number in range(3):
        await rows.add_run(f"r{number}", events=40)
    await rows.describe()
    async with running(settings_for(database, root)) as client:
        streams = [client.stream(f"r{number % 3}") for number in range(30)]
        opened: list[Stream] = [await stream.__aenter__() for stream in streams]
        await attached(client, 30)
        writing = asyncio.create_task(rows.add_events("r0", 100, size=1000))
        posting = [
            asyncio.create_task(client.post("/v1/runs", {"workflowPath": "hello.py"}))
            for _ in range(10)
        ]
        await until(lambda: len(client.gateway._front.services.metrics._requests) > 0)
        await client.gateway.drain()
        for stream in opened:
            seen = await stream.rest()
            assert seen == list(range(len(seen)))
            assert len(seen) >= 40
        for closing in streams:
            await closing.__aexit__(None, None, None)
        await writing
        answers = await asyncio.gather(*posting, return_exceptions=True)
        assert {answer.status for answer in answers if isinstance(answer, Answer)} <= {200}
        with pytest.raises(OSError):  # noqa: PT011 - refused, or reset: nobody listens
            await client.get("/health")


async def test_an_event_is_on_the_stream_soon_after_its_commit(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    delays = []
    async with client.stream("r") as stream:
        await stream.take(1)
        await attached(client, 1)
        for _ in range(50):
            await rows.add_events("r", 1)
            committed = time.perf_counter()
            await stream.take(1)
            delays.append(time.perf_counter() - committed)
    assert sorted(delays)[25] < POLL_S / 4  # not by the slow poll


async def test_a_resume_after_the_end_is_a_new_era_on_the_same_numbers(
    client: Client, rows: Rows
) -> None:
    await rows.describe()
    run_id = (await client.post("/v1/runs", {"workflowPath": "hello.py"})).json["runId"]
    await client.post(f"/v1/runs/{run_id}/cancel")
    async with client.stream(run_id) as stream:
        assert await stream.rest() == [0, 1]
    await client.post(f"/v1/runs/{run_id}/resume")
    async with client.stream(run_id, "?afterSeq=1") as stream:
        event = await stream.next()
        assert event is not None
        assert (event[0], json.loads(json.dumps(event[1]))["type"]) == (2, "RunStatusChanged")
        await rows.add_events(run_id, 1, status="finished")
        assert await stream.rest() == [3]
