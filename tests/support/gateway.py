"""A real gateway on a real socket, the smallest client that can misbehave, and rows as a worker would write them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from gateway.app import Gateway, GatewaySettings, open_gateway
from smithers.source.beneath import RootDirectory
from smithers.source.closure import read_bundle
from tests.support.canary import TOKEN

LIMIT_S = 60.0
HELLO = """
from smithers import Task, workflow


@workflow
def hello(ctx):
    return Task("a", lambda: 1)
"""
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


def make_root(folder: Path) -> Path:
    """Make a root with one workflow in it."""
    root = folder / "root"
    root.mkdir()
    (root / "hello.py").write_text(HELLO, encoding="utf-8")
    return root


def settings_for(dsn: str, root: Path, **changes: Any) -> GatewaySettings:
    """Settings of a gateway for tests: any port, one token."""
    settings = GatewaySettings(
        dsn=dsn, direct_dsn=dsn, root_dir=root, port=0, auth_token=TOKEN, drain_timeout_s=60
    )
    return replace(settings, **changes)


@dataclass
class Answer:
    """What came back: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


@dataclass
class Port:
    """Stands where a gateway of this process would: only its port is known."""

    port: int


class Client:
    """Speaks to one gateway; each call has its own connection."""

    def __init__(self, gateway: Gateway | Port, *, token: str | None = TOKEN) -> None:
        self._gateway = gateway
        self.port = gateway.port
        self.token = token

    @property
    def gateway(self) -> Gateway:
        """The gateway, which runs in this process."""
        assert isinstance(self._gateway, Gateway)
        return self._gateway

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request and read the whole answer."""
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        head = {"Host": "localhost", "Connection": "close", **(headers or {})}
        if self.token is not None and "Authorization" not in head:
            head["Authorization"] = f"Bearer {self.token}"
        if data or method == "POST":
            head["Content-Length"] = str(len(data))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        return parse_answer(
            await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + data), method
        )

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.call("POST", path, body, headers=headers)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and read until the gateway closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(LIMIT_S):
                return await reader.read()
        finally:
            writer.close()

    def stream(
        self, run_id: str, query: str = "", *, sends_more: bool = True, **headers: str
    ) -> AbstractAsyncContextManager["Stream"]:
        """Open an event stream."""
        path = f"/v1/runs/{run_id}/events{query}"
        return self.stream_at(path, sends_more=sends_more, **headers)

    @asynccontextmanager
    async def stream_at(
        self, path: str, *, sends_more: bool = True, **headers: str
    ) -> AsyncIterator["Stream"]:
        """Open the event stream at a path; without `sends_more` the request is the last that is sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
        lines += [f"Authorization: Bearer {self.token}"] if self.token else []
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        if not sends_more:
            writer.write_eof()
        try:
            async with asyncio.timeout(LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            yield Stream(parse_answer(head), reader, writer)
        finally:
            writer.close()


@dataclass
class Stream:
    """An event stream that is being read."""

    head: Answer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    buffer: bytes = b""
    comments: list[str] = field(default_factory=list)

    async def next(self) -> tuple[int, dict[str, Any]] | None:
        """Read the next event; None: the stream ended cleanly. A cut raises ConnectionError."""
        while True:
            while b"\n\n" not in self.buffer:
                if not await self._read_chunk():
                    assert self.buffer == b"", "the stream ended within an event"
                    return None
            block, _, self.buffer = self.buffer.partition(b"\n\n")
            lines = block.decode().split("\n")
            if lines[0].startswith(("retry:", ":")):
                self.comments.append(lines[0])
                continue
            assert [line.split(": ")[0] for line in lines] == ["id", "event", "data"], lines
            return int(lines[0][4:]), json.loads(lines[2][6:])

    async def take(self, count: int) -> list[int]:
        """Read so many events, and give their numbers."""
        seqs: list[int] = []
        for _ in range(count):
            event = await self.next()
            assert event is not None, f"the stream ended after {seqs}"
            seqs.append(event[0])
        return seqs

    async def rest(self) -> list[int]:
        """Read to the clean end, and give the events' numbers."""
        seqs = []
        while (event := await self.next()) is not None:
            seqs.append(event[0])
        return seqs

    async def until_comment(self, text: str) -> None:
        """Read until a comment comes."""
        while text not in self.comments:
            block, separator, rest = self.buffer.partition(b"\n\n")
            if separator:
                self.buffer = rest
                self.comments.append(block.decode())
            elif not await self._read_chunk():
                raise ConnectionError("the stream ended")

    async def _read_chunk(self) -> bool:
        async with asyncio.timeout(LIMIT_S):
            line = await self.reader.readline()
            if not line:
                raise ConnectionError("the stream was cut")
            data = await self.reader.readexactly(int(line, 16) + 2)
        self.buffer += data[:-2]
        return len(data) > 2


def parse_answer(data: bytes, method: str = "GET") -> Answer:
    """Read an answer's bytes."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    if "content-length" in headers and method != "HEAD":
        assert len(body) in {0, int(headers["content-length"])}, data
    return Answer(int(lines[0].split()[1]), headers, body)


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[Client]:
    """Run a gateway in this loop."""
    async with open_gateway(settings) as gateway:
        yield Client(gateway)


class Rows:
    """The database, as workers and the pool would write to it."""

    def __init__(self, connection: asyncpg.Connection, root: Path) -> None:
        self.connection = connection
        self.root = root

    async def describe(self, path: str = "hello.py", **changes: Any) -> None:
        """Answer what the pool's throwaway process would."""
        with RootDirectory(self.root) as root:
            bundle = read_bundle(root, path)
        description = {
            "workflow_name": "hello",
            "input_schema": SCHEMA,
            "queue": None,
            "isolation": None,
            "database": None,
            "error": None,
            **changes,
        }
        await self.connection.execute(
            """INSERT INTO smithers.workflow_descriptions (source_hash, workflow_export, description)
            VALUES ($1, $2, $3) ON CONFLICT (source_hash, workflow_export) DO UPDATE SET description = $3""",
            bundle.source_hash,
            bundle.workflow_name or "",
            json.dumps(description),
        )

    async def add_run(self, run_id: str, *, status: str = "queued", events: int = 1) -> str:
        """Write a run with so many events."""
        await self.connection.execute(
            """WITH new AS (
                INSERT INTO smithers.runs (run_id, status, last_seq, created_at)
                VALUES ($1, $2, $3::integer - 1, smithers.clock()) RETURNING created_at),
            request AS (
                INSERT INTO smithers.run_requests (
                    run_id, workflow_name, workflow_path, source_hash, input, config, created_at)
                SELECT $1, 'hello', 'hello.py', 'none', '{}', '{}', created_at FROM new)
            INSERT INTO smithers.events (run_id, seq, epoch, payload)
            SELECT $1, n, 0, smithers.event_v1('NodeStarted', $1, 'hello', 1, ',"n":' || n)
            FROM generate_series(0, $3::integer - 1) AS n""",
            run_id,
            status,
            events,
        )
        return run_id

    async def add_events(
        self,
        run_id: str,
        count: int,
        *,
        status: str | None = None,
        size: int = 0,
        hint: bool = True,
    ) -> None:
        """Commit events as a worker does: the run's row first; then, after the commit, the hint."""
        async with self.connection.transaction():
            last = await self.connection.fetchval(
                """UPDATE smithers.runs SET last_seq = last_seq + $2, status = coalesce($3, status)
                WHERE run_id = $1 RETURNING last_seq""",
                run_id,
                count,
                status,
            )
            await self.connection.execute(
                """INSERT INTO smithers.events (run_id, seq, epoch, payload)
                SELECT $1, n, 0, smithers.event_v1('NodeOutput', $1, 'hello', smithers.to_ms(smithers.clock()),
                    ',"text":"' || repeat('x', $4) || '"')
                FROM generate_series($2::bigint, $3::bigint) AS n""",
                run_id,
                last - count + 1,
                last,
                size,
            )
        if hint:
            await self.hint_events(run_id)

    async def go_on_as(self, run_id: str, new_id: str) -> None:
        """End a run that goes on as another, with that one's first event."""
        async with self.connection.transaction():
            await self.connection.execute(
                """WITH ended AS (
                    UPDATE smithers.runs SET last_seq = last_seq + 1, status = 'continued'
                    WHERE run_id = $1 RETURNING last_seq)
                INSERT INTO smithers.events (run_id, seq, epoch, payload)
                SELECT $1, last_seq, 0, smithers.event_v1('RunContinuedAsNew', $1, 'hello', 1,
                    ',"newRunId":"' || $2 || '"') FROM ended""",
                run_id,
                new_id,
            )
            await self.add_run(new_id)
        await self.hint_events(run_id)

    async def hint_events(self, run_id: str) -> None:
        await self.connection.execute("SELECT pg_notify('smithers_events', $1)", run_id)

    async def add_node(self, run_id: str, node_id: str, state: str, **columns: Any) -> None:
        values = {
            "iteration": 0,
            "kind": "task",
            "attempt": 1,
            "wait": None,
            "output": None,
            **columns,
        }
        await self.connection.execute(
            """INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, attempt, created_at, wait, output)
            VALUES ($1, $2, $3, $4, $5, $6, smithers.clock(), $7, $8)""",
            run_id,
            node_id,
            values["iteration"],
            values["kind"],
            state,
            values["attempt"],
            values["wait"],
            values["output"],
        )

    async def ask(self, run_id: str, node_id: str, **request: Any) -> None:
        """Park a run on an approval."""
        await self.add_node(run_id, node_id, "waiting-approval", kind="approval")
        await self.connection.execute(
            """INSERT INTO smithers.approvals (run_id, node_id, iteration, status, request, requested_at)
            VALUES ($1, $2, 0, 'requested', $3, smithers.clock())""",
            run_id,
            node_id,
            json.dumps({"title": "Go?", "summary": "Now", **request}),
        )
        await self.connection.execute(
            "UPDATE smithers.runs SET status = 'waiting-approval' WHERE run_id = $1", run_id
        )

    async def add_worker(self, *, heartbeat_age_s: int = 0) -> UUID:
        worker_id = uuid4()
        await self.connection.execute(
            """INSERT INTO smithers.workers (worker_id, pool_id, boot_id, pid_namespace, pid, process_start, queues,
                started_at, heartbeat_at)
            VALUES ($1, $1, 'b', 'n', 1, 's', '{default}', smithers.clock(),
                smithers.clock() - $2 * interval '1 second')""",
            worker_id,
            heartbeat_age_s,
        )
        return worker_id

    async def own(self, run_id: str, *, heartbeat_age_s: int = 0) -> UUID:
        """Have a worker own a run."""
        worker_id = await self.add_worker(heartbeat_age_s=heartbeat_age_s)
        await self.connection.execute(
            "UPDATE smithers.runs SET owner_id = $2, status = 'running', epoch = epoch + 1 WHERE run_id = $1",
            run_id,
            worker_id,
        )
        return worker_id

    async def until(self, question: str, *args: Any) -> Any:
        """Wait until a query answers something true."""
        async with asyncio.timeout(LIMIT_S):
            while not (value := await self.connection.fetchval(question, *args)):
                await asyncio.sleep(0.01)
            return value


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until something is true."""
    async with asyncio.timeout(LIMIT_S):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value
