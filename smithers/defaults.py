"""Defaults, and constants that all processes share."""

from typing import Final

DEFAULT_QUEUE: Final = "default"  # for a run whose workflow names none
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})  # this host only
HEARTBEAT_LIMIT_S: Final = 30  # of silence, after which a worker counts as dead

# Of a server's HTTP side.
HOST: Final = "127.0.0.1"
PORT: Final = 7331
MAX_BODY_BYTES: Final = 1_048_576
HEADERS_TIMEOUT_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 60.0
DRAIN_TIMEOUT_S: Final = 30.0
