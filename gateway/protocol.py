"""aiohttp's HTTP/1.1 connection with deadlines, and with our envelope for malformed requests.

aiohttp has no deadline for a request's headers or body, none for a caller that does not read its answer, and its own page
for a malformed request quotes the request, token included. Here headers must be complete `headers_timeout_s` after their
first byte (or after the connection was made), a body `request_timeout_s` after its request's first byte, and a caller must
take something of its answer every STALLED_S. Uses names that aiohttp keeps private: its version is bounded, and tests check
each of these promises.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import StreamReader

from gateway.envelope import new_request_id, problem
from gateway.errors import (
    BodyTooSlow,
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    UriTooLong,
)
from gateway.load import Load
from gateway.settings import GatewaySettings
from smithers.listener import BACKLOG

LOG: Final = structlog.get_logger(__name__)
# Descriptors that accept, each one connection in a turn of the loop. All of them try for each new connection: 0.3 µs each.
ACCEPTED_COUNT: Final = 16
KEEP_ALIVE_S: Final = 75.0  # above the idle limits of nginx and load balancers: they close first
HURRY_S: Final = 0.05  # 0 would be for ever
SURPLUS_HEADERS_S: Final = 2.0
MAX_LINE_BYTES: Final = 8_190
MAX_HEADER_BYTES: Final = 8_191  # different, so that the two can be distinguished
MAX_HEADERS: Final = 128
_TOO_MANY_HEADERS: Final = "Too many headers received"  # aiohttp's text: it has no class for this
# How long the rest of a refused body is read, so that its sender sees the answer.
LINGER_S: Final = 2.0
# A connection is cut when nothing of an answer was taken for so long, or for up to twice as long. Streams look after their
# readers themselves.
STALLED_S: Final = 30.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class GatewayProtocol(web.RequestHandler):
    """One connection."""

    __slots__ = (
        "_answered",
        "_began_at",
        "_body",
        "_deadline",
        "_headers_s",
        "_load",
        "_reader_deadline",
        "_request_s",
        "has_heard_all",
        "is_surplus",
        "on_lost",
    )

    def __init__(
        self, *args: Any, load: Load, headers_s: float, request_s: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._load = load
        self.is_surplus = False  # beyond the limit: its first answer is its last
        # The caller sends no more.
        self.has_heard_all = False
        self._headers_s = headers_s
        self._request_s = request_s
        self._deadline: asyncio.TimerHandle | None = None
        self._began_at: float | None = None  # when the first byte of the current request arrived
        self._body: StreamReader | None = None  # of the newest request, while it is incomplete
        self._answered: StreamReader | None = None  # the body of the newest request with an answer
        self._reader_deadline: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None  # told when the connection is gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Expect a first request in time; sooner if there are too many connections."""
        super().connection_made(transport)
        self._load.connections += 1
        self.is_surplus = self._load.has_surplus
        if self._load.is_flooded:
            self.force_close()
            return
        if self.is_surplus:
            self._headers_s = min(self._headers_s, SURPLUS_HEADERS_S)
        self._expect_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Notify the stream on this connection at once."""
        self._disarm()
        if self._reader_deadline is not None:
            self._reader_deadline.cancel()
        self._load.connections -= 1
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Keep the deadlines, around what aiohttp does."""
        count = self._request_count
        super().data_received(data)
        if self._request_count != count and self._messages:
            # A message within a body is aiohttp's sign of invalid HTTP; it leaves the body's reader waiting.
            self._fail_body(web.RequestPayloadError("the body is not well-formed"))
            self._body = self._messages[-1][1]  # headers are complete
            self._disarm()
            if self._body.is_eof():
                self._body = self._began_at = None
            else:
                self._expect_body()
        elif self._body is not None:
            if self._body.is_eof():
                self._disarm()
                self._body = self._began_at = None
        elif data and self._deadline is None and self._request_count == count:
            self._expect_headers()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio reads what aiohttp does not say
        """Keep the connection of a caller that sends no more until its whole requests are answered; say whether it is kept.

        A client of a live stream disconnects in this way, too: a closed connection looks the same.
        """
        self.has_heard_all = True
        if self._is_idle or self._body is not None or self.on_lost is not None:
            return False
        if not self._messages:
            self.close()  # aiohttp's: as soon as the current answer is sent
        return True

    def pause_writing(self) -> None:
        """Set a deadline for the client to read an answer that exceeds the buffers."""
        super().pause_writing()
        # A request that is still handled is a stream's.
        if self.transport is not None and self._current_request is None:
            self._expect_reader(self.transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's, and it quotes the request
    ) -> web.StreamResponse:
        """Answer malformed requests and uncaught exceptions in our envelope."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            # An answer has begun, or nobody is there: the only honest signal is a connection that is cut. Not logged:
            # callers come and go.
            raise ConnectionResetError("the connection cannot be answered") from exc
        if status < 500:
            response = problem(_malformed(exc))
        else:
            request_id = new_request_id()
            LOG.error("request_failed_outside_its_handler", request_id=request_id, exc_info=exc)
            response = problem(RuntimeError())
            response.headers["X-Request-Id"] = request_id
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Give every answer a request id, and close the connection after the last answer that is owed."""
        if not resp.prepared and "X-Request-Id" not in resp.headers:
            resp.headers["X-Request-Id"] = new_request_id()
        if self.has_heard_all and not self._messages:
            resp.force_close()
        if self._upgraded and not self._messages:
            # Only HTTP is spoken here. aiohttp would read on behind the request, and past our deadlines.
            self._message_tail = b""
            resp.force_close()
        self._answered = request.content
        finished = await super().finish_response(request, resp, start_time)
        # What is left may be too little to pause the transport, and would keep a connection open that is to be closed.
        if self.transport is not None:
            self._expect_reader(self.transport)
        return finished

    @property
    def _is_idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def _expect_headers(self) -> None:
        self._began_at = self._loop.time()
        self._deadline = self._loop.call_later(self._headers_s, self._headers_late)

    def _expect_body(self) -> None:
        began_at = self._loop.time() if self._began_at is None else self._began_at
        self._deadline = self._loop.call_at(began_at + self._request_s, self._body_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _headers_late(self) -> None:
        self._deadline = None
        if not self._is_idle:  # the previous request is being answered
            self.close()
            return
        if self.transport is not None:
            self.transport.write(_late_answer())
        self.force_close()

    def _body_late(self) -> None:
        self._deadline = None
        self._fail_body(BodyTooSlow())

    def _fail_body(self, error: Exception) -> None:
        """Fail the reader of the newest body: the rest will not come."""
        # The rest of an answered request's body is discarded, for a short time.
        if self._body is None or self._body.is_eof() or self._body is self._answered:
            return
        self._lingering_time = 0.0
        self._body.set_exception(error)

    def _expect_reader(self, transport: asyncio.Transport) -> None:
        """Set a deadline for progress of the buffered data; an idle connection costs no timer."""
        if self._reader_deadline is not None:
            self._reader_deadline.cancel()
            self._reader_deadline = None
        left_bytes = transport.get_write_buffer_size()
        if left_bytes:
            self._reader_deadline = self._loop.call_later(
                STALLED_S, self._look_after_reader, transport, left_bytes
            )

    def _look_after_reader(self, transport: asyncio.Transport, left_bytes: int) -> None:
        if transport.get_write_buffer_size() == left_bytes:
            transport.abort()
        else:
            self._expect_reader(transport)


class GatewayServer(web.Server):
    """Makes a connection's protocol; unlike aiohttp's, a wrong keyword fails."""

    def __init__(self, handler: Handler, settings: GatewaySettings, load: Load) -> None:
        super().__init__(handler)
        self._options: dict[str, Any] = {
            "loop": self._loop,
            "load": load,
            "headers_s": settings.headers_timeout_s,
            "request_s": settings.request_timeout_s,
            "keepalive_timeout": KEEP_ALIVE_S,
            "lingering_time": min(LINGER_S, settings.request_timeout_s),
            "auto_decompress": False,
            "access_log": None,
            "max_line_size": MAX_LINE_BYTES,
            "max_field_size": MAX_HEADER_BYTES,
            "max_headers": MAX_HEADERS,
        }

    def __call__(self) -> GatewayProtocol:
        """Make the protocol of a new connection."""
        return GatewayProtocol(self, **self._options)


class GatewayRunner(web.ServerRunner):
    """Serves every request with one handler; aiohttp's applications would find it by a path of their own first."""

    def __init__(
        self, handler: Handler, settings: GatewaySettings, load: Load, *, drain_s: float
    ) -> None:
        """`drain_s`: how long open requests may take when cleaning up."""
        # aiohttp waits for its time-out up to twice.
        super().__init__(GatewayServer(handler, settings, load), shutdown_timeout=drain_s / 2)

    async def listen(self, listener: socket.socket) -> None:
        """Serve on a socket, which the caller closes when the sites are stopped.

        uvloop accepts one connection for each descriptor in a turn of the loop. The turns of a busy gateway are long: with
        a single descriptor, new callers, health checks too, would wait in the kernel for minutes instead of being refused.
        """
        for _ in range(ACCEPTED_COUNT):
            await web.SockSite(self, listener.dup(), backlog=BACKLOG).start()

    def hurry(self) -> None:
        """Stop waiting for open requests when cleaning up."""
        self._shutdown_timeout = HURRY_S


def _malformed(error: BaseException | None) -> GatewayError:
    if isinstance(error, BadHttpMessage) and error.message == _TOO_MANY_HEADERS:
        return HeadersTooLarge(f"There are more than {MAX_HEADERS} headers.")
    if not isinstance(error, LineTooLong):
        return InvalidRequest("The request is not well-formed HTTP.")
    # Only the limit shows which line it was; the rest of the error quotes the line.
    return UriTooLong() if error.args[1] == MAX_LINE_BYTES else HeadersTooLarge()


def _late_answer() -> bytes:
    response = problem(BodyTooSlow())
    response.headers["X-Request-Id"] = new_request_id()
    body = response.body
    assert isinstance(body, bytes)
    head = [
        "HTTP/1.1 408 Request Timeout",
        *(f"{name}: {value}" for name, value in response.headers.items()),
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
