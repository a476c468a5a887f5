"""One trace from the caller's request to the end of its run, whoever performs it."""

import http.client
import json
import os
import signal
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import TOKEN
from tests.support.collector import SpanSeen, collecting
from tests.support.waiting import until
from tests.telemetry.conftest import Site, open_site

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


def post(site: Site, path: str, body: object, **headers: str) -> dict[str, Any]:
    """Send a request as a caller with a trace of its own would."""
    place = urllib.parse.urlsplit(site.server.url)
    assert place.hostname is not None
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    told = {"Authorization": f"Bearer {TOKEN}", **headers}
    connection.request("POST", path, json.dumps(body), told)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return json.loads(text)


def start(site: Site, workflow: str, trace_id: str = TRACE_ID, flags: str = "01") -> str:
    told = {"traceparent": f"00-{trace_id}-{CALLER}-{flags}"}
    return post(site, "/v1/runs", {"workflowPath": f"flows.py:{workflow}"}, **told)["runId"]


def spans_of(site: Site, run_id: str) -> list[SpanSeen]:
    """Wait for a run's own span, which is told last, and return all of its trace."""
    own = site.collector.until(
        lambda spans: [
            span
            for span in spans
            if span.name == "smithers.run" and span.attributes["smithers.run_id"] == run_id
        ]
    )
    return [span for span in list(site.collector.spans) if span.trace_id == own[0].trace_id]


def only(spans: list[SpanSeen], name: str) -> SpanSeen:
    (found,) = [span for span in spans if span.name == name]
    return found


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_trace_from_the_callers_request_to_the_tools(root: Path, protocol: str) -> None:
    with collecting(protocol) as collector, open_site(root, collector) as site:
        run_id = start(site, "chain")
        spans_of(site, run_id)
        site.collector.until(lambda seen: sum(one.name == "smithers.task" for one in seen) == 3)
        site.collector.until(lambda seen: any(one.name == "POST /v1/runs" for one in seen))
        spans = spans_of(site, run_id)
        with site.client as client:
            (known,) = client.list_runs()
    assert {span.trace_id for span in spans} == {TRACE_ID}
    request, run = only(spans, "POST /v1/runs"), only(spans, "smithers.run")
    assert (request.parent_id, request.kind) == (CALLER, 2)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/runs",
        "http.response.status_code": 200,
    }
    assert run.parent_id == request.span_id
    assert run.attributes["smithers.workflow_name"] == known.workflow_name
    assert run.attributes["smithers.status"] == "finished"
    tasks = [span for span in spans if span.name == "smithers.task"]
    assert {span.parent_id for span in tasks} == {run.span_id}
    assert [span.attributes["smithers.node_id"] for span in tasks] == ["a", "b", "c"]
    assert {span.attributes["smithers.run_id"] for span in tasks} == {run_id}
    above = tasks[0]
    for name, known in (
        ("own", {}),
        ("smithers.tool", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look-up"}),
        ("smithers.tool", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "deeper"}),
    ):
        (below,) = [span for span in spans if span.parent_id == above.span_id]
        assert below.name == name
        assert known.items() <= below.attributes.items()
        above = below
    assert all(span.began_ns <= span.ended_ns for span in spans)
    assert {span.resource["service.name"] for span in spans} == {"smithers"}


