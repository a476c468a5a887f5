"""More than the server can do: what it took on it finishes, all else is told to come back, and nothing breaks."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg

from tests.support.serving import LIMIT_S, Serving

RATES_PER_S = (50, 200, 800)
MOST_PER_S = 2_000
STEP_S = 0.7
ENOUGH = 100  # as many as may wait: the runs of others were finished meanwhile
START = {"workflowPath": "flows.py:repeats", "input": {"word": "ho"}}
FLAGS = ("--port", "0", "--workers", "1", "--limit", "queued-runs=100,requests=50")


async def test_a_ramp_ends_in_runs_that_finish_and_in_refusals_that_say_when(
    database: str, flows: Path
) -> None:
    outcomes: Counter[int] = Counter()
    accepted: list[str] = []
    with Serving(flows, None, *FLAGS, DATABASE_URL=database) as server:

        async def start(session: aiohttp.ClientSession) -> None:
            async with session.post(f"{server.url}/v1/runs", json=START) as answer:
                outcomes[answer.status] += 1
                if answer.status == 200:
                    accepted.append((await answer.json())["runId"])
                else:
                    assert answer.headers["Retry-After"]

        async def start_at(rate: int) -> None:
            async for due_count in ramp_step(rate):
                for _ in range(due_count):
                    group.create_task(start(session))

        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            # The workflow is described: the ramp begins with a server that is warm.
            await start(session)
            for rate in RATES_PER_S:
                await start_at(rate)
            async with asyncio.timeout(LIMIT_S):  # a busy machine may take long to come to both
                while outcomes[200] <= ENOUGH or outcomes[503] == 0:
                    await start_at(MOST_PER_S)
        await until_finished(database, accepted)
    assert set(outcomes) <= {200, 429, 503}


async def ramp_step(rate_per_s: int) -> AsyncIterator[int]:
    """Say how many requests are due by the clock, whatever has become of those before."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    sent = 0
    while (elapsed_s := loop.time() - began) < STEP_S:
        due = int(elapsed_s * rate_per_s)
        yield due - sent
        sent = due
        await asyncio.sleep(0.005)


async def count_runs(connection: asyncpg.Connection) -> dict[str, int]:
    rows = await connection.fetch("SELECT status, count(*) FROM smithers.runs GROUP BY status")
    return {row["status"]: row["count"] for row in rows}


async def until_finished(database: str, run_ids: list[str]) -> None:
    connection = await asyncpg.connect(database)
    errors = "SELECT error FROM smithers.runs WHERE status = 'failed' LIMIT 3"
    try:
        async with asyncio.timeout(60):
            while (found := await count_runs(connection)) != {"finished": len(run_ids)}:
                assert "failed" not in found, await connection.fetch(errors)
                await asyncio.sleep(0.1)
    finally:
        await connection.close()
