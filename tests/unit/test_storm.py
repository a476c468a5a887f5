"""The storm's own reader: it sees what was sent however the bytes are cut up, and what was not in order."""

import asyncio
import hashlib
from typing import Any

import pytest

from bench.storm import Viewer, _Stream
from gateway.viewers import KEEP_ALIVE_CHUNK, as_chunk, frame_events

PAYLOADS = ['{"type":"RunStarted"}', '{"type":"NodeStarted"}', '{"type":"RunFinished"}']
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = (
    as_chunk(b"retry: 1000\n\n" + frame_events(0, PAYLOADS[:2]))
    + KEEP_ALIVE_CHUNK
    + as_chunk(frame_events(2, PAYLOADS[2:]))
    + b"0\r\n\r\n"
)


class Transport(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass


async def read(data: bytes, *, step: int, room: int | None = None) -> tuple[Viewer, str]:
    viewer = Viewer("r")
    stream = _Stream(viewer, b"", room)
    stream.connection_made(Transport())
    for start in range(0, len(data), step):
        stream.data_received(data[start : start + step])
    stream.connection_lost(None)
    return viewer, await stream.until_ended()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
async def test_a_stream_is_read_however_its_bytes_come(step: int) -> None:
    viewer, end = await read(HEAD + BODY, step=step)
    assert (end, viewer.last_seq, viewer.is_over, viewer.faults) == ("whole", 2, True, [])
    assert viewer.seen.digest() == hashlib.sha256("".join(PAYLOADS).encode()).digest()


async def test_a_cut_leaves_whole_events_only() -> None:
    for room in range(1, len(HEAD + BODY)):
        viewer, end = await read(HEAD + BODY, step=16, room=room)
        assert end in {"cut", "whole"}
        assert viewer.faults == []
        expected = "".join(PAYLOADS[: viewer.last_seq + 1]).encode()
        assert viewer.seen.digest() == hashlib.sha256(expected).digest()


@pytest.mark.parametrize("seqs", [(0, 2), (0, 0), (1,)], ids=["lost", "doubled", "not the first"])
async def test_what_is_not_in_order_is_a_fault(seqs: tuple[int, ...]) -> None:
    chunks = b"".join(as_chunk(frame_events(seq, PAYLOADS[:1])) for seq in seqs)
    viewer, end = await read(HEAD + chunks, step=1000)
    assert (end, len(viewer.faults)) == ("broken", 1)


async def test_an_answer_that_is_no_stream_is_a_fault_unless_it_says_to_come_back() -> None:
    for status, fault_count in (("404 Not Found", 1), ("503 Unavailable", 0)):
        viewer, end = await read(f"HTTP/1.1 {status}\r\n\r\n".encode(), step=1000)
        assert (end, len(viewer.faults), viewer.is_over) == (
            "refused",
            fault_count,
            bool(fault_count),
        )
