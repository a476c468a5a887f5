"""The load generator, a process of its own: `python -m bench.load`, told by a line of JSON on stdin, answers with one.

Each workload returns plain numbers; what the client itself cost is added to them.
"""

import asyncio
import json
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from bench.client import Connection, Stream, start_run
from bench.numbers import percentile

Result = dict[str, Any]
STAMP = re.compile(rb'"timestampMs":(\d+)')
NODE_FINISHED = re.compile(rb'"type":"NodeFinished","runId":"([^"]+)".*?"nodeId":"([^"]+)"')
SETTLE_LIMIT_S = 120.0


async def first_starts(port: int) -> Result:
    """Start a run of each workflow for the first time: what is done once for a source is done here."""
    given: dict[str, dict[str, Any]] = {
        "three": {},
        "chain": {"count": 1},
        "ticks": {"count": 1, "pause_s": 0.0},
        "gate": {},
        "steps": {"count": 1, "step_s": 0.0, "ledger": os.devnull},
    }
    posts = []
    async with Connection(port) as connection:
        for flow, options in given.items():
            began = time.perf_counter()
            run_id = await start_run(connection, flow, options)
            posts.append(time.perf_counter() - began)
            if flow == "gate":
                await until_parked(connection, 1)
                await approve(connection, run_id)
            await connection.follow(run_id)
    return {"first_post_p50_ms": percentile(posts, 50), "first_post_max_ms": max(posts) * 1000}


async def one_by_one(port: int, *, count: int) -> Result:
    """W1: three-node runs in sequence."""
    ends, firsts, posts = [], [], []
    async with Connection(port) as connection:
        for _ in range(count):
            began = time.perf_counter()
            run_id = await start_run(connection, "three")
            posts.append(time.perf_counter() - began)
            stream = await connection.follow(run_id)
            ends.append(seen(stream.end_at) - began)
            firsts.append(seen(stream.first_at) - began)
    return {
        "p50_ms": percentile(ends, 50),
        "p99_ms": percentile(ends, 99),
        "first_event_p50_ms": percentile(firsts, 50),
        "post_p50_ms": percentile(posts, 50),
    }


async def many(port: int, *, count: int, in_flight: int) -> Result:
    """W2: three-node runs, so many in flight, each followed to its end."""
    latencies: list[float] = []

    async def run(connection: Connection, _number: int) -> None:
        began = time.perf_counter()
        stream = await connection.follow(await start_run(connection, "three"))
        latencies.append(seen(stream.end_at) - began)

    took_s = await spread(port, range(count), in_flight, run)
    return {
        "runs_per_s": count / took_s,
        "run_count": count,
        "took_s": took_s,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
    }


async def chain(port: int, *, counts: list[int]) -> Result:
    """W3: long runs of trivial nodes."""
    result = {}
    async with Connection(port) as connection:
        for count in counts:
            began = time.perf_counter()
            run_id = await start_run(connection, "chain", {"count": count})
            stream = await connection.follow(run_id)
            took_s = seen(stream.end_at) - began
            result[f"ms_per_node_{count}"] = took_s * 1000 / count
    return result


async def viewers(port: int, *, viewer_count: int, count: int, pause_s: float) -> Result:
    """W4: many viewers of one run."""
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection(port)) for _ in range(viewer_count)
        ]
        run_id = await start_run(connections[0], "ticks", {"count": count, "pause_s": pause_s})
        streams = await asyncio.gather(
            *[connection.follow(run_id, is_keeping=True) for connection in connections]
        )
    return delivery(streams, skipped_s=1.0)


async def fan_out(port: int, *, viewer_count: int) -> Result:
    """W4's raw limit: the same viewers of bench/fan_out.py."""
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection(port)) for _ in range(viewer_count)
        ]
        streams = await asyncio.gather(
            *[connection.follow("any", is_keeping=True) for connection in connections]
        )
    return delivery(streams, skipped_s=0.0)


def delivery(streams: list[Stream], *, skipped_s: float) -> Result:
    """Compare when events came with the time that the database wrote into them.

    The first second is left out: viewers are still arriving, and are sent what is stored.
    """
    since = min(stream.arrivals[0][0] for stream in streams) + skipped_s
    lags = [
        max(0.0, at - int(stamp) / 1000)
        for stream in streams
        for at, data in stream.arrivals
        if at >= since
        for stamp in STAMP.findall(data)
    ]
    return {
        "p50_ms": percentile(lags, 50),
        "p99_ms": percentile(lags, 99),
        "delivered_count": len(lags),
    }


