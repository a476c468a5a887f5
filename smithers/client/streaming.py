"""How a stream goes on after it was cut: a decision for both clients, without any I/O.

A stream ends for three reasons. The run has ended: the server says so by a 204 when it is asked again. The server drains,
or the connection was cut: asking again, after a pause, goes on after the last event that came, each once. Or nobody
answers any more: after a while that is the answer.
"""

import time
from email.utils import parsedate_to_datetime
from typing import Final

from smithers.client.errors import ServerUnreachable
from smithers.client.wire import Event

GIVE_UP_S: Final = 60.0  # a server that restarts is back sooner
SILENCE_S: Final = 25.0  # the server says something every ten seconds
IDLE_S: Final = 1.0  # what is stored comes without such pauses
MAX_PAUSE_S: Final = 5.0
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


class Resumption:
    """Where a stream is, and whether it goes on."""

    def __init__(self, after_seq: int) -> None:
        self.seq = after_seq
        self._failing_since: float | None = None
        self._failures = 0

    def take(self, event: Event) -> None:
        """Note that an event has come."""
        self.seq = event.seq
        self._failing_since = None
        self._failures = 0

    def pause_s(self, error: Exception | None) -> float:
        """Return how long to wait before asking again; raise ServerUnreachable after GIVE_UP_S without an event.

        `error`: what cut the stream, None where it ended cleanly.
        """
        if error is None:
            self._failing_since = None
            self._failures = 0
            return 0.05  # a server that drains has stopped listening: the next one is asked
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        self._failures += 1
        if now - self._failing_since > GIVE_UP_S:
            raise ServerUnreachable(
                f"the event stream was cut {self._failures} times and did not come back"
            ) from error
        return float(min(0.1 * 2**self._failures, MAX_PAUSE_S))


def stored_until_ms(date: str | None) -> float:
    """Return up to which time events are stored ones, by the Date header of the answer; it tells whole seconds."""
    if date is None:
        return float("inf")
    return (parsedate_to_datetime(date).timestamp() + 1) * 1000
