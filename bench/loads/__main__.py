"""`python -m bench.loads [LOAD ...] [--quick] [--minutes N] [--runs-per-s N] [--json PATH]`: loads beyond W1 to W6."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.__main__ import ask_version
from bench.loads import (
    cancels,
    fanout,
    hostile,
    idle,
    parked,
    races,
    replay,
    signals,
    soak,
    starts,
    streams,
    takeovers,
    timers,
    tools,
)
from bench.loads.site import Site

LOADS: Final[dict[str, tuple[Callable[..., dict[str, Any]], tuple[report.Goal, ...]]]] = {
    "timers": (timers.timers, timers.GOALS),
    "parked": (parked.parked, parked.GOALS),
    "takeovers": (takeovers.takeovers, takeovers.GOALS),
    "races": (races.races, races.GOALS),
    "signals": (signals.signals, signals.GOALS),
    "hostile": (hostile.hostile, hostile.GOALS),
    "tools": (tools.tools, tools.GOALS),
    "idle": (idle.idle, idle.GOALS),
    "fanout": (fanout.fanout, fanout.GOALS),
    "starts": (starts.starts, starts.GOALS),
    "replay": (replay.replay, replay.GOALS),
    "cancels": (cancels.cancels, cancels.GOALS),
    "streams": (streams.streams, streams.GOALS),
    "soak": (soak.soak, soak.GOALS),
}


UNLESS_NAMED = tuple(name for name in LOADS if name != "soak")  # which takes an hour


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.loads", description=__doc__)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help="all but soak if none is named")
    parser.add_argument("--quick", action="store_true", help="small: does it work at all?")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to soak (60)")
    parser.add_argument(
        "--runs-per-s", type=float, help="the pace of soak (half of what is reached)"
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.loads if name not in LOADS]
    if unknown:
        parser.error(f"no such load: {', '.join(unknown)}")
    return chosen


def main() -> None:
    chosen = parse()
    with Site(pools=0, gateways=0) as site:
        machine = report.describe_machine(asyncio.run(ask_version(site.dsn)))
    results: dict[str, Any] = {}
    for name in chosen.loads or UNLESS_NAMED:
        run, goals = LOADS[name]
        if name == "soak":
            run = partial(run, minutes=chosen.minutes, runs_per_s=chosen.runs_per_s)
        load_before = os.getloadavg()[0]
        print(f"{name} … (load average {load_before:.2f})", file=sys.stderr, flush=True)
        results[name] = run(is_quick=chosen.quick) | {"load_before": load_before}
        print(table(name, goals, results[name]), flush=True)
    document = {
        "commit": report.find_commit(),
        "command": " ".join(["python -m bench.loads", *sys.argv[1:]]),
        "is_quick": chosen.quick,
        "machine": machine,
        "loads": results,
    }
    report.RESULTS_DIR.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = chosen.json or report.RESULTS_DIR / (
        f"{now:%Y-%m-%d-%H%M%S}-loads-{document['commit']}.json"
    )
    print(f"\nwritten to {report.write(document, path)}")


def table(name: str, goals: tuple[report.Goal, ...], result: dict[str, Any]) -> str:
    """Return the figures beside their goals, and what a load has to say besides."""
    lines = []
    for goal in goals:
        value = result.get(goal.key)
        if value is not None:
            is_whole = value >= 100 or isinstance(value, int)
            figure = f"{value:,.0f}" if is_whole else f"{value:.2f}"
            lines.append(
                f"{name:<10}{goal.meaning:<62}{figure:>9}   {goal.verdict(value)}".rstrip()
            )
    return "\n".join([*lines, *result.get("notes", [])])


if __name__ == "__main__":
    main()
