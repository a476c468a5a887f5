"""When and how an interrupted stream is resumed: the decision for both clients, without any I/O.

A stream ends for three reasons. The run has ended: the server answers the next request with a 204. The server drains, or
the connection broke: a new request, after a pause, resumes after the last event received, so that each comes once. Or no
server answers any more: then the client gives up after a while. A waiting run may be silent for days, and its connection
may break any number of times: only the time since a stream last began counts.
"""

import time
from typing import Final

from smithers.client.errors import ServerUnreachable, UnexpectedAnswer
from smithers.client.wire import Event

GIVE_UP_S: Final = 60.0  # a server that restarts is back sooner
SILENCE_S: Final = 25.0  # the server says something every ten seconds
MAX_PAUSE_S: Final = 5.0
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
MAX_DOUBLINGS: Final = 6  # of the pause, which is at its longest then
CONTENT_TYPE: Final = "text/event-stream"


class Resumption:
    """A stream's position, and whether it continues."""

    def __init__(self, after_seq: int) -> None:
        self.seq = after_seq
        self.is_over = False  # the server said that nothing comes after `seq`
        self._failing_since: float | None = None
        self._failures = 0

    def connected(self, content_type: str) -> None:
        """Record that a stream has begun: the server is reachable.

        Raises UnexpectedAnswer if the response is not an event stream.
        """
        if content_type.partition(";")[0].strip().lower() != CONTENT_TYPE:
            raise UnexpectedAnswer(
                f"the answer is {content_type or 'of no type'}, not an event stream"
            )
        self._failing_since = None

    def take(self, event: Event) -> None:
        """Record a received event."""
        self.seq = event.seq
        self._failures = 0

    def end(self) -> None:
        """Record that the run has ended and everything was received."""
        self.is_over = True

    def pause_s(self, error: Exception | None) -> float:
        """Return how long to wait before reconnecting; raise ServerUnreachable after GIVE_UP_S without a stream.

        `error`: what broke the stream, None if it ended cleanly.
        """
        if error is None:
            self._failures = 0
            return 0.05  # a draining server has stopped listening: another one will answer
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._failures += 1
        if now - self._failing_since > GIVE_UP_S:
            raise ServerUnreachable(
                f"the event stream broke {self._failures} times and could not be resumed"
            ) from error
        return float(min(0.1 * 2 ** min(self._failures, MAX_DOUBLINGS), MAX_PAUSE_S))


def unreadable(error: Exception) -> UnexpectedAnswer:
    """Return the error for a response that is not an event stream, or has too large an event; `error` is httpx's."""
    return UnexpectedAnswer(f"the event stream cannot be read: {error}")


def ended_early(run_id: str, seq: int, last_seq: int) -> UnexpectedAnswer:
    """Return the error for a stream that ended before its run's announced last event."""
    return UnexpectedAnswer(
        f"the event stream of run {run_id} ended after event {seq}, and its last one is {last_seq}"
    )
