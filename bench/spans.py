"""`python -m bench.spans`: the processor time that a span takes, step by step, in the process that is traced.

Each step twice: over and over, and with other work between that leaves nothing of it in the processor's caches. A busy
server is between the two. Then an export, in the sender's thread, by how many spans leave with it.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from aiohttp import web
from multidict import CIMultiDict

from bench.telemetry import collecting
from gateway.traces import begin_request, end_request
from smithers.ids import RunId
from smithers.telemetry.sending import Sender
from smithers.telemetry.spans import Span
from smithers.telemetry.tracing import RunTrace, Tracer

CONTEXT: Final = f"00-{'ab' * 16}-{'cd' * 8}-01"
NEVER_MS: Final = "100000000"
ELSEWHERE: Final = json.dumps([{"key": number, "text": str(number)} for number in range(2_000)])
CODE: Final = Path(__file__).read_text(encoding="utf-8")
REPEATS: Final = 2_000
COLD_REPEATS: Final = 500


class Request:
    """All that a span of a request looks at."""

    method = "POST"
    headers = CIMultiDict({"Host": "here", "Content-Type": "application/json"})


class Steps:
    """What the spans of a run go through, one step at a time."""

    def __init__(self, sender: Sender) -> None:
        self._tracer = Tracer(sender)
        self._count = 0
        self._run = self._open()
        self._begun: list[Span] = []

    def _open(self) -> RunTrace:
        self._count += 1
        return RunTrace(self._tracer, RunId(f"run-{self._count:026d}"), "flow", 0, CONTEXT)

    def open_run(self) -> None:
        self._run = self._open()

    def begin_attempt(self) -> None:
        self._begun.append(self._run.begin_attempt("node", 0, 1))

    def make_current(self) -> None:
        self._run.make_current(self._run.span)

    def end_attempt(self) -> None:
        self._run.end_attempt(self._begun.pop(), "finished", None)

    def tell_run(self) -> None:
        self._run.tell_run("finished", None, began_ms=1, ended_ms=2)

    def tell_request(self) -> None:
        request = cast("web.Request", Request)
        span = begin_request(self._tracer, request)
        end_request(self._tracer, span, "/v1/runs", 200)


def open_sender(url: str, protocol: str) -> Sender:
    """Open a sender whose thread leaves what is queued to us."""
    return Sender(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": NEVER_MS,
            "OTEL_BSP_MAX_QUEUE_SIZE": "1000000",
        },
        print,
    )


def main() -> None:
    with collecting("http/protobuf") as url:
        sender = open_sender(url, "http/protobuf")
        sender.serve_authors()
        steps = Steps(sender)
        # How often a run of three nodes takes each: its own span, three attempts, two requests.
        of_a_run = {
            steps.open_run: 1,
            steps.begin_attempt: 3,
            steps.make_current: 4,
            steps.end_attempt: 3,
            steps.tell_run: 1,
            steps.tell_request: 2,
        }
        print(f"{'µs':16}{'in a run':>10}{'again':>10}{'cold':>10}")
        total = again = cold = 0.0
        for step, count in of_a_run.items():
            hot_us, cold_us = measure(step)
            again, cold, total = again + count * hot_us, cold + count * cold_us, total + count
            print(f"{step.__name__:16}{count:10}{hot_us:10.2f}{cold_us:10.2f}")
        print(f"{'a run, 6 spans':16}{'':10}{again:10.2f}{cold:10.2f}")
    for protocol in ("http/protobuf", "grpc"):
        with collecting(protocol) as url:
            show_exports(protocol, open_sender(url, protocol))


def measure(step: Callable[[], None]) -> tuple[float, float]:
    """Return what a step takes in µs: over and over, and cold; the fastest fifth of it, since others are at work too."""
    hot, cold = [], []
    for _ in range(5):
        began = time.thread_time_ns()
        for _ in range(REPEATS):
            step()
        hot.append((time.thread_time_ns() - began) / REPEATS)
    for _ in range(COLD_REPEATS):
        json.loads(ELSEWHERE)
        compile(CODE, "elsewhere", "exec")
        began = time.perf_counter_ns()
        step()
        cold.append(time.perf_counter_ns() - began)
    return min(hot) / 1_000, sorted(cold)[COLD_REPEATS // 5] / 1_000


def show_exports(protocol: str, sender: Sender) -> None:
    """Print what it takes to write spans down and to send them."""
    steps = Steps(sender)
    send = sender._send_waiting  # noqa: SLF001 - the work of its thread, in ours
    for count in (1, 100, 1_000):
        took = []
        for _ in range(20):
            for _ in range(count):
                steps.begin_attempt()
                steps.end_attempt()
            began = time.process_time_ns()
            send()
            took.append((time.process_time_ns() - began) / 1_000)
        print(
            f"{protocol}: an export of {count:5}: {min(took):8.0f} µs, for each {min(took) / count:8.2f}"
        )


if __name__ == "__main__":
    main()
