"""Ask a Postgres socket whether a server answers, as a client does: by starting a session.

That a process exists, or that a connection is accepted, proves nothing: a stopped or starting server has both.
Speaks no more of the protocol (version 3.0, PostgreSQL manual chapter 54.7) than this needs.
"""

import socket
import struct
from enum import StrEnum
from pathlib import Path
from typing import Final

ANSWER_LIMIT_S: Final = 5.0
PROTOCOL_3_0: Final = 196608
CANNOT_CONNECT_NOW: Final = b"57P03"  # it starts, recovers or stops
NO_SUCH_DATABASE: Final = b"3D000"
TOO_MANY_CONNECTIONS: Final = b"53300"


class Answer(StrEnum):
    """What a server said to a new session."""

    SILENCE = "silence"
    NOT_NOW = "not_now"
    NO_DATABASE = "no_database"
    READY = "ready"
    REFUSED = "refused"


def ask_server(socket_path: Path, *, user: str, database: str) -> Answer:
    """Start a session, end it, and return how that went; waits ANSWER_LIMIT_S at most for each answer."""
    with socket.socket(socket.AF_UNIX) as session:
        session.settimeout(ANSWER_LIMIT_S)
        try:
            session.connect(str(socket_path))
            session.sendall(_startup_message(user=user, database=database))
            return _read_answer(session)
        except OSError:
            return Answer.SILENCE


def _startup_message(*, user: str, database: str) -> bytes:
    pairs = b"".join(part.encode() + b"\0" for part in ("user", user, "database", database))
    body = struct.pack("!i", PROTOCOL_3_0) + pairs + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def _read_answer(session: socket.socket) -> Answer:
    # AuthenticationOk comes before the server has looked for the database: only ReadyForQuery means yes.
    while True:
        kind, length = struct.unpack("!ci", _read_exactly(session, 5))
        body = _read_exactly(session, length - 4)
        if kind == b"Z":
            session.sendall(b"X\0\0\0\4")  # Terminate: else the server's log has a lost client
            return Answer.READY
        if kind == b"E":
            return _judge_error(body)


def _judge_error(body: bytes) -> Answer:
    fields = {field[:1]: field[1:] for field in body.split(b"\0")}
    match fields.get(b"C"):
        case code if code == CANNOT_CONNECT_NOW:
            return Answer.NOT_NOW
        case code if code == NO_SUCH_DATABASE:
            return Answer.NO_DATABASE
        case code if code == TOO_MANY_CONNECTIONS:
            return Answer.READY  # it lives; who wants a connection will be told the same
        case _:
            return Answer.REFUSED


def _read_exactly(session: socket.socket, size_bytes: int) -> bytes:
    parts = b""
    while len(parts) < size_bytes:
        part = session.recv(size_bytes - len(parts))
        if not part:
            raise ConnectionResetError
        parts += part
    return parts
