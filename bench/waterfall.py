"""`python -m bench.waterfall [--write]`: trace a run of bench/flows/watched.py, and draw it for docs/telemetry.md.

The spans are real: a server tells them to a collector here, over OTLP. One of its two children is killed while it holds the
run, so that the trace goes on with the other.
"""

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.server import ROOT_DIR, Server

PAGE = ROOT_DIR / "docs" / "telemetry.md"
WIDTH = 56
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LIMIT_S = 60.0


def main() -> None:
    spans: list[Any] = []
    with collecting(spans) as url, Server(otel={"OTEL_EXPORTER_OTLP_ENDPOINT": url}) as server:
        run_id = perform(f"http://127.0.0.1:{server.port}", server)
        until(lambda: any(span.name == "smithers.run" for span, _ in list(spans)))
        time.sleep(2)  # the gateway's spans leave once a second
    chosen = [one for one in spans if one[0].trace_id.hex() == CALLER.split("-")[1]]
    picture = "```text\n" + "\n".join(draw(chosen)) + "\n```\n"
    print(run_id, picture, sep="\n")
    if "--write" in sys.argv:
        write(picture)


def perform(url: str, server: Server) -> str:
    """Start a run, kill its owner, approve what it asks, and wait for its end."""
    run_id = call(f"{url}/v1/runs", {"workflowPath": "watched.py"})["runId"]
    until(lambda: state_of(url, run_id, "work") == "in-progress")
    time.sleep(1.5)  # what has ended is told once a second
    for pid in server.child_pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: state_of(url, run_id, "ask") == "waiting-approval")
    time.sleep(0.5)
    call(f"{url}/v1/runs/{run_id}/nodes/ask/approve", {})
    until(lambda: call(f"{url}/v1/runs/{run_id}")["status"] == "finished")
    return str(run_id)


def state_of(url: str, run_id: str, node_id: str) -> str | None:
    nodes = call(f"{url}/v1/runs/{run_id}/nodes")
    rows = nodes["nodes"] if isinstance(nodes, dict) else nodes
    return next((row["state"] for row in rows if row["nodeId"] == node_id), None)


def call(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"traceparent": CALLER} if data else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def until(condition: Any) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def draw(spans: list[tuple[Any, int]]) -> list[str]:
    """Draw spans below those that they stand below, each over its time."""
    begin = min(span.start_time_unix_nano for span, _ in spans)
    end = max(span.end_time_unix_nano for span, _ in spans)
    known = {span.span_id for span, _ in spans}
    lines = []

    def add(parent: bytes, depth: int) -> None:
        for span, pid in sorted(spans, key=lambda one: one[0].start_time_unix_nano):
            is_below = span.parent_span_id == parent or (
                not parent and span.parent_span_id not in known
            )
            if is_below:
                lines.append(line(span, pid, depth, begin, end))
                add(span.span_id, depth + 1)

    add(b"", 0)
    pids = list(dict.fromkeys(pid for _, pid in lines))
    return [f"{text}  {'ABCDEF'[pids.index(pid)]}" for text, pid in lines]


def line(span: Any, pid: int, depth: int, begin: int, end: int) -> tuple[str, int]:
    told = {item.key: item.value for item in span.attributes}
    name = "  " * depth + span.name
    if "smithers.node_id" in told:
        name += f" {told['smithers.node_id'].string_value}"
    if "smithers.attempt" in told:
        name += f" #{told['smithers.attempt'].int_value}"
    scale = WIDTH / (end - begin)
    start = int((span.start_time_unix_nano - begin) * scale)
    size = max(1, round((span.end_time_unix_nano - span.start_time_unix_nano) * scale))
    took_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    bar = (" " * start + "█" * size)[:WIDTH].ljust(WIDTH)
    return f"{name:43}|{bar}|{took_ms:9.1f} ms", pid


def write(picture: str) -> None:
    begin, end = "<!-- waterfall -->\n", "<!-- end of waterfall -->"
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    PAGE.write_text(before + begin + picture + end + rest.split(end)[1], encoding="utf-8")


@contextmanager
def collecting(spans: list[Any]) -> Iterator[str]:
    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {item.key: item.value for item in resource.resource.attributes}
                pid = about["process.pid"].int_value
                spans.extend((span, pid) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
