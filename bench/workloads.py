"""The six workloads, each beside its raw limit: what is started, what is measured around the load generator."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import raw
from bench.meters import Meter
from bench.profiling import Profile
from bench.server import ROOT_DIR, Server
from smithers.store.embedded import open_embedded_postgres

Result = dict[str, Any]
LOAD_LIMIT_S = 420.0
KILL_AFTER_S = 2.5
FLOOR_S = 3.0  # W6: two seconds and a half of work are left, and half a second was thrown away
PROFILE_S = 8
IN_FLIGHT = 64


@dataclass(frozen=True)
class Sizes:
    """How much of each workload; the figures of performance.md are those of the full sizes."""

    warm_up: int = 200
    alone: int = 200
    many: int = 1000
    chain: tuple[int, ...] = (200, 1000)
    viewers: int = 200
    ticks: int = 200
    approved_alone: int = 50
    approved_rest: int = 450
    commits: int = 1000
    steps: int = 5
    step_runs: int = 50


QUICK = Sizes(
    warm_up=50,
    alone=30,
    many=200,
    chain=(100,),
    ticks=40,
    approved_alone=10,
    approved_rest=60,
    commits=200,
)


def load(workload: str, port: int, *, by: str = "bench.load", **options: Any) -> Result:
    """Run one workload in the load generator's process; `by`: which one."""
    with open_load(by=by) as process:
        begin_load(process, workload, port, **options)
        return end_load(process)


