"""`python -m bench [W1 W2 …] [--quick] [--runs 3] [--json PATH] [--patience S] [--profile]`: measure over HTTP."""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg

from bench import report
from bench.meters import wait_for_quiet
from bench.numbers import median_of
from bench.server import Server
from bench.workloads import QUICK, WORKLOADS, Sizes, profile, warm_up


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="W", help="W1 … W6; all if none is named")
    is_quick = os.environ.get("QUICK", "0") not in {"", "0"}  # make bench QUICK=1
    parser.add_argument("--quick", action="store_true", default=is_quick, help="small and once")
    parser.add_argument("--runs", type=int, help="how often; the median counts (3, quick: 1)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for quiet neighbours"
    )
    parser.add_argument("--profile", action="store_true", help="W2 under py-spy as well")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}")
    return chosen


def main() -> None:
    chosen = parse()
    sizes = QUICK if chosen.quick else Sizes()
    names = [name for name in WORKLOADS if name in chosen.workloads or not chosen.workloads]
    count = chosen.runs or (1 if chosen.quick else 3)
    machine: dict[str, Any] = {}
    every: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        with Server() as server:
            machine = machine or report.describe_machine(asyncio.run(ask_version(server.dsn)))
            label = f"{number}/{count}"
            every.append(measure(server, names, sizes, label, chosen.patience))
    results = {name: median_of([run[name] for run in every]) for name in ["first", *names]}
    document = {
        "commit": report.find_commit(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "is_quick": chosen.quick,
        "machine": machine,
        "medians": results,
        "runs": every,
    }
    print(report.table(results))
    print(f"\nmedians of {count}; written to {report.write(document, chosen.json)}")
    if chosen.profile:
        with Server() as server:
            warm_up(server, sizes)
            print(profile(server, sizes))


def measure(
    server: Server, names: list[str], sizes: Sizes, label: str, patience_s: float
) -> dict[str, Any]:
    """Run the workloads on one server, in their order: W6 kills it."""
    results = {"first": warm_up(server, sizes)}
    for name in names:
        wait_for_quiet(server, patience_s)
        print(f"{label} {name} …", file=sys.stderr, flush=True)
        results[name] = WORKLOADS[name](server, sizes)
    return results


async def ask_version(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        version: str = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return version


if __name__ == "__main__":
    main()
