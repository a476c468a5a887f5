"""The load generator for rivals, as bench.load is for us: the same workloads over the three calls of bench/rivals/front.py.

A run's end is seen when its one long request is answered; no rival sends events here.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

from bench.client import STREAM_LIMIT_S, Connection, Unexpected
from bench.load import Result, main, spread, until_listening
from bench.numbers import percentile

PARKED_WITHIN_S = 3.0  # nobody says which runs wait; this is ten times what the slowest needs
IDS = (f"r{os.getpid()}-{number}" for number in itertools.count())


async def start(connection: Connection, workflow: str, given: dict[str, Any] | None = None) -> str:
    run_id = next(IDS)
    await connection.call("POST", f"/{workflow}/{run_id}/run/send", given or {})
    return run_id


async def end(connection: Connection, workflow: str, run_id: str) -> Any:
    path = f"/restate/workflow/{workflow}/{run_id}/attach"
    return await connection.call("GET", path, limit_s=STREAM_LIMIT_S)


async def approve(connection: Connection, run_id: str) -> None:
    await connection.call("POST", f"/gate/{run_id}/approve", {})


async def one_by_one(port: int, *, count: int) -> Result:
    """W1: three-node runs in sequence."""
    ends, posts = [], []
    async with Connection(port) as connection:
        for _ in range(count):
            began = time.perf_counter()
            run_id = await start(connection, "three")
            posts.append(time.perf_counter() - began)
            await end(connection, "three", run_id)
            ends.append(time.perf_counter() - began)
    return {
        "p50_ms": percentile(ends, 50),
        "p99_ms": percentile(ends, 99),
        "post_p50_ms": percentile(posts, 50),
    }


async def many(port: int, *, count: int, in_flight: int) -> Result:
    """W2: three-node runs, so many in flight."""
    latencies: list[float] = []

    async def run(connection: Connection, _number: int) -> None:
        began = time.perf_counter()
        await end(connection, "three", await start(connection, "three"))
        latencies.append(time.perf_counter() - began)

    took_s = await spread(port, range(count), in_flight, run)
    return {
        "runs_per_s": count / took_s,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
    }


async def chain(port: int, *, counts: list[int]) -> Result:
    """W3: long runs of trivial nodes."""
    result = {}
    async with Connection(port) as connection:
        for count in counts:
            began = time.perf_counter()
            await end(connection, "chain", await start(connection, "chain", {"count": count}))
            result[f"ms_per_node_{count}"] = (time.perf_counter() - began) * 1000 / count
    return result


async def approvals(port: int, *, alone_count: int, rest_count: int, in_flight: int) -> Result:
    """W5: runs parked on a yes; some get it one at a time, then many at once."""
    run_ids: list[str] = []

    async def park(connection: Connection, _number: int) -> None:
        run_ids.append(await start(connection, "gate"))

    await spread(port, range(alone_count + rest_count), in_flight, park)
    await asyncio.sleep(PARKED_WITHIN_S)
    latencies = []
    async with Connection(port) as watching, Connection(port) as deciding:
        for run_id in run_ids[:alone_count]:
            ending = asyncio.create_task(end(watching, "gate", run_id))
            await asyncio.sleep(0.05)  # the request is there, as our stream is open
            began = time.perf_counter()
            await approve(deciding, run_id)
            await ending
            latencies.append(time.perf_counter() - began)

    async def approve_and_wait(connection: Connection, run_id: str) -> None:
        await approve(connection, run_id)
        await end(connection, "gate", run_id)

    rest = run_ids[alone_count:]
    took_s = await spread(port, rest, in_flight, approve_and_wait)
    return {
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "runs_per_s": len(rest) / took_s,
    }


async def begin_steps(port: int, *, count: int, given: dict[str, Any]) -> Result:
    """W6, before the kill: start runs and leave."""
    run_ids: list[str] = []
    began_at = time.monotonic()

    async def begin(connection: Connection, _number: int) -> None:
        run_ids.append(await start(connection, "steps", given))

    await spread(port, range(count), count, begin)
    return {"run_ids": run_ids, "began_at": began_at}


async def end_steps(port: int, *, run_ids: list[str]) -> Result:
    """W6, after the kill: wait for all runs' ends, as soon as somebody answers."""

    async def wait(run_id: str) -> None:
        async with asyncio.timeout(STREAM_LIMIT_S):
            while True:
                try:
                    async with Connection(port) as connection:
                        await end(connection, "steps", run_id)
                        return
                except (OSError, TimeoutError, Unexpected):  # not up yet
                    await asyncio.sleep(0.02)

    await until_listening(port)
    await asyncio.gather(*[wait(run_id) for run_id in run_ids])
    return {"ended_at": time.monotonic()}


WORKLOADS: dict[str, Callable[..., Coroutine[Any, Any, Result]]] = {
    function.__name__: function
    for function in (one_by_one, many, chain, approvals, begin_steps, end_steps)
}

if __name__ == "__main__":
    main(WORKLOADS)
