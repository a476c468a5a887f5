"""A TCP proxy before Postgres that loses a request or an answer, or keeps a request back, when it is told to."""

import asyncio
import re
from enum import Enum, auto
from typing import Self
from urllib.parse import parse_qs, urlsplit

READY = b"Z\x00\x00\x00\x05I"  # the server has committed, and waits for the next
APPLICATION_NAME = re.compile(rb"application_name\x00([^\x00]+)")


class Mode(Enum):
    """What becomes of what passes."""

    PASS = auto()
    LOSE_REQUEST = auto()  # the next request: the connection breaks before it
    LOSE_ANSWER = auto()  # the next answer: the connection breaks instead of it
    KEEP_REQUEST = auto()  # requests are kept, whatever becomes of who sent them
    LOSE_SERVER = auto()  # the server's end is gone, and nothing tells the client


class Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.name = ""
        self.mode = Mode.PASS
        self.is_open = True
        self.has_kept = asyncio.Event()
        self._is_done = asyncio.Event()
        self._kept: list[bytes] = []
        self._client = client
        self._server = server

    async def pump_requests(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 16):
            if found := APPLICATION_NAME.search(data):
                self.name = found[1].decode()
            if self.mode is Mode.LOSE_REQUEST:
                break
            if self.mode is Mode.KEEP_REQUEST:
                self._kept.append(data)
                self.has_kept.set()
                continue
            if self.mode is not Mode.LOSE_SERVER:
                self._server.write(data)
        if self.mode is not Mode.KEEP_REQUEST:
            self.cut()

    async def pump_answers(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 16):
            if self.mode is Mode.PASS:
                self._client.write(data)
            elif data.endswith(READY):
                self._is_done.set()
                if self.mode is Mode.LOSE_ANSWER:
                    break
        if self.mode is not Mode.LOSE_SERVER:
            self.cut()

    async def deliver(self) -> None:
        """Send what was kept, and wait until the server has done it."""
        for data in self._kept:
            self._server.write(data)
        await self._is_done.wait()

    def lose_server(self) -> None:
        """Let the server see an end, and the client none: neither FIN nor RST ever comes to it."""
        self.mode = Mode.LOSE_SERVER
        self._server.transport.abort()

    def cut(self) -> None:
        """Break the connection on both sides."""
        self.is_open = False
        self._client.transport.abort()
        self._server.transport.abort()


class Proxy:
    """Stands before the server of a DSN, at a DSN of its own."""

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)
        self._links: list[Link] = []
        self._is_stalled = False
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        user = f"{self._parts.username}:{self._parts.password or ''}"
        self.dsn = f"postgresql://{user}@127.0.0.1:{port}{self._parts.path}?sslmode=disable"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._listener.close()
        for link in self._links:
            link.cut()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        await asyncio.sleep(0)  # what was aborted is closed at the loop's next turn
        await self._listener.wait_closed()

    def link(self, name: str) -> Link:
        """Find the open connection of this application name."""
        (found,) = (link for link in self._links if link.name == name and link.is_open)
        return found

    def stall(self) -> None:
        """Keep whatever is asked from now on, over connections that are yet to come, too."""
        self._is_stalled = True
        for link in self._links:
            link.mode = Mode.KEEP_REQUEST

    def lose_links(self) -> None:
        """Keep whatever is asked over the connections that there are, and let new ones through."""
        for link in self._links:
            link.mode = Mode.KEEP_REQUEST

    async def until_asked(self) -> None:
        """Wait until somebody has asked something that is kept."""
        while not self._links:
            await asyncio.sleep(0.01)
        await self._links[-1].has_kept.wait()

    def heal(self) -> None:
        """Break what is stalled, and let new connections through."""
        self._is_stalled = False
        for link in self._links:
            link.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            server_reader, server_writer = await self._connect()
        except BaseException:  # also when the proxy goes meanwhile
            writer.transport.abort()
            raise
        link = Link(writer, server_writer)
        if self._is_stalled:
            link.mode = Mode.KEEP_REQUEST
        self._links.append(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(link.pump_requests(reader))
                group.create_task(link.pump_answers(server_reader))
        except* ConnectionError:
            pass
        finally:
            link.cut()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        query = parse_qs(self._parts.query)
        host = query.get("host", [self._parts.hostname or "localhost"])[0]
        port = int(query.get("port", [self._parts.port or 5432])[0])
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)
