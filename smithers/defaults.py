"""What all processes take for granted: what holds where nothing else is said, and what is the same for all of them."""

from typing import Final

DEFAULT_QUEUE: Final = "default"  # of a run whose workflow names none
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})  # lead to this host alone
HEARTBEAT_LIMIT_S: Final = 30  # of silence, after which a worker counts as dead
