"""What is said at the end: the figures beside their goals, and a file with everything."""

import json
import os
import platform
import subprocess
import timeit
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.server import ROOT_DIR

RESULTS_DIR = Path(__file__).with_name("results")
GIB = 1024**3


@dataclass(frozen=True)
class Goal:
    """One line of the table; a limit is an upper one unless said otherwise."""

    workload: str
    key: str
    meaning: str
    limit: float | None = None
    is_floor: bool = False

    def verdict(self, value: float) -> str:
        if self.limit is None:
            return ""
        reached = value >= self.limit if self.is_floor else value <= self.limit
        sign = "≥" if self.is_floor else "≤"
        return f"{sign} {self.limit:g}".ljust(9) + ("reached" if reached else "MISSED")


GOALS = (
    Goal("first", "first_post_p50_ms", "first start of a workflow (described): POST, p50 ms"),
    Goal("W1", "p50_ms", "three nodes, alone: POST → end seen, p50 ms", 6),
    Goal("W1", "p99_ms", "… p99 ms", 12),
    Goal("W1", "first_event_p50_ms", "POST → first event, p50 ms", 3),
    Goal("W1", "post_p50_ms", "POST, p50 ms"),
    Goal("W1", "raw_commit_p50_ms", "raw: one bare commit, p50 ms"),
    Goal("W2", "runs_per_s", "three nodes, 64 in flight: runs/s", 1000, is_floor=True),
    Goal("W2", "p50_ms", "… latency p50 ms"),
    Goal("W2", "cpu_ms_per_run", "server CPU, ms a run", 1.6),
    Goal("W2", "client_cpu_ms_per_run", "client CPU, ms a run"),
    Goal("W2", "pss_peak_mib", "memory of all processes, peak PSS MiB", 300),
    Goal("W2", "raw_grouped_runs_per_s", "raw: five bare commits a run, grouped by 64: runs/s"),
    Goal("W3", "ms_per_node_100", "one run of 100 nodes: ms a node"),
    Goal("W3", "ms_per_node_200", "one run of 200 nodes: ms a node", 1),
    Goal("W3", "ms_per_node_1000", "one run of 1,000 nodes: ms a node", 1),
    Goal("W3", "raw_commit_mean_ms", "raw: one bare commit, mean ms"),
    Goal("W4", "p50_ms", "200 viewers: commit → viewer, p50 ms", 10),
    Goal("W4", "p99_ms", "… p99 ms", 50),
    Goal("W4", "raw_p50_ms", "raw: bare aiohttp fan-out, p50 ms"),
    Goal("W4", "raw_p99_ms", "… p99 ms"),
    Goal("W5", "p50_ms", "approve → end seen, alone, p50 ms", 6),
    Goal("W5", "p99_ms", "… p99 ms", 14),
    Goal("W5", "runs_per_s", "450 approvals, 32 in flight: runs/s", 700, is_floor=True),
    Goal("W5", "raw_commit_p50_ms", "raw: one bare commit, p50 ms"),
    Goal("W6", "kill_to_finished_s", "kill -9 of all → all finished, s", 3.7),
    Goal("W6", "kill_to_serving_s", "kill → serving again, s"),
    Goal("W6", "raw_floor_s", "raw: the work that is left, s"),
    Goal("W6", "nodes_missing", "nodes that never finished", 0),
    Goal("W6", "nodes_finished_twice", "nodes with two NodeFinished", 0),
    Goal("W6", "bodies_ended_twice", "bodies that ended twice (ledger)", 0),
)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the medians beside the goals."""
    lines = []
    for goal in GOALS:
        value = results.get(goal.workload, {}).get(goal.key)
        if value is not None:
            figure = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            lines.append(
                f"{goal.workload:<6}{goal.meaning:<58}{figure:>9}   {goal.verdict(value)}".rstrip()
            )
    others = {
        name: result["neighbours_cores"]
        for name, result in results.items()
        if "neighbours_cores" in result
    }
    lines.append(
        "cores used by others meanwhile: " + ", ".join(f"{n} {c:.2f}" for n, c in others.items())
    )
    lines += [
        _costs(name, result) for name, result in results.items() if "cpu_ms_per_run" in result
    ]
    return "\n".join(lines)


def _costs(name: str, result: dict[str, Any]) -> str:
    """Say what of the server used the processors: a run, in W3 and W4 a node."""
    unit = "node" if name in {"W3", "W4"} else "run"
    lines = [f"{name}    server CPU, ms a {unit}: {result['cpu_ms_per_run']:.2f}"]
    for title in ("cpu_ms_per_run_by_part", "cpu_ms_per_run_by_backend"):
        parts = [f"{part} {used:.2f}" for part, used in result[title].items() if used >= 0.01]
        lines.append("        " + ", ".join(parts))
    return "\n".join(lines)


def describe_machine(postgres_version: str) -> dict[str, Any]:
    """Say on what the figures were taken."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "load_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_call_ns": _time_call(),
        "postgres": postgres_version,
        **{name: version(name) for name in ("aiohttp", "asyncpg", "uvloop")},
    }


def _time_call() -> float:
    """Time a call of a small function, in ns: interpreters of one version differ by how they were built."""
    count = 200_000
    times = timeit.repeat("f(1)", "f = lambda n: (n, str(n))", number=count, repeat=5)
    return round(min(times) / count * 1e9, 1)


def find_commit() -> str:
    """Return the commit that was measured, with a mark if the tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=9"],
        cwd=ROOT_DIR,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # to look is not to write an index
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def write(document: dict[str, Any], path: Path | None) -> Path:
    """Write all that was measured; by default to bench/results, by date and commit."""
    if path is None:
        RESULTS_DIR.mkdir(exist_ok=True)
        now = datetime.now(UTC)
        path = RESULTS_DIR / f"{now:%Y-%m-%d-%H%M}-{document['commit']}.json"
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return path
