"""Ask a socket whether a Postgres server answers, as a client does: by starting a session.

That a process exists, or that it accepts, proves nothing: a frozen or starting server does both.
Speaks no more of the protocol than that (version 3.0; PostgreSQL 18 manual, section 54.7).
"""

import socket
import struct
from enum import StrEnum
from pathlib import Path
from typing import Final

ANSWER_LIMIT_S: Final = 5.0
PROTOCOL: Final = 3 << 16
CANNOT_CONNECT_NOW: Final = "57P03"  # it starts, recovers or stops
NO_SUCH_DATABASE: Final = "3D000"
TOO_MANY_CONNECTIONS: Final = "53300"


class Answer(StrEnum):
    """What a server said to a new session."""

    SILENCE = "silence"
    NOT_NOW = "not_now"
    NO_DATABASE = "no_database"
    READY = "ready"
    REFUSED = "refused"


def ask_server(socket_path: Path, *, user: str, database: str) -> Answer:
    """Start a session, end it, say how that went; no single wait is longer than ANSWER_LIMIT_S."""
    with socket.socket(socket.AF_UNIX) as session:
        session.settimeout(ANSWER_LIMIT_S)
        try:
            session.connect(str(socket_path))
            session.sendall(_write_startup(user=user, database=database))
            return _read_answer(session)
        except OSError:
            return Answer.SILENCE


def _write_startup(*, user: str, database: str) -> bytes:
    words = ("user", user, "database", database)
    body = struct.pack("!i", PROTOCOL) + b"".join(w.encode() + b"\0" for w in words) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def _read_answer(session: socket.socket) -> Answer:
    # AuthenticationOk comes before the server looks for the database: only ReadyForQuery is a yes.
    while True:
        kind, length = struct.unpack("!ci", _read_exactly(session, 5))
        body = _read_exactly(session, length - 4)
        if kind == b"Z":
            session.sendall(b"X\0\0\0\4")  # Terminate: otherwise the log tells of a lost client
            return Answer.READY
        if kind == b"E":
            return _judge_error(body)


def _judge_error(body: bytes) -> Answer:
    codes = [field[1:].decode() for field in body.split(b"\0") if field.startswith(b"C")]
    match codes:
        case [code] if code == CANNOT_CONNECT_NOW:
            return Answer.NOT_NOW
        case [code] if code == NO_SUCH_DATABASE:
            return Answer.NO_DATABASE
        case [code] if code == TOO_MANY_CONNECTIONS:
            return Answer.READY  # it lives, and who needs a connection will be told the same
        case _:
            return Answer.REFUSED


def _read_exactly(session: socket.socket, size_bytes: int) -> bytes:
    read = b""
    while len(read) < size_bytes:
        part = session.recv(size_bytes - len(read))
        if not part:
            raise ConnectionResetError
        read += part
    return read
