"""`python -m bench.growth [CURVE ...] [--quick] [--picture PATH] [--json PATH]`: what grows with what, as curves and a table.

Each curve has a server of its own, in processes as in production; a render is measured here. The table `shares` is for
docs/scaling.md, the curves are the picture of docs/performance.md. Some three minutes.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop

from bench import report
from bench.__main__ import ask_version
from bench.client import Connection, start_run
from bench.curves import Curve, Points, draw
from bench.flows import chain as chains
from bench.load import seen, spread
from bench.loads.idle import PARKED, arrive
from bench.loads.parked import copy_parked, measure_parked
from bench.loads.replay import ReplayViewer
from bench.loads.site import FLOWS_DIR as LOADS_FLOWS_DIR
from bench.loads.site import Site
from bench.loads.watching import until_counted
from bench.meters import Meter
from bench.processes import MemoryPeak, pss_bytes
from bench.server import FLOWS_DIR, ROOT_DIR
from gateway.load import raise_file_limit
from smithers.context import Auth
from smithers.engine.facts import Facts
from smithers.engine.rendering import Renderer
from smithers.ids import RunId
from smithers.store.retention import prune

PICTURE: Final = ROOT_DIR / "docs" / "pictures" / "growth.svg"
MIB: Final = 2**20
RUNS: Final = 1_000
IN_FLIGHT: Final = 64
LOOKS: Final = 50

SIZE: Final = """
    SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'smithers'::regnamespace"""
CONNECTIONS: Final = """
    SELECT application_name AS name, count(*) AS count FROM pg_stat_activity
    WHERE application_name LIKE 'smithers-%' AND application_name <> 'smithers-growth' GROUP BY 1 ORDER BY 1"""
AGE: Final = "UPDATE smithers.runs SET finished_at = finished_at - interval '31 days'"
LAST_SEQ: Final = "SELECT last_seq FROM smithers.runs WHERE run_id = $1"


async def measure_nodes(site: Site, *, is_quick: bool) -> list[Curve]:
    """Run longer and longer sequences of trivial nodes."""
    counts = [50, 100] if is_quick else [100, 200, 400, 800, 1600, 3200]
    took: Points = []
    used: Points = []
    held: Points = []
    async with Connection(site.port) as connection:
        await connection.follow(await start_run(connection, "chain", {"count": 20}))
        for count in counts:
            with Meter(site) as meter, MemoryPeak(lambda: site.pids()["children"]) as peak:
                began = time.perf_counter()
                run_id = await start_run(connection, "chain", {"count": count})
                ended = seen((await connection.follow(run_id)).end_at)
            took.append((count, (ended - began) * 1000 / count))
            used.append((count, sum(meter.used_s.values()) * 1000 / count))
            held.append((count, peak.peak_bytes / MIB))
    series = {"elapsed": took, "server CPU": used}
    return [
        Curve("one run, ms a node", "nodes in the run", series, goal=1.0),
        Curve("two children, peak PSS, MiB", "nodes in the run", {"": held}),
    ]


async def measure_waiting(site: Site, *, is_quick: bool) -> list[Curve]:
    """Look at lists and decide, with more and more runs that wait for a person."""
    counts = [200, 400] if is_quick else [300, 1_000, 3_000, 10_000, 30_000]
    took: dict[str, Points] = {"approvals": [], "runs": [], "approve": []}
    async with asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql:

        async def park(connection: Connection, _number: int) -> None:
            await start_run(connection, "question")

        await spread(site.port, range(100), 16, park)
        await until_counted(sql, 100, PARKED)
    already = 0
    for count in counts:
        await copy_parked(site.dsn, already + 1, count - 100)
        already = count - 100
        figures = await measure_parked(site, 20 if is_quick else LOOKS)
        for name, points in took.items():
            points.append((count, figures[f"{name}_p50_ms"]))
    return [Curve("list approvals, list runs, approve: p50 ms", "runs that wait", took)]


async def measure_viewers(site: Site, *, is_quick: bool) -> list[Curve]:
    """Weigh the gateway with more and more viewers of runs that wait."""
    counts = [50, 100] if is_quick else [250, 500, 1_000, 2_000, 4_000]
    raise_file_limit()
    weights: Points = []
    pid = site.pids()["gateway"][0]
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection(site.port))
        run_ids = [await start_run(connection, "question") for _ in range(10)]
        watching: list[asyncio.Task[Any]] = []
        for count in counts:
            wanted = [run_ids[i % 10] for i in range(count - len(watching))]
            watching += await arrive(stack, site.port, wanted)
            weights.append((count, pss_bytes(pid) / MIB))
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
    return [Curve("gateway, PSS, MiB", "viewers", {"": weights})]


async def measure_replay(site: Site, *, is_quick: bool) -> list[Curve]:
    """Read longer and longer histories from their beginnings."""
    counts = [500, 1_000] if is_quick else [1_000, 3_000, 10_000, 30_000, 100_000]
    took: Points = []
    async with (
        asyncpg.create_pool(site.dsn, min_size=1, max_size=1) as sql,
        Connection(site.port) as connection,
    ):
        for parked, count in enumerate(counts, start=1):
            run_id = await start_run(connection, "talk", {"lines": count})
            await until_counted(sql, parked, PARKED)
            viewer = await ReplayViewer.open(site.port, run_id, -1)
            took.append((count, await viewer.until(await sql.fetchval(LAST_SEQ, run_id))))
            viewer.writer.close()
    return [Curve("replay, s", "events of the run", {"": took})]


async def measure_render(_site: Site, *, is_quick: bool) -> list[Curve]:
    """Render larger and larger trees, of which nothing is done yet; no server."""
    counts = [50, 100] if is_quick else [100, 200, 400, 800, 1600, 3200]
    took: Points = []
    for count in counts:
        renderer = Renderer(
            run_id=RunId("r"),
            workflow=chains.chain,
            read_input=partial(chains.Length, count=count),
            auth=Auth(),
            guard=lambda build: build(),
        )
        gc.collect()
        times = []
        for _ in range(5):
            began = time.process_time()
            renderer.render(Facts(), {})
            times.append(time.process_time() - began)
        took.append((count, min(times) * 1000))
    return [Curve("one render, CPU ms", "nodes in the tree", {"": took})]


async def measure_shares(site: Site, *, is_quick: bool) -> dict[str, str]:
    """Say what one run takes of the disk, what a fleet takes of connections, and what retention gives back."""
    count = 100 if is_quick else RUNS
    told = {}
    sql = await asyncpg.connect(site.dsn, server_settings={"application_name": "smithers-growth"})
    await move_runs(site, IN_FLIGHT)  # all is described, loaded and connected
    rows = await sql.fetch(CONNECTIONS)
    told["connections"] = ", ".join(f"{row['name']} {row['count']}" for row in rows)
    before, events_before = await weigh(sql), await count_events(sql)
    await move_runs(site, count)
    events = await count_events(sql) - events_before
    told["events a run of three nodes"] = f"{events / count:.1f}"
    grown = await weigh(sql) - before
    told["its bytes, all tables and indexes"] = f"{grown / count:,.0f}"
    await sql.execute(AGE)
    began = time.monotonic()
    pruned = await prune(site.dsn, timedelta(days=30))
    rate = pruned.run_count / (time.monotonic() - began)
    told["pruned runs/s, pauses included"] = f"{rate:,.0f}"
    left = await sql.fetchval("SELECT pg_total_relation_size('smithers.tombstones')::bigint")
    told["bytes of a tombstone"] = f"{left / pruned.run_count:.0f}"
    await sql.close()
    return told


MEASURES: Final[dict[str, tuple[Path, Callable[..., Any]]]] = {
    "nodes": (FLOWS_DIR, measure_nodes),
    "waiting": (LOADS_FLOWS_DIR, measure_waiting),
    "viewers": (LOADS_FLOWS_DIR, measure_viewers),
    "replay": (FLOWS_DIR, measure_replay),
    "render": (FLOWS_DIR, measure_render),
    "shares": (FLOWS_DIR, measure_shares),
}


async def move_runs(site: Site, count: int) -> None:
    """Run so many runs of three nodes to their ends."""

    async def move(connection: Connection, _number: int) -> None:
        await connection.follow(await start_run(connection, "three"))

    await spread(site.port, range(count), min(count, IN_FLIGHT), move)


async def weigh(sql: asyncpg.Connection) -> int:
    await sql.execute("VACUUM")
    size: int = await sql.fetchval(SIZE)
    return size


async def count_events(sql: asyncpg.Connection) -> int:
    count: int = await sql.fetchval("SELECT count(*) FROM smithers.events")
    return count


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument(
        "curves", nargs="*", metavar="CURVE", help=f"of {', '.join(MEASURES)}; or all"
    )
    parser.add_argument("--quick", action="store_true", help="small: does it work at all?")
    parser.add_argument("--picture", type=Path, help=f"where to draw them: {PICTURE.name}")
    parser.add_argument("--json", type=Path, help="where to write the results")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.curves if name not in MEASURES]
    if unknown:
        parser.error(f"no such curve: {', '.join(unknown)}")
    return chosen


def main() -> None:
    chosen = parse()
    with Site(pools=0, gateways=0) as site:
        machine = report.describe_machine(asyncio.run(ask_version(site.dsn)))
    curves: list[Curve] = []
    shares: dict[str, str] = {}
    for name in chosen.curves or MEASURES:
        print(f"{name} …", file=sys.stderr, flush=True)
        flows, measure = MEASURES[name]
        with Site(flows=flows) as site:
            measured = uvloop.run(measure(site, is_quick=chosen.quick))
        if name == "shares":
            shares = measured
        else:
            curves += measured
    print(table(curves, shares))
    document = {
        "commit": report.find_commit(),
        "command": " ".join(["python -m bench.growth", *sys.argv[1:]]),
        "is_quick": chosen.quick,
        "machine": machine,
        "curves": [asdict(curve) for curve in curves],
        "shares": shares,
    }
    now = datetime.now(UTC)
    path = report.RESULTS_DIR / f"{now:%Y-%m-%d-%H%M}-growth-{document['commit']}.json"
    report.RESULTS_DIR.mkdir(exist_ok=True)
    print(f"\nwritten to {report.write(document, chosen.json or path)}")
    if chosen.picture is not None:
        chosen.picture.parent.mkdir(exist_ok=True)
        chosen.picture.write_text(draw(curves), encoding="utf-8")


def table(curves: list[Curve], shares: dict[str, str]) -> str:
    """Return all figures, a line for each series."""
    lines = [f"{what:<44}{value}" for what, value in shares.items()]
    for curve in curves:
        for name, points in curve.series.items():
            title = f"{curve.title}{', ' if name else ''}{name}, by {curve.along}"
            figures = "  ".join(f"{x:g}: {y:.3g}" for x, y in points)
            lines.append(f"{title:<58}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
