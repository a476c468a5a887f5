"""Viewers that are cut at random bytes and come back, beside readers that hardly read: short; long: `bench.loads streams`."""

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

from bench.processes import pss_bytes
from bench.storm import Storm, Weather, read_digest
from tests.support.world import World

FLOWS = Path(__file__).parents[2] / "bench" / "flows"
SEED = int(os.environ.get("SMITHERS_TEST_SEED", "20261122"))
RUNS = 3
WEATHER = Weather(viewers=20, mean_cut_bytes=3_000, slow=20)
MAX_LOG_LINES = 20  # of the whole server, whatever its viewers do
MAX_GROWTH_BYTES = 32 * 2**20


async def test_cut_viewers_miss_and_repeat_nothing_and_cost_the_gateway_little(
    world: World,
) -> None:
    world.write("ticks.py", (FLOWS / "ticks.py").read_text())
    world.start_pool()
    gateway, port = await world.start_gateway()
    log = world.root / "pool.log"
    before, line_count = pss_bytes(gateway.pid), len(log.read_bytes().splitlines())
    runs = [f"r{number}" for number in range(RUNS)]
    for run_id in runs:
        await world.start(run_id, "ticks.py", {"count": 40, "pause_s": 0.02})
    storm = Storm(port=port, chance=random.Random(SEED))
    steady, cut = await storm.rage(runs, WEATHER)
    assert storm.faults == []
    stored = {run_id: await read_digest(world.sql, run_id) for run_id in runs}
    seen = Counter((viewer.run_id, viewer.seen.hexdigest()) for viewer in (*steady, *cut))
    assert seen == dict.fromkeys(stored.items(), WEATHER.viewers + 1)
    assert storm.counts["cut"] > WEATHER.viewers * RUNS
    assert storm.counts["broken"] == storm.counts["silent"] == 0
    assert pss_bytes(gateway.pid) - before < MAX_GROWTH_BYTES
    assert len(log.read_bytes().splitlines()) - line_count < MAX_LOG_LINES


async def test_viewers_that_leave_before_the_head_leave_no_line_in_the_log(world: World) -> None:
    world.write("ticks.py", (FLOWS / "ticks.py").read_text())
    world.start_pool(workers=1)
    _, port = await world.start_gateway()
    await world.start("r", "ticks.py", {"count": 5, "pause_s": 0})
    await world.until_status("r", "finished")
    await world.until_logged("child_started")
    log, storm = world.root / "pool.log", Storm(port=port, chance=random.Random(SEED))
    await storm.follow("r", mean_cut_bytes=None)
    before = log.read_bytes()
    for _ in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/runs/r/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.transport.abort()
    await storm.follow("r", mean_cut_bytes=None)  # read after all of those before it
    assert log.read_bytes() == before
    assert storm.faults == []
