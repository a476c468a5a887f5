"""`python -m bench.telemetry [--sets 6] [--rounds 4] [--runs 300]`: what metrics and traces cost W2, side by side.

Servers that differ in nothing else stand beside one another: one whose counting is taken out, one as it comes, the same
once more, and one for each protocol whose spans go to a collector. They take their turns with the same load, round by
round, so that a busy minute falls upon all of them. Two servers that are the same may yet differ by a twentieth for as long
as they live, by where their memory happens to lie: so after some rounds all are ended, and a new set is started. What
counts is the processor time of a run; runs/s move with whatever else the machine does. By how much the two that are
the same differ says how much of the rest is chance.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from bench.meters import Meter
from bench.server import ROOT_DIR, Server
from bench.workloads import IN_FLIGHT, QUICK, load, warm_up

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# Executed by every interpreter that starts: the server's own code has no switch for this.
UNCOUNTED = """
import gateway.metrics, worker.meters
worker.meters.ChildMeters.count_turn = lambda *_: None
gateway.metrics.Metrics.count_request = lambda *_: None
gateway.metrics.Metrics.count_start = lambda *_: None
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.telemetry", description=__doc__)
    parser.add_argument("--sets", type=int, default=6, help="of new servers")
    parser.add_argument("--rounds", type=int, default=4, help="of each set")
    parser.add_argument("--runs", type=int, default=300, help="in each round, for each server")
    chosen = parser.parse_args()
    rates: defaultdict[str, list[list[float]]] = defaultdict(list)
    costs: defaultdict[str, list[list[float]]] = defaultdict(list)
    for set_no in range(1, chosen.sets + 1):
        with ExitStack() as stack:
            servers = open_servers(stack, random.Random(set_no))
            for name, server in servers.items():
                warm_up(server, QUICK)
                rates[name].append([])
                costs[name].append([])
            for round_no in range(1, chosen.rounds + 1):
                # Each in another order: a server's neighbours leave their marks on it.
                for name in random.Random(round_no).sample(list(servers), len(servers)):
                    rate, cost = measure(servers[name], chosen.runs)
                    rates[name][-1].append(rate)
                    costs[name][-1].append(cost)
                    print(f"{set_no}.{round_no} {name:10} {rate:8.1f} {cost:6.2f}", flush=True)
    show(rates, costs)


def measure(server: Server, run_count: int) -> tuple[float, float]:
    """Load a server; return its runs/s, and the processor time of a run in ms."""
    with Meter(server) as meter:
        result = load("many", server.port, count=run_count, in_flight=IN_FLIGHT)
    return result["runs_per_s"], meter.per_run(run_count)["cpu_ms_per_run"]


def show(rates: dict[str, list[list[float]]], costs: dict[str, list[list[float]]]) -> None:
    """Print medians; then the ratio to `counted` of each set's medians: the sets' median, least and most."""
    print(f"{'':12}{'ms CPU a run':>14}{'to counted':>26}{'runs/s':>10}{'to counted':>26}")
    for name in rates:
        line = f"{name:12}"
        for values, width in ((costs, 14), (rates, 10)):
            mine = [statistics.median(of_set) for of_set in values[name]]
            base = [statistics.median(of_set) for of_set in values["counted"]]
            ratios = [one / other for one, other in zip(mine, base, strict=True)]
            told = f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
            line += f"{statistics.median(mine):{width}.2f}{told:>26}"
        print(line)


def open_servers(stack: ExitStack, order: random.Random) -> dict[str, Server]:
    """Start the servers, in some order, and collectors for those that are traced."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smithers-uncounted-"))
    (Path(folder) / "sitecustomize.py").write_text(UNCOUNTED)
    servers = {
        "uncounted": Server(environment={"PYTHONPATH": os.pathsep.join((folder, str(ROOT_DIR)))}),
        "counted": Server(),
        "once more": Server(),
    }
    for protocol in ("http/protobuf", "grpc"):
        url = stack.enter_context(collecting(protocol))
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        servers[protocol.split("/")[0]] = Server(otel=variables)
    names = order.sample(list(servers), len(servers))
    return {name: stack.enter_context(servers[name]) for name in names}


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
    class Sink(grpc.GenericRpcHandler):
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
    sys.exit(main())
