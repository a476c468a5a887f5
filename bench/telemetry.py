"""`python -m bench.telemetry [--rounds 12] [--runs 1200]`: what metrics and traces cost W2, side by side.

One server for each protocol, whose spans go to a collector. All its processes look at a switch that says what of their
telemetry is at work: nothing, metrics, or traces too. The modes take their turns round by round, in another order each time,
`counted` twice. So nothing but the mode differs: two servers, even two that are the same, differ by a twentieth for as
long as they live, by where their memory happens to lie.

What counts is the processor time of a run, with the spans' way out: exports follow up to a second behind, and so are waited
for. A processor that is shared does now more, now less in a second; so the time is compared as a multiple of what the load
generator took meanwhile, which does the same in each mode. runs/s move with whatever else the machine does. By how much
the two that are the same differ says how much of the rest is chance, and so does the interval of each ratio.
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from os import pathsep
from pathlib import Path

import grpc

from bench.meters import Meter
from bench.server import ROOT_DIR, Server
from bench.workloads import IN_FLIGHT, QUICK, load, warm_up
from smithers.telemetry.otel_variables import DELAY_S

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MODES = {"uncounted": b"0", "counted": b"1", "once more": b"1", "traced": b"2"}
RESAMPLES = 4_000
# Executed by every interpreter that starts: the server's own code has no switch for this.
SWITCHED = """
import mmap
import gateway.front, gateway.metrics, worker.meters, worker.records

with open({switch!r}, "r+b") as file:
    mode = mmap.mmap(file.fileno(), 1)

def count_where_told(of, name):
    count = getattr(of, name)
    setattr(of, name, lambda *given: count(*given) if mode[0] != ord("0") else None)

count_where_told(worker.meters.ChildMeters, "count_turn")
for name in ("count_request", "count_start"):
    count_where_told(gateway.metrics.Metrics, name)

begin_request = gateway.front.begin_request
gateway.front.begin_request = lambda tracer, request: begin_request(
    tracer if mode[0] == ord("2") else None, request
)
make_record = worker.records.RunRecord.__init__
worker.records.RunRecord.__init__ = lambda self, claim, meters, tracer: make_record(
    self, claim, meters, tracer if mode[0] == ord("2") else None
)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--runs", type=int, default=1_200, help="in each mode of a round")
    chosen = parser.parse_args()
    for protocol in ("http/protobuf", "grpc"):
        rates: defaultdict[str, list[float]] = defaultdict(list)
        costs: defaultdict[str, list[float]] = defaultdict(list)
        multiples: defaultdict[str, list[float]] = defaultdict(list)
        with ExitStack() as stack:
            server, switch = open_server(stack, protocol)
            warm_up(server, QUICK)
            for round_no in range(1, chosen.rounds + 1):
                # Each in another order: what went before leaves its marks.
                for mode in random.Random(round_no).sample(list(MODES), len(MODES)):
                    turn(switch, MODES[mode])
                    rate, cost, multiple = measure(server, chosen.runs)
                    rates[mode].append(rate)
                    costs[mode].append(cost)
                    multiples[mode].append(multiple)
                    told = f"{rate:8.1f} {cost:6.2f} {multiple:6.2f}"
                    print(f"{protocol} {round_no} {mode:10} {told}", flush=True)
        show(protocol, rates, costs, multiples)


def turn(switch: Path, mode: bytes) -> None:
    """Write in place: a file that is mapped must not be shorter for a moment."""
    with switch.open("r+b") as file:
        file.write(mode)


def measure(server: Server, run_count: int) -> tuple[float, float, float]:
    """Load a server; return its runs/s, and the processor time of a run in ms, and as a multiple of the client's."""
    with Meter(server) as meter:
        result = load("many", server.port, count=run_count, in_flight=IN_FLIGHT)
        time.sleep(1.5 * DELAY_S)
    cost_ms = meter.per_run(run_count)["cpu_ms_per_run"]
    client_ms = result["client_cpu_s"] * 1000 / run_count
    return result["runs_per_s"], cost_ms, cost_ms / client_ms


def show(
    protocol: str,
    rates: dict[str, list[float]],
    costs: dict[str, list[float]],
    multiples: dict[str, list[float]],
) -> None:
    """Print medians, and what all rounds together are to the mean of the two that are counted."""
    elapsed = {mode: [1 / rate for rate in rates[mode]] for mode in MODES}
    print(f"{protocol:14}{'ms CPU a run':>14}{'to counted':>26}{'runs/s':>10}{'to counted':>26}")
    for mode in MODES:
        cost, rate = (statistics.median(values[mode]) for values in (costs, rates))
        dearer, faster = compare(multiples, mode), compare(elapsed, mode, is_inverse=True)
        print(f"{mode:14}{cost:14.2f}{dearer:>26}{rate:10.2f}{faster:>26}", flush=True)


def compare(values: dict[str, list[float]], mode: str, *, is_inverse: bool = False) -> str:
    """Return the ratio of a mode's sum to that of the counted modes, and where it lies with 95 % confidence.

    The interval is that of the percentile bootstrap (B. Efron, "Bootstrap Methods: Another Look at the Jackknife", The Annals
    of Statistics, 1979): rounds are drawn anew, with replacement.
    """
    counted = map(statistics.mean, zip(values["counted"], values["once more"], strict=True))
    rounds = list(zip(values[mode], counted, strict=True))

    def ratio(drawn: list[tuple[float, float]]) -> float:
        own, base = map(sum, zip(*drawn, strict=True))
        return base / own if is_inverse else own / base

    draw = random.Random(0)
    drawn = sorted(ratio(draw.choices(rounds, k=len(rounds))) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES // 40], drawn[-RESAMPLES // 40]
    return f"{ratio(rounds):.3f} ({low:.3f} to {high:.3f})"


def open_server(stack: ExitStack, protocol: str) -> tuple[Server, Path]:
    """Start a server that is traced to a collector, and return it with the file of its switch."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smithers-switched-")))
    switch = folder / "switch"
    switch.write_bytes(MODES["counted"])
    (folder / "sitecustomize.py").write_text(SWITCHED.format(switch=str(switch)))
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(collecting(protocol)),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    path = pathsep.join((str(folder), str(ROOT_DIR)))
    return stack.enter_context(Server(otel=variables, environment={"PYTHONPATH": path})), switch


@contextmanager
def collecting(protocol: str) -> Iterator[str]:
    """Have a process that takes spans, and does nothing with them."""
    mine, its = Pipe()
    process = Process(target=take_grpc if protocol == "grpc" else take_http, args=(its,))
    process.start()
    try:
        yield f"http://127.0.0.1:{mine.recv()}"
    finally:
        process.kill()
        process.join()


def take_http(told: Connection) -> None:
    class Sink(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    told.send(server.server_port)
    server.serve_forever()


def take_grpc(told: Connection) -> None:
    class Sink(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method != EXPORT:
                return None
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Sink(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    told.send(port)
    threading.Event().wait()


if __name__ == "__main__":
    main()
