"""Answer with a run's events as server-sent events: the stored ones, then live, each once, in order.

Everything that can be refused is refused before the head is sent. After it only two things can happen: the clean end of
the stream after a whole event, or a connection that is cut.
"""

import asyncio
import random
import socket
from typing import Final, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp_sse import EventSourceResponse

from gateway import fields
from gateway.envelope import SERVER
from gateway.exchange import Exchange
from gateway.hub import FollowedRun, Hub
from gateway.protocol import GatewayProtocol
from gateway.viewers import STALLED_S, Viewer, frame_events
from smithers.store.refusals import RunNotFound
from smithers.store.tails import Tail
from smithers.telemetry.names import DropReason

SEND_BUFFER_BYTES: Final = 64 * 1024  # the kernel's part of what a slow reader costs
RETRY_MS: Final = (1_000, 3_000)  # spread, so that a deploy is not followed by a stampede


class EventStream(EventSourceResponse):
    """aiohttp-sse's response with our head, and without its task for each viewer: the hub's timer pings all."""

    def __init__(self, request_id: str) -> None:
        super().__init__(sep="\n", send_timeout=STALLED_S)
        self.headers["X-Content-Type-Options"] = "nosniff"
        self.headers["X-Request-Id"] = request_id
        self.headers["Server"] = SERVER

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the head; aiohttp calls this again when the handler has returned."""
        if self.prepared:
            return self._payload_writer
        self._set_tcp_user_timeout(request)
        connection = request.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if request.version < (1, 1):
            self.headers["Connection"] = "close"
            self.force_close()
        return await web.StreamResponse.prepare(self, request)


async def get_events(exchange: Exchange) -> web.StreamResponse:
    """Stream a run's events after a cursor, until the run has ended and all is sent."""
    cursor = _read_cursor(exchange.request)
    run_id = exchange.run_id()
    hub = exchange.services.hub
    with hub.following(run_id) as run:
        tail = await hub.read(run_id, cursor)
        if tail is None:
            raise RunNotFound
        if tail.is_last and not tail.payloads:
            # EventSource comes back after an end; only this makes it stop.
            return web.Response(status=204, headers={"Cache-Control": "no-cache", "Server": SERVER})
        stream = EventStream(exchange.request_id)
        if exchange.request.method == "HEAD":
            return web.Response(headers=stream.headers)
        await stream.prepare(exchange.request)
        viewer = await _catch_up(exchange, hub, run, stream, tail, cursor)
        del tail  # this frame lives as long as the stream: it must not hold a page of events
    if viewer is not None:
        await _watch(exchange.request, hub, run, viewer)
    return stream


async def _catch_up(
    exchange: Exchange,
    hub: Hub,
    run: FollowedRun,
    stream: EventStream,
    tail: Tail,
    cursor: int,
) -> Viewer | None:
    """Send what is stored, at the reader's pace, then join the hub; None: there is nothing to wait for."""
    request = exchange.request
    transport = request.transport
    if transport is None:
        return None
    loop = asyncio.get_running_loop()
    viewer = Viewer(transport, is_chunked=request.version >= (1, 1), now=loop.time())
    viewer.cursor = cursor
    retry_ms = random.randint(*RETRY_MS)  # noqa: S311 - spreads load, keeps no secret
    data = f"retry: {retry_ms}\n\n".encode()
    try:
        while True:
            data += frame_events(tail.first_seq, tail.payloads)
            async with asyncio.timeout(STALLED_S):
                await stream.write(data)
            viewer.cursor = max(viewer.cursor, tail.end_seq)
            viewer.written_at = loop.time()
            exchange.services.metrics.events_sent.inc(len(tail.payloads))
            if tail.is_last or hub.is_draining:
                return None
            if hub.join(run, viewer, tail):
                return viewer
            data = b""
            tail = await hub.read(run.run_id, viewer.cursor) or tail
    except TimeoutError:
        exchange.services.metrics.count_drop(DropReason.STALLED)
        transport.abort()
    except ConnectionError:
        exchange.services.metrics.count_drop(DropReason.GONE)
    return None


async def _watch(request: web.Request, hub: Hub, run: FollowedRun, viewer: Viewer) -> None:
    """Wait while the hub writes; whichever comes first: the end, a drop, or the reader's leaving."""
    protocol = cast("GatewayProtocol", request.protocol)
    protocol.on_lost = lambda: hub.leave(run, viewer, DropReason.GONE)
    try:
        if not hub.is_draining:
            await viewer.until_ended()
    finally:
        protocol.on_lost = None
        hub.leave(run, viewer)


def _read_cursor(request: web.Request) -> int:
    """Read where the caller is: the larger of Last-Event-ID and afterSeq; -1: at the start."""
    cursor = fields.query_whole(request, "afterSeq", low=-1, high=fields.MAX_BIGINT - 1, default=-1)
    last_id = request.headers.get("Last-Event-ID")
    if not last_id:
        return cursor
    seen = fields.parse_whole(last_id, "Last-Event-ID", low=-1, high=fields.MAX_BIGINT - 1)
    return max(cursor, seen)
