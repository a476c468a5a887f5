"""Answer with a run's events as server-sent events: the stored ones, then live ones, each once, in order.

All refusals come before the headers are sent. After that only two things can happen: the clean end of
the stream after a whole event, or a closed connection.
"""

import asyncio
import random
import socket
from types import MappingProxyType
from typing import Annotated, Final, assert_never

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp_sse import EventSourceResponse
from pydantic import Field

from gateway.envelope import SERVER
from gateway.exchange import Exchange
from gateway.fields import MAX_BIGINT, AnyBody, Digits, Headers, Query
from gateway.hub import FollowedRun, Hub
from gateway.protocol import GatewayProtocol
from gateway.responses import Event, StreamToken
from gateway.routing import Media
from gateway.viewers import STALLED_S, Ending, ReadersPace, Viewer, frame_events
from smithers.ids import RunId
from smithers.store.reads import run_exists
from smithers.store.refusals import RunNotFound
from smithers.store.tails import Tail
from smithers.telemetry.names import DropReason

ENDED_HEADERS: Final = MappingProxyType(
    {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Server": SERVER}
)
SEND_BUFFER_BYTES: Final = 64 * 1024
UNACKNOWLEDGED_MS: Final = int(STALLED_S * 1000)  # then the kernel ends the connection
RETRY_MS: Final = (1_000, 3_000)  # with jitter, so that no stampede follows a deployment


class EventStream(EventSourceResponse):
    """aiohttp-sse's response with our headers, and without its task for each viewer: the hub's timer pings all.

    A write waits until its reader has taken it, except for what fits into the transport's buffer.
    """

    _send_headers_immediately = False  # sent with the first events, in one write

    def __init__(self, request_id: str) -> None:
        super().__init__(sep="\n", send_timeout=None)  # _limit_connection has it
        self.headers.update(
            {"X-Content-Type-Options": "nosniff", "X-Request-Id": request_id, "Server": SERVER}
        )
        retry_ms = random.uniform(*RETRY_MS)  # noqa: S311 - spreads load, keeps no secret
        self._preface = f"retry: {retry_ms:.0f}\n\n".encode()

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers; aiohttp calls this again when the handler has returned."""
        if self.prepared:
            return self._payload_writer
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the reader left before the head was sent")
        _limit_connection(transport)
        if request.version < (1, 1):
            self.headers["Connection"] = "close"
            self.force_close()
        return await web.StreamResponse.prepare(self, request)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write whole events; with none, wait for those before."""
        await super().write(self._take_preface() + data)
        # aiohttp waits only for its own writes, and the hub bypasses it.
        if self._payload_writer is not None:
            await self._payload_writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """Write the last events, and the end with them."""
        await super().write_eof(self._take_preface() + data)

    def _take_preface(self) -> bytes:
        preface, self._preface = self._preface, b""
        return preface


def _limit_connection(transport: asyncio.Transport) -> None:
    """Limit the kernel's share of a slow reader's memory, and how long it waits for a reader that is gone.

    Both also hold for the connection's next requests: who acknowledges nothing for so long is gone for them, too.
    """
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if connection.family in {socket.AF_INET, socket.AF_INET6}:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


class EventsQuery(Query):
    """Where a stream begins."""

    after_seq: Digits = Field(-1, ge=-1, le=MAX_BIGINT - 1, description="-1: at the start")


class EventsHeaders(Headers):
    """The position of a browser's EventSource when its stream ended."""

    last_event_id: Digits = Field(
        -1,
        alias="Last-Event-ID",
        ge=-1,
        le=MAX_BIGINT - 1,
        description="as `afterSeq`; the larger of the two counts",
    )


async def post_stream_token(exchange: Exchange, body: AnyBody) -> StreamToken:  # noqa: ARG001 - must be an object
    """Create a token for a run's event stream, for its URL as `?token=`.

    For browsers: an EventSource cannot send headers. The token opens the stream of this run only, on any gateway of the same
    database, for five minutes; a stream that is open by then goes on. An EventSource that reconnects later
    gets a 401 and stops: create a new token then, and resume with `afterSeq`.
    """
    run_id = exchange.run_id()
    if not await run_exists(exchange.database.pool, run_id):
        raise RunNotFound
    token, expires_ms = await exchange.services.stream_tokens.make(run_id)
    return {"token": token, "expiresAtMs": expires_ms}


async def get_events(
    exchange: Exchange, query: EventsQuery, headers: EventsHeaders
) -> Annotated[
    web.StreamResponse,
    Media(
        ("text/event-stream",),
        events=Event,
        empty={204: "The run has ended and the caller has seen its last event."},
    ),
]:
    """Stream a run's events after a cursor: the stored ones, then live ones, until the run has ended and all are sent.

    Server-sent events, each once, in order, without gaps:

        id: 0
        event: smithers
        data: {"type":"RunStarted","runId":"r","timestampMs":1795308128325,"correlation":{…}}

    `id` is the event's number in the run, so that an EventSource goes on where it was; `data` is one line of JSON, see
    Event. A comment comes every ten seconds of silence. A reader that takes nothing for 30 to 60 s is dropped; one
    that is slow gets the events at its own pace. Every stream ends, after a whole event, when the server drains, and soon
    after its token is removed or expires: come back with the last id. A run that only waits keeps its stream open.
    """
    run_id, cursor = exchange.run_id(), max(query.after_seq, headers.last_event_id)
    del query, headers  # this frame lives as long as the stream
    with exchange.services.load.stream(run_id, exchange.credential):
        return await _stream(exchange, run_id, cursor)


async def _stream(exchange: Exchange, run_id: RunId, cursor: int) -> web.StreamResponse:
    hub = exchange.database.hub
    with hub.following(run_id) as run:
        tail = await hub.read(run_id, cursor)
        if tail is None:
            raise RunNotFound
        if not tail.payloads and tail.is_last:
            # EventSource reconnects after an end; only this makes it stop.
            return web.Response(status=204, headers=ENDED_HEADERS)
        stream = EventStream(exchange.request_id)
        if exchange.request.method == "HEAD":
            return web.Response(headers=stream.headers)
        await stream.prepare(exchange.request)
        viewer = await _catch_up(exchange, hub, run, stream, tail, cursor)
        del tail  # this frame lives as long as the stream: it must not hold a page of events
    while viewer is not None:
        ending = await _watch(exchange.request, hub, run, viewer)
        match ending:
            case Ending.LOST:
                break
            case Ending.WHOLE:
                await _write(exchange, stream, viewer.last_words, is_last=True)
                break
            case Ending.BEHIND:
                with hub.following(run_id) as run:
                    viewer = await _catch_up_again(exchange, hub, run, stream, viewer.cursor)
            case _:
                assert_never(ending)
    return stream


async def _catch_up_again(
    exchange: Exchange, hub: Hub, run: FollowedRun, stream: EventStream, cursor: int
) -> Viewer | None:
    """Continue with a reader that was too slow for the hub: first it reads what was written."""
    if not await _write(exchange, stream, b"", is_last=False):
        return None
    tail = await hub.read(run.run_id, cursor)
    return None if tail is None else await _catch_up(exchange, hub, run, stream, tail, cursor)


async def _catch_up(
    exchange: Exchange,
    hub: Hub,
    run: FollowedRun,
    stream: EventStream,
    tail: Tail,
    cursor: int,
) -> Viewer | None:
    """Send stored events at the reader's pace, then join the hub; None: there is nothing to wait for."""
    request = exchange.request
    transport = request.transport
    if transport is None:
        return None
    loop = asyncio.get_running_loop()
    viewer = Viewer(
        transport,
        credential=exchange.credential,
        cursor=cursor,
        is_chunked=request.version >= (1, 1),
        now=loop.time(),
    )
    while True:
        data = frame_events(tail.first_seq, tail.payloads)
        is_last = tail.is_last or not hub.may_go_on(viewer)
        if not await _write(exchange, stream, data, is_last=is_last):
            return None
        viewer.cursor = max(viewer.cursor, tail.end_seq)
        viewer.written_at = loop.time()
        exchange.services.metrics.events_sent.inc(len(tail.payloads))
        if is_last:
            return None
        if hub.join(run, viewer, tail):
            return viewer
        following = await hub.read(run.run_id, viewer.cursor)
        if following is None:  # retention has removed the run: a reconnecting client gets an error
            return None
        tail = following


async def _write(exchange: Exchange, stream: EventStream, data: bytes, *, is_last: bool) -> bool:
    """Write at the reader's pace, the end of the stream in the same write as its last events; False: the reader is gone."""
    metrics, transport = exchange.services.metrics, exchange.request.transport
    if transport is None:
        metrics.count_drop(DropReason.GONE)
        return False
    try:
        with ReadersPace(transport):
            await (stream.write_eof(data) if is_last else stream.write(data))
    except TimeoutError:
        metrics.count_drop(DropReason.STALLED)
    except ConnectionError:
        metrics.count_drop(DropReason.GONE)
    else:
        return True
    return False


async def _watch(request: web.BaseRequest, hub: Hub, run: FollowedRun, viewer: Viewer) -> Ending:
    """Wait while the hub writes, until the end, a drop, or the reader's leaving or falling behind."""
    protocol = request.protocol
    is_gone = False
    # Below an application on aiohttp's own protocol the hub's timer notices.
    if isinstance(protocol, GatewayProtocol):
        protocol.on_lost = lambda: hub.leave(run, viewer, DropReason.GONE)
        is_gone = protocol.has_heard_all
    try:
        is_over = is_gone or not hub.may_go_on(viewer)
        return Ending.WHOLE if is_over else await viewer.until_ended()
    finally:
        if isinstance(protocol, GatewayProtocol):
            protocol.on_lost = None
        hub.leave(run, viewer)
