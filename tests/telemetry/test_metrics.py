"""What a whole server shows at /metrics: true for all of its processes, whoever dies, and read by a real Prometheus."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bench.ports import free_port
from smithers.client import Client, NotFound
from smithers.telemetry import names
from tests.support.canary import TOKEN
from tests.support.serving import Serving, is_event, run_command
from tests.support.waiting import until
from tests.telemetry.conftest import Site, read_metrics, value_of

LIMIT_S = 60.0
PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None, reason="needs Debian's prometheus, with promtool"
)


def run_all(site: Site, path: str, count: int) -> None:
    with site.client as client:
        for run_id in [client.start(f"flows.py:{path}", {}) for _ in range(count)]:
            assert client.wait(run_id).status in {"finished", "failed"}


def series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


@contextmanager
def grown(site: Site, **expected: int) -> Iterator[None]:
    """Say by how much counters grow over a block, exactly; names without prefix and _total."""
    before = site.scrape()
    yield
    until(
        lambda: (
            {
                name: value_of(site.scrape(), f"smithers_{name}_total")
                - value_of(before, f"smithers_{name}_total")
                for name in expected
            }
            == expected
        ),
        f"counters grow by {expected}",
    )


def test_runs_and_nodes_are_counted(site: Site) -> None:
    with grown(site, runs_started=5, runs_finished=5, nodes_started=15, nodes_finished=15):
        run_all(site, "chain", 5)
    with grown(site, nodes_failed=1, nodes_retried=1, nodes_started=2, runs_finished=1):
        run_all(site, "retries", 1)
    with grown(site, runs_failed=1, nodes_failed=1):
        run_all(site, "breaks", 1)
    text = site.scrape()
    assert value_of(text, "smithers_run_duration_seconds_count", status="finished") >= 6
    assert value_of(text, "smithers_attempt_duration_seconds_count", state="failed") >= 2
    # The node that was tried again is one node, which has finished.
    assert value_of(text, "smithers_node_duration_seconds_count", state="finished") >= 16
    assert value_of(text, "smithers_queue_wait_seconds_count") >= 7


def test_cold_queries_are_counted_by_how_long_they_waited_for_a_connection(site: Site) -> None:
    before = site.value("smithers_db_wait_duration_seconds_count", lane="pool")
    with site.client as client:
        client.list_runs()
    assert site.value("smithers_db_wait_duration_seconds_count", lane="pool") > before


def test_requests_are_timed_by_how_they_were_answered(site: Site) -> None:
    with site.client as client, pytest.raises(NotFound):
        client.get("nobody")
    asked = {"method": "GET", "route": "/v1/runs/:runId", "status": "404"}
    assert site.value("smithers_http_request_duration_seconds_count", **asked) >= 1


def is_at(client: Client, run_id: str, status: str) -> bool:
    return client.get(run_id).status == status


def test_people_signals_and_timers_are_counted(site: Site) -> None:
    with (
        site.client as client,
        grown(site, approvals_requested=2, approvals_granted=1, approvals_denied=1),
        grown(site, signals_received=1, timers_created=1, timers_fired=1, runs_cancelled=1),
    ):
        asking = [client.start("flows.py:asks", {}) for _ in range(2)]
        listening = [client.start("flows.py:listens", {}) for _ in range(2)]
        napping = client.start("flows.py:naps", {})
        for run_id in asking:
            until(partial(is_at, client, run_id, "waiting-approval"), "asked")
        for run_id in listening:
            until(partial(is_at, client, run_id, "waiting-event"), "listens")
        until(lambda: site.value("smithers_approvals_pending") >= 2, "the gauge is read anew")
        assert site.value("smithers_runs", status="waiting-event") >= 2
        client.approve(asking[0], "go")
        client.approve(asking[0], "go")
        client.deny(asking[1], "go")
        client.signal(listening[0], "paid", {"n": 1})
        client.cancel(listening[1])
        for run_id in (*asking, listening[0], napping):
            client.wait(run_id)
    assert site.value("smithers_approval_wait_seconds_count") >= 2
    assert site.value("smithers_timer_delay_seconds_count") >= 1
    until(lambda: site.value("smithers_approvals_pending") == 0, "nobody is asked any more")


def test_nothing_that_was_counted_is_lost_with_a_child(site: Site) -> None:
    run_all(site, "chain", 6)
    before = site.scrape()
    with site.client as client:
        run_id = client.start("flows.py:holds", {})
        until(lambda: value_of(site.scrape(), "smithers_nodes_active") == 1, "the attempt is seen")
        for pid in site.children().values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: site.value("smithers_processes", role="child") >= 2, "children again")
        site.let_go.touch()
        assert client.wait(run_id).status == "finished"
    after = site.scrape()
    for name in ("runs_finished", "nodes_finished", "events_emitted", "frames_committed"):
        full = f"smithers_{name}_total"
        assert value_of(after, full) >= value_of(before, full), name
    told = sum(
        float(line.rpartition(" ")[2])
        for line in after.splitlines()
        if line.startswith("smithers_children_ended_total{")
    )
    assert told >= 2
    assert value_of(after, "smithers_takeovers_total", reason="exit") >= 1
    until(lambda: site.value("smithers_nodes_active") == 0, "no gauge is left behind")


def test_a_run_that_took_three_children_with_it_is_counted_as_failed(site: Site) -> None:
    failed = {kind: site.value(f"smithers_{kind}_failed_total") for kind in ("runs", "nodes")}
    with site.client as client:
        run = client.wait(client.start("flows.py:dies", {}))
    assert (run.error or {})["code"] == "WORKER_CRASHED"
    for kind, before in failed.items():
        name = f"smithers_{kind}_failed_total"

        def has_grown(name: str = name, wanted: float = before + 1) -> bool:
            return site.value(name) == wanted

        until(has_grown, name)


def test_no_series_grows_with_what_strangers_send(site: Site) -> None:
    run_all(site, "chain", 1)
    send(site.server, "GET", "/nowhere", None)
    send(site.server, "PATCH", "/nowhere", None)
    before = series(site.scrape())
    for number in range(150):
        send(site.server, f"M{number}", f"/v1/runs/{number}", None)
        send(site.server, "GET", f"/{number}", f"token-{number}")
        send(site.server, "GET", f"/v1/runs/{number}/nodes/{number}", TOKEN)
    new = series(site.scrape()) - before
    assert {line for line in new if "smithers_http_" not in line} == set()
    routes = {line for line in new if "/v1/runs/:runId/nodes/:nodeId" in line}
    assert new == routes
    assert len(routes) < 20


def test_metrics_need_the_token(site: Site) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        read_metrics(site.server.url)


def test_a_worker_by_itself_tells_how_it_is(root: Path, database: str) -> None:
    told = {"DATABASE_URL": database, "SMITHERS_API_KEY": TOKEN}
    with Serving(root, None, "--workers", "1", command="worker", **told) as worker:
        url = json.loads(worker.talk.until(is_event("metrics_served")))["url"]
        assert json.loads(read_metrics(url, path="/health")) == {"ok": True}
        until(lambda: is_ready(url), "the worker is ready")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            read_metrics(url)

        def listening_s() -> float:
            return value_of(read_metrics(url, TOKEN), "smithers_listener_age_seconds", role="pool")

        until(lambda: listening_s() > 0, "the pool listens")
        text = read_metrics(url, TOKEN)
        assert value_of(text, "smithers_processes", role="child") == 1
        assert value_of(text, "smithers_processes", role="server") == 1
        assert 'smithers_processes_died_total{module="worker"} 0.0' in text
        assert 0 < value_of(text, "smithers_heartbeat_age_seconds") < LIMIT_S
        for path in ("/", "/v1/runs", "/metrics/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                read_metrics(url, TOKEN, path)
        assert worker.stop() == 0


def test_a_worker_whose_port_others_reach_wants_a_token(root: Path, database: str) -> None:
    done = run_command("worker", "--host", "0.0.0.0", cwd=root, DATABASE_URL=database)
    assert done.returncode == 4
    assert "SMITHERS_API_KEY" in done.stderr


def is_ready(url: str) -> bool:
    try:
        return json.loads(read_metrics(url, path="/ready"))["ok"] is True
    except urllib.error.HTTPError as error:
        details = json.load(error)["error"]["details"]
        assert details["check"] in {"workers", "database"}
        return False


@needs_prometheus
def test_promtool_finds_nothing_to_say(site: Site) -> None:
    run_all(site, "chain", 1)
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        check=False,
        input=site.scrape(),
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_prometheus
def test_a_real_prometheus_reads_a_server_under_load(site: Site, tmp_path: Path) -> None:
    with prometheus(site.server.url, tmp_path) as ask:
        until(lambda: ask("up") == [1], "the first scrape")
        before = site.value("smithers_runs_finished_total")
        end = time.monotonic() + 6
        count = 0
        while time.monotonic() < end:
            run_all(site, "chain", 20)
            count += 20
            if count == 40:
                os.kill(next(iter(site.children().values())), signal.SIGKILL)
        until(lambda: ask("smithers_runs_finished_total") == [before + count], "all runs are seen")
        by_bucket = (
            'sum by (le) (rate(smithers_run_duration_seconds_bucket{status="finished"}[5m]))'
        )
        # One scrape or another may have been late on a busy machine.
        for query, is_right in (
            ("sum(resets(smithers_events_emitted_total[5m]))", lambda found: found == [0]),
            ("sum(resets(smithers_http_requests_total[5m]))", lambda found: found == [0]),
            (f"histogram_quantile(0.5, {by_bucket})", lambda found: 0 < found[0] < LIMIT_S),
            ('{__name__=~"smithers_.*"}', lambda found: len(found) > 200),
            ("smithers_nodes_finished_total", lambda found: found[0] >= 3 * count),
        ):
            found = until(partial(ask, query), f"there is an answer to {query}")
            assert is_right(found), (query, found)


def send(server: Serving, method: str, path: str, token: str | None) -> None:
    """Send a request, whatever comes back."""
    request = urllib.request.Request(server.url + path, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        error.close()


@contextmanager
def prometheus(url: str, folder: Path) -> Iterator[Callable[[str], list[float]]]:
    """Have a Prometheus that scrapes a server each second; yields what asks it for the values of a query."""
    port = free_port()
    (folder / "token").write_text(TOKEN)
    (folder / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: smithers
    authorization: {{credentials_file: {folder / "token"}}}
    static_configs: [{{targets: ["{urllib.parse.urlsplit(url).netloc}"]}}]
"""
    )
    assert PROMETHEUS is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )

    def ask(query: str) -> list[float]:
        asked = urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/query?{asked}", timeout=30
            ) as got:
                answer = json.load(got)
        except (urllib.error.URLError, ConnectionError):
            return []
        return [float(row["value"][1]) for row in answer["data"]["result"]]

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def test_the_names_are_those_of_the_module(site: Site) -> None:
    told = {line.split()[2] for line in site.scrape().splitlines() if line.startswith("# TYPE")}
    assert told == {metric.name for metric in names.FAMILIES}
