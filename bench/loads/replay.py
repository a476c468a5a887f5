"""A run with very many events: how long until a viewer has all of them, and does it see what comes next?"""

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any

import asyncpg
import uvloop

from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import until_counted
from bench.meters import Meter
from bench.report import Goal
from bench.server import FLOWS_DIR

MANY = 10
SEQ = re.compile(rb"(?:^|\n)id: (\d+)\n")
PARKED = "SELECT count(*) FROM smithers.runs WHERE run_id = $1 AND status = 'waiting-approval' AND owner_id IS NULL"

GOALS = (
    Goal("replay", "event_count", "events of one run"),
    Goal("replay", "write_s", "… written by its tasks in, s"),
    Goal("replay", "replay_s", "GET → the last of them seen, s", 5),
    Goal("replay", "raw_s", "raw: the same rows by one SELECT, s"),
    Goal("replay", "gateway_s", "… CPU of the gateway, s"),
    Goal("replay", "many_s", "ten viewers at once: all have all, s"),
    Goal("replay", "tail_ms", "GET afterSeq before the last 100 → the last seen, ms"),
    Goal("replay", "followed_ms", "… decided → the next event seen, ms"),
    Goal("replay", "incomplete_count", "viewers with an event missing or twice", 0),
)


def replay(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    with Site(flows=FLOWS_DIR) as site:
        return uvloop.run(_measure(site, 5_000 if is_quick else 50_000))


async def _measure(site: Site, count: int) -> dict[str, Any]:
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql,
        Connection(site.port) as connection,
    ):
        began = time.perf_counter()
        run_id = await start_run(connection, "talk", {"lines": count})
        await until_counted(sql, 1, PARKED, run_id)
        write_s = time.perf_counter() - began
        last = await sql.fetchval("SELECT last_seq FROM smithers.runs WHERE run_id = $1", run_id)
        began = time.perf_counter()
        await sql.fetch(
            "SELECT payload FROM smithers.events WHERE run_id = $1 ORDER BY seq", run_id
        )
        raw_s = time.perf_counter() - began
        with Meter(site) as meter:
            alone = await ReplayViewer.open(site.port, run_id, -1)
            replay_s = await alone.until(last)
        many = [await ReplayViewer.open(site.port, run_id, -1) for _ in range(MANY)]
        many_s = max(await asyncio.gather(*[viewer.until(last) for viewer in many]))
        late = await ReplayViewer.open(site.port, run_id, last - 100)
        tail_s = await late.until(last)
        began = time.perf_counter()
        await connection.call("POST", f"/v1/runs/{run_id}/nodes/more/approve", {})
        viewers = [alone, *many, late]
        await asyncio.gather(*[viewer.until(last + 1) for viewer in viewers])
        followed_s = time.perf_counter() - began
        incomplete = [viewer for viewer in viewers if not viewer.is_complete()]
        for viewer in viewers:
            viewer.writer.close()
    return {
        "event_count": last + 1,
        "write_s": write_s,
        "replay_s": replay_s,
        "raw_s": raw_s,
        "gateway_s": meter.used_s["gateway"],
        "many_s": many_s,
        "tail_ms": tail_s * 1000,
        "followed_ms": followed_s * 1000,
        "incomplete_count": len(incomplete),
    }


@dataclass
class ReplayViewer:
    """A stream that is read as far as it is asked to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    after_seq: int
    began: float
    seen: bytearray

    @classmethod
    async def open(cls, port: int, run_id: str, after_seq: int) -> "ReplayViewer":
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = f"/v1/runs/{run_id}/events?afterSeq={after_seq}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return cls(reader, writer, after_seq, began, bytearray())

    async def until(self, seq: int) -> float:
        """Read until an event has come; return the seconds since the stream was asked for."""
        mark = f"id: {seq}\n".encode()
        looked_to = 0
        async with asyncio.timeout(60):
            while self.seen.find(mark, looked_to) < 0:
                looked_to = max(0, len(self.seen) - len(mark))
                data = await self.reader.read(1 << 18)
                assert data, "the stream ended too early"
                self.seen += data
        return time.perf_counter() - self.began

    def is_complete(self) -> bool:
        seqs = [int(seq) for seq in SEQ.findall(self.seen)]
        return seqs == list(range(self.after_seq + 1, self.after_seq + 1 + len(seqs)))