async def approvals(port: int, *, alone_count: int, rest_count: int, in_flight: int) -> Result:
    """W5: runs parked on an approval, approved one at a time, then many at once."""
    run_ids: list[str] = []

    async def park(connection: Connection, _number: int) -> None:
        run_ids.append(await start_run(connection, "gate"))

    total = alone_count + rest_count
    await spread(port, range(total), in_flight, park)
    async with Connection(port) as connection:
        await until_parked(connection, total)
    alone, rest = run_ids[:alone_count], run_ids[alone_count:]
    latencies = [await approve_watched(port, run_id) for run_id in alone]

    async def approve_and_follow(connection: Connection, run_id: str) -> None:
        await approve(connection, run_id)
        await connection.follow(run_id)

    took_s = await spread(port, rest, in_flight, approve_and_follow)
    return {
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "runs_per_s": len(rest) / took_s,
    }


async def approve_watched(port: int, run_id: str) -> float:
    """Approve a run whose stream is open already; seconds until its end was seen."""
    async with Connection(port) as watching, Connection(port) as deciding:
        following = asyncio.create_task(watching.follow(run_id))
        await watching.until_first_event()
        began = time.perf_counter()
        await approve(deciding, run_id)
        return seen((await following).end_at) - began


async def approve(connection: Connection, run_id: str) -> None:
    await connection.call("POST", f"/v1/runs/{run_id}/nodes/ok/approve", {})


async def until_parked(connection: Connection, count: int) -> None:
    """Wait until so many runs wait for somebody."""
    path = "/v1/runs?status=waiting-approval&limit=1000"
    async with asyncio.timeout(SETTLE_LIMIT_S):
        while len(await connection.call("GET", path)) < count:
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # let the database come to rest: what parked them is not measured


async def begin_steps(port: int, *, count: int, given: dict[str, Any]) -> Result:
    """W6, before the kill: start runs and leave."""
    run_ids: list[str] = []
    began_at = time.monotonic()

    async def begin(connection: Connection, _number: int) -> None:
        run_ids.append(await start_run(connection, "steps", given))

    await spread(port, range(count), count, begin)
    return {"run_ids": run_ids, "began_at": began_at}


async def end_steps(port: int, *, run_ids: list[str]) -> Result:
    """W6, after the kill: follow all runs to their end, as soon as somebody answers."""
    finished: Counter[tuple[bytes, bytes]] = Counter()
    resumed_count = 0

    async def follow(run_id: str) -> None:
        nonlocal resumed_count
        async with Connection(port) as connection:
            stream = await connection.follow(run_id, is_keeping=True)
        text = b"".join(data for _, data in stream.arrivals)
        for line in text.split(b"\n"):
            finished.update(NODE_FINISHED.findall(line))
            resumed_count += b'"type":"RunAutoResumed"' in line

    await until_listening(port)
    await asyncio.gather(*[follow(run_id) for run_id in run_ids])
    return {
        "ended_at": time.monotonic(),
        "node_count": len(finished),
        "finished_twice": sum(count > 1 for count in finished.values()),
        "resumed_count": resumed_count,
    }


async def until_listening(port: int) -> None:
    """Wait until somebody listens: one client asks, for all."""
    async with asyncio.timeout(SETTLE_LIMIT_S):
        while True:
            try:
                async with Connection(port):
                    return
            except OSError:
                await asyncio.sleep(0.01)


async def spread(
    port: int,
    items: Any,
    in_flight: int,
    do: Callable[[Connection, Any], Awaitable[None]],
) -> float:
    """Do something with each item, so many at once, each on a kept connection; seconds that it took."""
    waiting = iter(items)

    async def work(connection: Connection) -> None:
        for item in waiting:
            await do(connection, item)

    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(Connection(port)) for _ in range(in_flight)]
        began = time.perf_counter()
        await asyncio.gather(*[work(connection) for connection in connections])
        return time.perf_counter() - began


def seen(moment: float | None) -> float:
    assert moment is not None
    return moment


WORKLOADS: dict[str, Callable[..., Coroutine[Any, Any, Result]]] = {
    function.__name__: function
    for function in (
        first_starts,
        one_by_one,
        many,
        chain,
        viewers,
        fan_out,
        approvals,
        begin_steps,
        end_steps,
    )
}


def main(workloads: dict[str, Callable[..., Coroutine[Any, Any, Result]]]) -> None:
    """Do as one line of JSON on stdin says, and answer with one."""
    order = json.loads(sys.stdin.readline())
    used_before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    result = uvloop.run(workloads[order["workload"]](order["port"], **order["options"]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    result["client_cpu_s"] = (used.ru_utime + used.ru_stime) - (
        used_before.ru_utime + used_before.ru_stime
    )
    result["client_wall_s"] = time.perf_counter() - began
    print(json.dumps(result))


if __name__ == "__main__":
    main(WORKLOADS)
