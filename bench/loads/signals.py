"""Signals to runs that take them one after another: half of them before anybody waits, each sent twice with its id."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from bench import raw
from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import read_history, until_counted, until_ended
from bench.report import Goal

IN_FLIGHT = 16  # pairs of connections, one to each gateway

GOALS = (
    Goal("signals", "signal_count", "signals, each sent twice at once, to two gateways"),
    Goal("signals", "run_count", "… to so many runs, half of them before the wait exists"),
    Goal("signals", "lost_count", "lost", 0),
    Goal("signals", "doubled_count", "doubled: two numbers for one id, or taken twice", 0),
    Goal("signals", "disordered_count", "taken out of the order of the answers' seq", 0),
    Goal("signals", "fault_count", "histories with a gap, a node finished twice, or no end", 0),
    Goal("signals", "signals_per_s", "signals a second (each of them two requests)"),
    Goal("signals", "raw_commits_per_s", "raw: bare commits a second, one connection"),
)


@dataclass
class Mailbox:
    """What was answered for one run's signals."""

    run_id: str
    by_seq: dict[int, set[int]] = field(default_factory=dict)  # what was sent, by the answers' seq
    doubled_count: int = 0

    def record(self, number: int, seqs: set[int]) -> None:
        self.doubled_count += len(seqs) - 1
        for seq in seqs:
            self.by_seq.setdefault(seq, set()).add(number)


def signals(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    runs, each = (10, 20) if is_quick else (100, 100)
    with Site(gateways=2) as site:
        return asyncio.run(_measure(site, runs, each))


async def _measure(site: Site, run_count: int, each: int) -> dict[str, Any]:
    limits = await raw.measure(site.dsn, commit_count=300, group_size=1)
    async with AsyncExitStack() as stack:
        sql = await stack.enter_async_context(asyncpg.create_pool(site.dsn, min_size=1, max_size=2))
        pairs = [
            [await stack.enter_async_context(Connection(port)) for port in site.ports]
            for _ in range(IN_FLIGHT)
        ]
        boxes = [
            Mailbox(await start_run(pairs[0][0], "inbox", {"count": each}))
            for _ in range(run_count)
        ]
        parked = "SELECT count(*) FROM smithers.runs WHERE status = 'waiting-approval'"
        await until_counted(sql, run_count, parked)
        took_s = await _send(pairs, boxes, range(each // 2))
        opening = asyncio.create_task(_open(site.port, boxes))
        took_s += await _send(pairs, boxes, range(each // 2, each))
        await opening
        for box in boxes:
            await until_ended(sql, box.run_id)
        result = await _compare(sql, boxes, each)
    return {
        "signal_count": run_count * each,
        "run_count": run_count,
        "signals_per_s": run_count * each / took_s,
        "raw_commits_per_s": 1000 / limits["commit_mean_ms"],
        **result,
    }


async def _send(pairs: list[list[Connection]], boxes: list[Mailbox], numbers: range) -> float:
    """Send these numbers to every run, mixed."""
    letters = [(box, number) for box in boxes for number in numbers]
    random.Random(5).shuffle(letters)
    waiting: Iterator[tuple[Mailbox, int]] = iter(letters)

    async def send(pair: list[Connection]) -> None:
        for box, number in waiting:
            path = f"/v1/runs/{box.run_id}/signals/letter"
            body = {"data": number, "id": f"letter-{number}"}
            answers = await asyncio.gather(*[one.call("POST", path, body) for one in pair])
            box.record(number, {answer["seq"] for answer in answers})

    began = time.perf_counter()
    await asyncio.gather(*[send(pair) for pair in pairs])
    return time.perf_counter() - began


async def _open(port: int, boxes: list[Mailbox]) -> None:
    """Let the runs begin to wait, while the second half is on its way."""
    async with Connection(port) as connection:
        for box in boxes:
            await connection.call("POST", f"/v1/runs/{box.run_id}/nodes/open/approve", {})


async def _compare(sql: asyncpg.Pool, boxes: list[Mailbox], each: int) -> dict[str, int]:
    lost = doubled = disordered = fault_count = 0
    for box in boxes:
        rows = await sql.fetch(
            """
            SELECT iteration, output FROM smithers.nodes
            WHERE run_id = $1 AND node_id = 'letter' AND output IS NOT NULL ORDER BY iteration
            """,
            box.run_id,
        )
        taken = [json.loads(row["output"]) for row in rows]
        answered = [number for seq in sorted(box.by_seq) for number in sorted(box.by_seq[seq])]
        lost += len(set(range(each)) - set(taken))
        doubled += box.doubled_count + len(taken) - len(set(taken))
        disordered += sum(a != b for a, b in zip(taken, answered, strict=False))
        fault_count += len((await read_history(sql, box.run_id)).faults())
    return {
        "lost_count": lost,
        "doubled_count": doubled,
        "disordered_count": disordered,
        "fault_count": fault_count,
    }
