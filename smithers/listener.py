"""The socket that takes connections: opened, and closed without cutting anybody off.

Closing it resets each connection that nobody has accepted yet, and each whose handshake is under way, though its caller has
sent a request, or is about to: a POST that a balancer must not send again. So before it is closed, no handshake begins any
more, those under way have time to end, and what they have made is accepted.
"""

import asyncio
import socket
import struct
from array import array
from contextlib import suppress
from typing import Final

BACKLOG: Final = 1024  # connections that wait in the kernel
# The slowest way to a balancer, there and back. A caller who comes within this time is delayed: its kernel asks again after
# a second, and is refused.
HANDSHAKE_S: Final = 0.01
# Linux's <asm-generic/socket.h>; its <linux/filter.h> has the form of an instruction: code, two jumps, operand.
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = struct.Struct("HBBI")
_PROGRAM: Final = struct.Struct("HP")
# Drops what begins a handshake: load the byte of the TCP header with the flags; if SYN is among them, drop; keep all of it.
_DROP_SYN: Final = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address; 0 is any free port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=False)


async def end_handshakes(listener: socket.socket) -> None:
    """Let no more handshakes begin, in none of the processes that share the socket, and wait for those under way.

    Where the kernel knows no filters, they go on.
    """
    program = array("B", b"".join(_INSTRUCTION.pack(*each) for each in _DROP_SYN))
    address, _ = program.buffer_info()
    with suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(_DROP_SYN), address)
        )
        await asyncio.sleep(HANDSHAKE_S)


def accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Accept the connections that wait in the kernel."""
    listener.setblocking(False)
    waiting = []
    with suppress(OSError):  # none is left, or there are no descriptors
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            waiting.append(connection)
    return waiting
