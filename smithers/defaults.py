"""Defaults, and constants that all processes share."""

from typing import Final

DEFAULT_QUEUE: Final = "default"  # for a run whose workflow names none
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})  # this host only
HEARTBEAT_LIMIT_S: Final = 30  # of silence, after which a worker counts as dead