@contextmanager
def open_load(*, by: str = "bench.load") -> Iterator[subprocess.Popen[bytes]]:
    """Have a load generator: it imports what it needs, and waits to be told."""
    command = [sys.executable, "-m", by]
    with subprocess.Popen(
        command, cwd=ROOT_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def begin_load(process: subprocess.Popen[bytes], workload: str, port: int, **options: Any) -> None:
    assert process.stdin is not None
    order = {"workload": workload, "port": port, "options": options}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()


def end_load(process: subprocess.Popen[bytes]) -> Result:
    answer, _ = process.communicate(timeout=LOAD_LIMIT_S)
    if process.returncode:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    result: Result = json.loads(answer)
    return result


def warm_up(server: Server, sizes: Sizes) -> Result:
    """Have everything loaded that is loaded once: imports, descriptions, plans, caches; say what that took."""
    result = load("first_starts", server.port)
    load("many", server.port, count=sizes.warm_up, in_flight=16)
    return result


def measure_raw(server: Server, sizes: Sizes) -> Result:
    """Measure bare commits, on a Postgres of their own: a recovery of the server's would repeat them."""
    with open_embedded_postgres(server.data_dir / "raw") as postgres:
        return asyncio.run(
            raw.measure(postgres.dsn, commit_count=sizes.commits, group_size=IN_FLIGHT)
        )


def w1(server: Server, sizes: Sizes) -> Result:
    limits = measure_raw(server, sizes)
    with Meter(server) as meter:
        result = load("one_by_one", server.port, count=sizes.alone)
    result |= meter.per_run(sizes.alone)
    result["raw_commit_p50_ms"] = limits["commit_p50_ms"]
    result["p50_in_raw_commits"] = result["p50_ms"] / limits["commit_p50_ms"]
    return result


def w2(server: Server, sizes: Sizes) -> Result:
    limits = measure_raw(server, sizes)
    with Meter(server, with_memory=True) as meter:
        result = load("many", server.port, count=sizes.many, in_flight=IN_FLIGHT)
    result |= meter.per_run(sizes.many)
    result["client_cpu_ms_per_run"] = result["client_cpu_s"] * 1000 / sizes.many
    result["raw_grouped_runs_per_s"] = limits["grouped_runs_per_s"]
    result["part_of_raw"] = result["runs_per_s"] / limits["grouped_runs_per_s"]
    return result


def w3(server: Server, sizes: Sizes) -> Result:
    limits = measure_raw(server, sizes)
    with Meter(server) as meter:
        result = load("chain", server.port, counts=list(sizes.chain))
    result |= meter.per_run(sum(sizes.chain))  # here: a node
    result["raw_commit_mean_ms"] = limits["commit_mean_ms"]
    return result


def w4(server: Server, sizes: Sizes) -> Result:
    bare = bare_fan_out(sizes.viewers, sizes.ticks, 0.05)
    with Meter(server) as meter:
        result = load(
            "viewers", server.port, viewer_count=sizes.viewers, count=sizes.ticks, pause_s=0.05
        )
    result |= meter.per_run(sizes.ticks)  # here: a node
    return result | {"raw_p50_ms": bare["p50_ms"], "raw_p99_ms": bare["p99_ms"]}


def bare_fan_out(viewer_count: int, count: int, pause_s: float) -> Result:
    """Measure what bench.fan_out delivers: so many events to each of so many viewers, a pause apart."""
    with fan_out_server(viewer_count, count, pause_s) as (port, _pid):
        return load("fan_out", port, viewer_count=viewer_count)


@contextmanager
def fan_out_server(viewer_count: int, count: int, pause_s: float) -> Iterator[tuple[int, int]]:
    """Have bench.fan_out running: its port and its pid."""
    command = ["-m", "bench.fan_out", str(viewer_count), str(count), str(pause_s)]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT_DIR, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.communicate()


def w5(server: Server, sizes: Sizes) -> Result:
    limits = measure_raw(server, sizes)
    with Meter(server) as meter:
        result = load(
            "approvals",
            server.port,
            alone_count=sizes.approved_alone,
            rest_count=sizes.approved_rest,
            in_flight=32,
        )
    result |= meter.per_run(sizes.approved_alone + sizes.approved_rest)
    result["raw_commit_p50_ms"] = limits["commit_p50_ms"]
    result["p50_in_raw_commits"] = result["p50_ms"] / limits["commit_p50_ms"]
    return result


def w6(server: Server, sizes: Sizes) -> Result:
    with tempfile.NamedTemporaryFile(prefix="smithers-ledger-", dir="/tmp") as ledger:
        given = {"count": sizes.steps, "step_s": 1.0, "ledger": ledger.name}
        begun = load("begin_steps", server.port, count=sizes.step_runs, given=given)
        with open_load() as following:  # clients are there already when a server fails
            time.sleep(max(0.0, begun["began_at"] + KILL_AFTER_S - time.monotonic()))
            killed_at = time.monotonic()
            server.kill()
            begin_load(following, "end_steps", server.port, run_ids=begun["run_ids"])
            server.restart()
            restarted_at = time.monotonic()
            ended = end_load(following)
        lines = Counter(Path(ledger.name).read_text().splitlines())
    return {
        "kill_to_finished_s": ended["ended_at"] - killed_at,
        "kill_to_serving_s": restarted_at - killed_at,
        "raw_floor_s": FLOOR_S,
        "nodes_finished": ended["node_count"],
        "nodes_missing": sizes.steps * sizes.step_runs - ended["node_count"],
        "nodes_finished_twice": ended["finished_twice"],
        "bodies_ended_twice": sum(count > 1 for count in lines.values()),
        "runs_auto_resumed": ended["resumed_count"],
    }


def profile(server: Server, sizes: Sizes) -> str:
    """Run W2 for some seconds under py-spy and return where the time went."""
    with tempfile.TemporaryDirectory(prefix="smithers-profile-") as directory:
        trial = load("many", server.port, count=sizes.many, in_flight=IN_FLIGHT)
        count = int(trial["runs_per_s"] * (PROFILE_S + 3))
        with open_load() as following:
            begin_load(following, "many", server.port, count=count, in_flight=IN_FLIGHT)
            time.sleep(1.0)
            watched = {"gateway": server.gateway_pid, "child": server.child_pids[0]}
            profiles = [
                Profile(name, pid, seconds=PROFILE_S, directory=Path(directory))
                for name, pid in watched.items()
            ]
            tables = [one.table() for one in profiles]
            end_load(following)
    return "\n".join(tables)


WORKLOADS = {"W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5, "W6": w6}
