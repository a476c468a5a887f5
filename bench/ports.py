"""Ports for processes that cannot be told to take any: found first, and taken later."""

import secrets
import socket
from typing import Final

# Below those that the kernel hands out by itself: nobody is given one of these between the finding and the taking.
FIRST: Final = 20_000
COUNT: Final = 12_000


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on."""
    while True:
        port = FIRST + secrets.randbelow(COUNT)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
