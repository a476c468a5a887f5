"""Events to very many viewers of several runs at a steady pace: how long after its commit does each of them see one?"""

import asyncio
import re
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from bench.client import Connection, Stream, start_run
from bench.load import delivery
from bench.loads.site import Site
from bench.meters import Meter
from bench.report import Goal
from bench.server import FLOWS_DIR
from bench.workloads import bare_fan_out
from gateway.load import raise_file_limit

RUNS = 10
PAUSE_S = 0.2  # a node of each run; two events each
EVENTS_PER_NODE = 2
SKIPPED_S = 1.0
SEQ = re.compile(rb"(?:^|\n)id: (\d+)\n")

GOALS = (
    Goal("fanout", "viewer_count", "viewers of 10 runs, 10 events a second each"),
    Goal("fanout", "delivered_per_s", "delivered events/s", 10_000, is_floor=True),
    Goal("fanout", "p50_ms", "… commit → viewer, p50 ms"),
    Goal("fanout", "p99_ms", "… p99 ms", 1_000),
    Goal("fanout", "raw_p99_ms", "raw: a bare fan-out at this rate, p99 ms"),
    Goal("fanout", "gateway_us_per_event", "… CPU of the gateway, µs an event and viewer"),
    Goal("fanout", "more_delivered_per_s", "three times the viewers: delivered events/s"),
    Goal("fanout", "more_p99_ms", "… p99 ms"),
    Goal("fanout", "more_gateway_us_per_event", "… CPU of the gateway, µs an event and viewer"),
    Goal("fanout", "incomplete_count", "viewers with an event missing or twice", 0),
)


def fanout(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    each, nodes = (20, 15) if is_quick else (110, 75)
    raise_file_limit()
    bare = bare_fan_out(RUNS * each, nodes * EVENTS_PER_NODE, PAUSE_S / EVENTS_PER_NODE)
    with Site(flows=FLOWS_DIR) as site:
        uvloop.run(_watch(site, 1, 1))  # what is loaded once
        result = _measure(site, each, nodes)
        more = _measure(site, each * 3, nodes)
    return result | {
        "raw_p99_ms": bare["p99_ms"],
        "more_delivered_per_s": more["delivered_per_s"],
        "more_p99_ms": more["p99_ms"],
        "more_gateway_us_per_event": more["gateway_us_per_event"],
        "incomplete_count": result["incomplete_count"] + more["incomplete_count"],
    }


def _measure(site: Site, each: int, nodes: int) -> dict[str, Any]:
    with Meter(site) as meter:
        result = uvloop.run(_watch(site, each, nodes))
    used_us = meter.used_s["gateway"] * 1e6
    return result | {"gateway_us_per_event": used_us / result["delivered_count"]}


async def _watch(site: Site, each: int, nodes: int) -> dict[str, Any]:
    """Have so many viewers of each run, all of which are there from its first nodes on."""
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection(site.port)) for _ in range(RUNS * each)
        ]
        given = {"count": nodes, "pause_s": PAUSE_S}
        run_ids = [await start_run(connections[0], "ticks", given) for _ in range(RUNS)]
        streams = await asyncio.gather(
            *[
                connection.follow(run_ids[number % RUNS], is_keeping=True)
                for number, connection in enumerate(connections)
            ]
        )
    if nodes * PAUSE_S <= 2 * SKIPPED_S:
        return {}
    # From when all are there until the first run has ended.
    since = min(stream.arrivals[0][0] for stream in streams) + SKIPPED_S
    until = min(stream.arrivals[-1][0] for stream in streams)
    return delivery(streams, skipped_s=SKIPPED_S) | {
        "viewer_count": len(streams),
        "delivered_per_s": sum(_count(stream, since, until) for stream in streams)
        / (until - since),
        "incomplete_count": sum(not _is_complete(stream) for stream in streams),
    }


def _count(stream: Stream, since: float, until: float) -> int:
    return sum(data.count(b'{"type":') for at, data in stream.arrivals if since <= at < until)


def _is_complete(stream: Stream) -> bool:
    """Say whether each event came once, in order, from the first to the run's end."""
    seqs = [int(seq) for seq in SEQ.findall(b"".join(data for _, data in stream.arrivals))]
    return bool(seqs) and seqs == list(range(len(seqs)))
