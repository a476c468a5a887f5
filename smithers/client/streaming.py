"""How a stream goes on after it was cut: a decision for both clients, without any I/O.

A stream ends for three reasons. The run has ended: the server says so by a 204 when it is asked again. The server drains,
or the connection was cut: asking again, after a pause, goes on after the last event that came, each once. Or nobody
answers any more: after a while that is the answer. A run that waits may be silent for days, and its connection be cut any
number of times: only how long no stream has begun counts.
"""

import time
from typing import Final

from smithers.client.errors import ServerUnreachable, UnexpectedAnswer
from smithers.client.wire import Event

GIVE_UP_S: Final = 60.0  # a server that restarts is back sooner
SILENCE_S: Final = 25.0  # the server says something every ten seconds
MAX_PAUSE_S: Final = 5.0
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
MAX_DOUBLINGS: Final = 6  # of the pause; by then it is at its longest
CONTENT_TYPE: Final = "text/event-stream"


class Resumption:
    """Where a stream is, and whether it goes on."""

    def __init__(self, after_seq: int) -> None:
        self.seq = after_seq
        self.is_over = False  # the server says that nothing comes after `seq`
        self._failing_since: float | None = None
        self._failures = 0

    def connected(self, content_type: str) -> None:
        """Note that a stream has begun: the server is there, whatever it has to say.

        Raises UnexpectedAnswer where something else than a stream has begun.
        """
        if content_type.partition(";")[0].strip().lower() != CONTENT_TYPE:
            raise UnexpectedAnswer(
                f"what answers is {content_type or 'of no type'}, and no event stream"
            )
        self._failing_since = None

    def take(self, event: Event) -> None:
        """Note that an event has come."""
        self.seq = event.seq
        self._failures = 0

    def end(self) -> None:
        """Note that the run has ended and all of it has come."""
        self.is_over = True

    def pause_s(self, error: Exception | None) -> float:
        """Return how long to wait before asking again; raise ServerUnreachable after GIVE_UP_S without a stream.

        `error`: what cut the stream, None where it ended cleanly.
        """
        if error is None:
            self._failures = 0
            return 0.05  # a server that drains has stopped listening: the next one is asked
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._failures += 1
        if now - self._failing_since > GIVE_UP_S:
            raise ServerUnreachable(
                f"the event stream was cut {self._failures} times and did not come back"
            ) from error
        return float(min(0.1 * 2 ** min(self._failures, MAX_DOUBLINGS), MAX_PAUSE_S))


def unreadable(error: Exception) -> UnexpectedAnswer:
    """Return the error for a stream that is none of events, or has one that is too large; `error` is httpx's."""
    return UnexpectedAnswer(f"the event stream cannot be read: {error}")


def ended_early(run_id: str, seq: int, last_seq: int) -> UnexpectedAnswer:
    """Return the error for a stream that ended before the last event that its run was said to have."""
    return UnexpectedAnswer(
        f"the event stream of run {run_id} ended after event {seq}, and its last one is {last_seq}"
    )