def test_the_trace_goes_on_with_another_worker_after_a_kill(site: Site) -> None:
    site.let_go.unlink(missing_ok=True)
    trace_id = "a" * 32
    with site.client as client:
        run_id = start(site, "holds", trace_id)
        until(lambda: _state(client, run_id, "hold") == "in-progress", "it holds")
        before = site.children()
        site.collector.until(
            lambda spans: any(one.attributes.get("smithers.node_id") == "first" for one in spans)
        )
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: _attempt(client, run_id, "hold") == 2, "another worker holds it")
        site.let_go.touch()
        assert client.wait(run_id).status == "finished"
    spans = spans_of(site, run_id)
    run = only(spans, "smithers.run")
    tasks = {
        (span.attributes["smithers.node_id"], span.attributes["smithers.attempt"]): span
        for span in spans
        if span.name == "smithers.task"
    }
    # The attempt that died with its process is all that is missing.
    assert tasks.keys() == {("first", 1), ("hold", 2), ("last", 1)}
    assert {span.parent_id for span in tasks.values()} == {run.span_id}
    first, second = tasks["first", 1].resource, tasks["hold", 2].resource
    assert first["process.pid"] != second["process.pid"]
    assert run.trace_id == trace_id


def test_a_wait_is_a_span_with_its_reason(site: Site) -> None:
    with site.client as client:
        run_id = start(site, "asks", "b" * 32)
        until(lambda: client.get(run_id).status == "waiting-approval", "it asks")
        client.approve(run_id, "go")
        client.wait(run_id)
    spans = spans_of(site, run_id)
    wait, run = only(spans, "smithers.wait"), only(spans, "smithers.run")
    assert wait.parent_id == run.span_id
    assert wait.attributes["smithers.wait_reason"] == "approval"
    assert run.began_ns <= wait.began_ns < wait.ended_ns <= run.ended_ns


def test_a_failed_attempt_is_an_error_without_its_words(site: Site) -> None:
    run_id = start(site, "breaks", "c" * 32)
    spans = spans_of(site, run_id)
    task, run = only(spans, "smithers.task"), only(spans, "smithers.run")
    assert (task.is_error, task.attributes["error.type"]) == (True, "ZeroDivisionError")
    assert (run.is_error, run.attributes["smithers.status"]) == (True, "failed")
    assert b"division" not in b"".join(site.collector.raw)


def test_a_run_that_is_cancelled_while_nobody_holds_it_has_its_span(site: Site) -> None:
    with site.client as client:
        run_id = start(site, "listens", "d" * 32)
        until(lambda: client.get(run_id).status == "waiting-event", "it listens")
        client.cancel(run_id)
    run = only(spans_of(site, run_id), "smithers.run")
    assert (run.attributes["smithers.status"], run.is_error) == ("cancelled", False)


def test_whoever_wants_no_trace_gets_none(site: Site) -> None:
    with site.client as client:
        silent, told = start(site, "chain", "e" * 32, "00"), start(site, "chain", "f" * 32)
        client.wait(silent)
        client.wait(told)
    spans_of(site, told)
    assert all(span.trace_id != "e" * 32 for span in site.collector.spans)


def test_a_dead_collector_holds_nothing_up(root: Path) -> None:
    with collecting("http/protobuf") as collector:
        pass
    # How long an export is tried before its spans are lost.
    with open_site(root, collector, OTEL_EXPORTER_OTLP_TIMEOUT="1") as site:
        with site.client as client:
            for run_id in [client.start("flows.py:chain", {}) for _ in range(20)]:
                assert client.wait(run_id).status == "finished"
        until(lambda: site.value("smithers_spans_dropped_total") > 0, "the loss is counted")
        assert site.server.stop() == 0


def test_a_protocol_that_is_not_there_is_refused_at_the_start(root: Path) -> None:
    from tests.support.serving import run_command

    done = run_command(
        *("serve", "--root-dir", str(root), "--port", "0"),
        SMITHERS_OTEL_ENABLED="1",
        OTEL_EXPORTER_OTLP_PROTOCOL="carrier-pigeon",
    )
    assert done.returncode in {1, 4}
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in done.stderr
    assert "Traceback" not in done.stderr


def _state(client, run_id: str, node_id: str) -> str | None:
    return next((node.state for node in client.list_nodes(run_id) if node.node_id == node_id), None)


def _attempt(client, run_id: str, node_id: str) -> int:
    return next((node.attempt for node in client.list_nodes(run_id) if node.node_id == node_id), 0)
