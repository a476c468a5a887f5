"""`python -m bench.rivals [dbos absurd restate] [--quick] [--json PATH] [--patience S]`: the same workloads, side by side.

Each server has the machine to itself, one after another, ours first: a front or its like, two processes that move runs,
and the same embedded Postgres (Restate has a log of its own). What exactly is compared is said in docs/performance.md.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench import report, workloads
from bench.__main__ import ask_version
from bench.meters import Meter, wait_for_quiet
from bench.rivals.environments import Unavailable, find_python, find_restate_server, versions
from bench.rivals.sites import SITES, Site
from bench.server import Server
from bench.workloads import (
    IN_FLIGHT,
    KILL_AFTER_S,
    Result,
    Sizes,
    begin_load,
    end_load,
    load,
    open_load,
)

FULL = Sizes(warm_up=100, alone=100, many=500, approved_alone=20, approved_rest=180, commits=300)
SMALL = Sizes(
    warm_up=20,
    alone=10,
    many=60,
    chain=(50,),
    approved_alone=4,
    approved_rest=16,
    commits=100,
    step_runs=10,
)
LOAD = "bench.rivals.load"


@dataclass(frozen=True)
class Row:
    """A figure of all of them; small ones are good unless said otherwise."""

    workload: str
    key: str
    meaning: str
    is_more_better: bool = False

    def of(self, results: dict[str, Result]) -> float | None:
        return results.get(self.workload, {}).get(self.key)


ROWS = (
    Row("W1", "p50_ms", "W1 three nodes, alone: POST → end seen, p50 ms"),
    Row("W1", "p99_ms", "… p99 ms"),
    Row("W2", "runs_per_s", "W2 64 in flight: runs/s", is_more_better=True),
    Row("W2", "cpu_ms_per_run", "W2 server CPU, ms a run"),
    Row("W2", "pss_peak_mib", "W2 peak memory of all processes, PSS MiB"),
    Row("W3", "ms_per_node_200", "W3 one run of 200 nodes: ms a node"),
    Row("W3", "ms_per_node_1000", "W3 one run of 1,000 nodes: ms a node"),
    Row("W5", "p50_ms", "W5 approve → end seen, alone, p50 ms"),
    Row("W5", "p99_ms", "… p99 ms"),
    Row("W5", "runs_per_s", "W5 32 in flight: runs/s", is_more_better=True),
    Row("W6", "kill_to_finished_s", "W6 kill -9 of all → all finished, s (floor 3.0)"),
    Row("W6", "bodies_ended_twice", "W6 bodies that ended twice"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    parser.add_argument("rivals", nargs="*", choices=[[], *SITES], help="all if none is named")
    parser.add_argument("--quick", action="store_true", help="small: does it work at all?")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for quiet")
    chosen = parser.parse_args()
    sizes = SMALL if chosen.quick else FULL
    results: dict[str, dict[str, Result]] = {}
    with Server() as server:
        machine = report.describe_machine(asyncio.run(ask_version(server.dsn)))
        results["ours"] = measure_ours(server, sizes, chosen.patience)
    for name in chosen.rivals or SITES:
        try:
            find_python(name)  # what is installed now is not measured
            if name == "restate":
                find_restate_server()
        except Unavailable as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        with SITES[name]() as site:
            results[name] = measure_rival(site, sizes, chosen.patience)
    document = {
        "commit": report.find_commit(),
        "command": " ".join(["python -m bench.rivals", *sys.argv[1:]]),
        "is_quick": chosen.quick,
        "machine": machine,
        "versions": {name: versions(name) for name in results if name != "ours"},
        "results": results,
    }
    print(table(results))
    report.RESULTS_DIR.mkdir(exist_ok=True)
    name = f"{datetime.now(UTC):%Y-%m-%d-%H%M}-rivals-{document['commit']}.json"
    print(f"\nwritten to {report.write(document, chosen.json or report.RESULTS_DIR / name)}")


def measure_ours(server: Server, sizes: Sizes, patience_s: float) -> dict[str, Result]:
    """Run the workloads of `python -m bench` that rivals can do, in its own way."""
    results = {"first": workloads.warm_up(server, sizes)}
    for name in ("W1", "W2", "W3", "W5", "W6"):
        results[name] = _when_quiet(
            server,
            f"ours {name}",
            patience_s,
            partial(workloads.WORKLOADS[name], server, sizes),
        )
    return results


def measure_rival(site: Site, sizes: Sizes, patience_s: float) -> dict[str, Result]:
    """Run the same workloads on a rival."""
    _load(site, "many", count=sizes.warm_up, in_flight=16)
    _load(site, "approvals", alone_count=1, rest_count=1, in_flight=1)
    measures: dict[str, Callable[[], Result]] = {
        "W1": lambda: _metered(site, sizes.alone, "one_by_one", count=sizes.alone),
        "W2": lambda: _metered(site, sizes.many, "many", count=sizes.many, in_flight=IN_FLIGHT),
        "W3": lambda: _metered(site, sum(sizes.chain), "chain", counts=list(sizes.chain)),
        "W5": lambda: _metered(
            site,
            sizes.approved_alone + sizes.approved_rest,
            "approvals",
            alone_count=sizes.approved_alone,
            rest_count=sizes.approved_rest,
            in_flight=32,
        ),
        "W6": lambda: _kill(site, sizes),
    }
    return {
        name: _when_quiet(site, f"{site.name} {name}", patience_s, measure)
        for name, measure in measures.items()
    }


def _when_quiet(
    server: Server | Site, label: str, patience_s: float, measure: Callable[[], Result]
) -> Result:
    """Say what is measured, and measure it as soon as others are quiet."""
    wait_for_quiet(server, patience_s)
    print(f"{label} …", file=sys.stderr, flush=True)
    return measure()


def _load(site: Site, workload: str, **options: Any) -> Result:
    return load(workload, site.port, by=LOAD, **options)


def _metered(site: Site, per: int, workload: str, **options: Any) -> Result:
    with Meter(site, with_memory=workload == "many") as meter:
        result = _load(site, workload, **options)
    return result | meter.per_run(per)


def _kill(site: Site, sizes: Sizes) -> Result:
    """W6, as bench.workloads has it."""
    with tempfile.NamedTemporaryFile(prefix="smithers-ledger-", dir="/tmp") as ledger:
        given = {"count": sizes.steps, "step_s": 1.0, "ledger": ledger.name}
        begun = _load(site, "begin_steps", count=sizes.step_runs, given=given)
        with open_load(by=LOAD) as following:
            time.sleep(max(0.0, begun["began_at"] + KILL_AFTER_S - time.monotonic()))
            killed_at = time.monotonic()
            site.kill()
            begin_load(following, "end_steps", site.port, run_ids=begun["run_ids"])
            site.restart()
            ended = end_load(following)
        lines = Counter(Path(ledger.name).read_text().splitlines())
    return {
        "kill_to_finished_s": ended["ended_at"] - killed_at,
        "bodies_missing": sizes.steps * sizes.step_runs - len(lines),
        "bodies_ended_twice": sum(count > 1 for count in lines.values()),
    }


def table(results: dict[str, dict[str, Result]]) -> str:
    """Return a table in Markdown: figures, and how many times better ours is than each."""
    rivals = [name for name in results if name != "ours"]
    lines = [
        "| | ours | " + " | ".join(f"{name} | ours is better by" for name in rivals) + " |",
        "|---" * (2 + 2 * len(rivals)) + "|",
    ]
    for row in ROWS:
        mine = row.of(results["ours"])
        if mine is None:
            continue
        cells = []
        for name in rivals:
            theirs = row.of(results[name])
            cells += ["-", "-"] if theirs is None else [_figure(theirs), _ratio(row, mine, theirs)]
        lines.append(f"| {row.meaning} | {_figure(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.1f}"


def _ratio(row: Row, mine: float, theirs: float) -> str:
    better, worse = (mine, theirs) if row.is_more_better else (theirs, mine)
    return f"{better / worse:.1f}x" if worse else "-"


if __name__ == "__main__":
    main()
