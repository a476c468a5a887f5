"""A TCP proxy that hurts what passes: it stalls either direction, resets, refuses, or loses an answer.

It stands before Postgres or before a gateway, one for each process that is to be hurt alone. A stalled link stays open and
says nothing, as a peer behind a cut cable does; bytes are never changed or reordered.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from enum import Enum, auto
from typing import Final, Self

CHUNK_BYTES: Final = 65_536
END_LIMIT_S: Final = 2.0
NO_LINGER: Final = struct.pack("ii", 1, 0)  # closing sends a reset


class Way(Enum):
    """A direction through the proxy."""

    THERE = auto()  # from the client to the server
    BACK = auto()


class Link:
    """One connection through the proxy."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.readers = {Way.THERE: client[0], Way.BACK: server[0]}
        self.writers = {Way.THERE: server[1], Way.BACK: client[1]}
        self.has_asked = False  # since its answer was to be lost

    def reset(self) -> None:
        """Break both sides at once, with a reset."""
        for writer in self.writers.values():
            connection = writer.get_extra_info("socket")
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()


class Proxy:
    """Stands before one address, at a port of its own."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.port = 0
        self.lost_count = 0
        self._links: set[Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._open = {way: asyncio.Event() for way in Way}
        self._is_refusing = False
        self._is_losing = False
        self.heal()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._listener.close()
        self.reset()
        self.heal()  # what is held back goes on, to its end
        if self._serving:
            await asyncio.wait(self._serving, timeout=END_LIMIT_S)
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        await asyncio.sleep(0)  # what was aborted is closed at the loop's next turn
        await self._listener.wait_closed()

    def heal(self) -> None:
        """Let everything pass."""
        for event in self._open.values():
            event.set()
        self._is_refusing = self._is_losing = False

    def stall(self, *ways: Way) -> None:
        """Hold back what goes these ways; both if none is named."""
        for way in ways or Way:
            self._open[way].clear()

    def reset(self) -> int:
        """Break every link; return how many there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def refuse(self) -> None:
        """Break every link, and each new one."""
        self._is_refusing = True
        self.reset()

    def lose_answer(self) -> None:
        """Let the next request of any link through, and break that link instead of its answer."""
        for link in self._links:
            link.has_asked = False
        self._is_losing = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        if self._is_refusing:
            writer.transport.abort()
            return
        server = None
        try:
            server = await asyncio.open_connection(*self.target)
        except OSError:
            return
        finally:  # also when the proxy goes meanwhile
            if server is None:
                writer.transport.abort()
        link = Link((reader, writer), server)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, Way.THERE))
                group.create_task(self._pump(link, Way.BACK))
        except* ConnectionError:
            pass
        finally:
            link.reset()
            self._links.discard(link)

    async def _pump(self, link: Link, way: Way) -> None:
        reader, writer = link.readers[way], link.writers[way]
        while data := await reader.read(CHUNK_BYTES):
            await self._open[way].wait()
            if self._is_losing and way is Way.THERE:
                link.has_asked = True
            elif self._is_losing and link.has_asked:
                self._is_losing = False
                self.lost_count += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        await self._open[way].wait()
        if way is Way.THERE:
            with suppress(OSError):
                writer.write_eof()
        else:
            raise ConnectionResetError  # the server is done: so is the link
