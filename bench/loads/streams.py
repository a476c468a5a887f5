"""Very many viewers cut at random bytes and back again, beside readers that hardly read and some that are never cut."""

import random
import re
import time
from collections import Counter
from typing import Any

import asyncpg
import uvloop

from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import until_ended
from bench.numbers import percentile
from bench.processes import MemoryPeak, pss_bytes
from bench.report import Goal
from bench.server import FLOWS_DIR
from bench.storm import Storm, Weather, read_digest
from gateway.load import raise_file_limit

MIB = 2**20
TICK_S = 0.02
EVENT_NAME = re.compile(r'.*"event": "([^"]+)".*')
RUNS, TICKS = 20, 500  # nodes of a run, three events each
QUICK_RUNS, QUICK_TICKS = 4, 40
FULL = Weather(viewers=36, mean_cut_bytes=48_000, slow=100)
QUICK = Weather(viewers=10, mean_cut_bytes=7_000, slow=10)

GOALS = (
    Goal("streams", "event_count", "events given to viewers"),
    Goal("streams", "stream_count", "streams opened"),
    Goal("streams", "cut_count", "… of them cut at a random byte, and resumed"),
    Goal("streams", "fault_count", "events lost, doubled, out of order or changed", 0),
    Goal("streams", "broken_count", "streams that broke by themselves", 0),
    Goal("streams", "slow_count", "readers that never read or read a byte a second"),
    Goal("streams", "steady_p50_ms", "steady viewers beside them: commit → seen, p50 ms"),
    Goal("streams", "steady_p99_ms", "… p99 ms"),
    Goal("streams", "pss_before_mib", "gateway before, PSS MiB"),
    Goal("streams", "pss_peak_mib", "… its peak"),
    Goal("streams", "pss_after_mib", "… after"),
    Goal("streams", "log_line_count", "lines that the whole server logged", 100),
    Goal("streams", "took_s", "seconds"),
)


def streams(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    raise_file_limit()
    with Site(flows=FLOWS_DIR) as site:
        pids = site.pids()["gateway"]
        with MemoryPeak(lambda: pids) as peak:
            before = sum(map(pss_bytes, pids))
            result = uvloop.run(_play(site, is_quick=is_quick))
        logged = _read_log(site)
        return result | {
            "pss_before_mib": before / MIB,
            "pss_peak_mib": peak.peak_bytes / MIB,
            "pss_after_mib": sum(map(pss_bytes, pids)) / MIB,
            "log_line_count": logged.total(),
            "notes": [*result["notes"], *(f"logged {n} times: {one}" for one, n in logged.items())],
        }


async def _play(site: Site, *, is_quick: bool) -> dict[str, Any]:
    weather = QUICK if is_quick else FULL
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=2) as sql,
        Connection(site.port) as connection,
    ):
        pace = {"count": QUICK_TICKS if is_quick else TICKS, "pause_s": TICK_S}
        run_count = QUICK_RUNS if is_quick else RUNS
        runs = [await start_run(connection, "ticks", pace) for _ in range(run_count)]
        storm = Storm(port=site.port, chance=random.Random(time.time()))
        began = time.perf_counter()
        steady, cut = await storm.rage(runs, weather)
        took_s = time.perf_counter() - began
        for run_id in runs:
            await until_ended(sql, run_id)
        stored = {run_id: await read_digest(sql, run_id) for run_id in runs}
    changed = [v.run_id for v in (*steady, *cut) if v.seen.hexdigest() != stored[v.run_id]]
    lags_s = [lag / 1000 for viewer in steady for lag in viewer.lags_ms or ()]
    return {
        "event_count": storm.counts["events"],
        "stream_count": storm.counts.total() - storm.counts["events"],
        "cut_count": storm.counts["cut"],
        "broken_count": storm.counts["broken"],
        "fault_count": len(storm.faults) + len(changed),
        "slow_count": weather.slow,
        "steady_p50_ms": percentile(lags_s, 50),
        "steady_p99_ms": percentile(lags_s, 99),
        "took_s": took_s,
        "notes": [*storm.faults[:20], *(f"{run_id} differs" for run_id in changed[:20])],
    }


def _read_log(site: Site) -> Counter[str]:
    """Count what the server's processes have logged, by its name."""
    lines = site.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return Counter(EVENT_NAME.sub(r"\1", line) for line in lines)
