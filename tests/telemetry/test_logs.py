"""What is logged: one line of JSON for each event, with the ids that it belongs to, and no secret in it or anywhere else."""

import hashlib
import json
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from docs import telemetry_pages
from tests.support.canary import TOKEN
from tests.support.collector import collecting
from tests.support.serving import clean_environment
from tests.support.waiting import until
from tests.telemetry.conftest import Site, open_site, read_metrics
from tests.telemetry.test_metrics import send
from tests.telemetry.test_traces import spans_of, start

# Of each kind of secret one, which nothing else looks like.
INPUT = "canary-of-the-input-77c0"
OTEL_KEY = "canary-of-the-collector-1d52"
PASSWORD = "canary-of-the-database-90ee"
STRANGER = "canary-of-a-stranger-3fa8"
SIGNALLED = "canary-of-a-signal-c41b"
GUEST = "canary-of-a-guest-58d7"
SECRETS = (TOKEN, INPUT, OTEL_KEY, PASSWORD, STRANGER, SIGNALLED, GUEST)


def test_the_page_says_what_the_code_does() -> None:
    page = telemetry_pages.PAGE.read_text(encoding="utf-8")
    assert telemetry_pages.fill(page) == page, "python -m docs.telemetry_pages --write"


def test_what_is_logged_without_a_constant_name_would_be_seen(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "gateway").mkdir()
    monkeypatch.setattr(telemetry_pages, "TREE", tmp_path)
    module = tmp_path / "gateway" / "one.py"
    module.write_text('log.info("it_happened", run_id=1)\n(log.error if x else log.info)("a")\n')
    assert telemetry_pages.find_log_events()["it_happened"].fields == {"run_id"}
    for bad in (
        'log.info(f"run {run_id} went")',
        'LOG.warning("It went wrong")',
        "log.error(text)",
    ):
        module.write_text(bad)
        with pytest.raises(ValueError, match=r"one\.py:1"):
            telemetry_pages.find_log_events()


def test_every_line_is_json_with_a_known_event(site: Site) -> None:
    known = telemetry_pages.find_log_events()
    run_id = start(site, "chain")
    spans_of(site, run_id)
    lines = list(site.server.talk.lines)
    told = [json.loads(line) for line in lines]
    assert len(told) >= 3  # the server, and its two children
    for line in told:
        assert line.keys() >= {"timestamp", "level", "logger", "event"}
        event = known[line["event"]]
        named = {"error" if level == "exception" else level for level in event.levels}
        assert line["level"] in named
        rest = line.keys() - {"timestamp", "level", "logger", "event", "trace_id", "span_id"}
        assert rest <= event.fields | {"exception"}


def test_a_line_from_a_tasks_body_says_whose_it_is() -> None:
    done = run_logging("json")
    (line,) = [json.loads(line) for line in done.splitlines()]
    assert line["event"] == "half way"
    assert (line["run_id"], line["node_id"], line["iteration"], line["attempt"]) == (
        "r1",
        "a",
        0,
        2,
    )
    assert (line["level"], line["logger"]) == ("warning", "smithers.task")
    assert "trace_id" not in line


def test_pretty_is_for_people() -> None:
    text = run_logging("pretty")
    assert "half way" in text
    assert not text.startswith("{")


def test_pretty_gives_a_terminal_no_orders() -> None:
    text = run_logging(
        "pretty",
        """
try:
    raise ValueError("broke\\x1b[2J")
except ValueError:
    task.log.exception("event\\x1b]0;title\\x07")
import structlog
structlog.get_logger().warning("field", text="\\x9b2J")
""",
    )
    assert not set("\x1b\x07\x9b") & set(text)
    for shown in (r"broke\u001b[2J", r"event\u001b]0;title\u0007", r"text=\u009b2J"):
        assert shown in text


def run_logging(log_format: str, more: str = "") -> str:
    code = f"""
from pathlib import Path
from smithers.current import CURRENT, CurrentTask
from smithers.telemetry.logs import configure_logging
configure_logging({log_format!r}, "INFO")
task = CurrentTask(run_id="r1", node_id="a", iteration=0, attempt=2, root_dir=Path(), _send_heartbeat=print)
CURRENT.set(task)
task.log.warning("half way")
task.log.debug("not said")
{more}"""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env=clean_environment(),
        text=True,
        timeout=60,
    ).stderr


def test_no_secret_is_anywhere(root: Path, database: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.jsonl"
    known = {"sha256": hashlib.sha256(GUEST.encode()).hexdigest(), "user": "guest", "scopes": ["*"]}
    tokens.write_text(json.dumps(known), encoding="utf-8")
    place = urllib.parse.urlsplit(database)
    assert place.username
    where = place.netloc.rpartition("@")[2]
    url = place._replace(netloc=f"{place.username}:{PASSWORD}@{where}").geturl()
    with (
        collecting("http/protobuf") as collector,
        open_site(
            root,
            collector,
            "--log-level",
            "DEBUG",
            DATABASE_URL=url,
            SMITHERS_TOKENS_FILE=str(tokens),
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer {OTEL_KEY}",
        ) as site,
    ):
        shown = exercise(site)
        until(lambda: collector.headers, "spans came")
        assert collector.headers[0]["authorization"] == f"Bearer {OTEL_KEY}"
        for pid in site.children().values():
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
            assert not [secret for secret in SECRETS if secret in environment]
        shown["metrics"] = site.scrape()
        assert site.server.stop() == 0
        shown["logs"] = "\n".join(site.server.talk.lines)
        shown["traces"] = b"".join(collector.raw).decode("latin-1")
    found = [(secret, name) for name, text in shown.items() for secret in SECRETS if secret in text]
    assert found == []
    assert all(shown.values())


def exercise(site: Site) -> dict[str, str]:
    """Have every secret go wherever it may go; return what was shown meanwhile: events and errors."""
    with site.client as client:
        run_id = client.start("flows.py:chain", {"word": INPUT})
        ended = client.wait(run_id)
        assert ended.status == "finished", ended
        assert client.get_node(run_id, "b").output == INPUT
        waiting = client.start("flows.py:listens", {})
        until(lambda: client.get(waiting).status == "waiting-event", "it listens")
        client.signal(waiting, "paid", {"card": SIGNALLED})
        client.wait(waiting)
        breaking = client.start("flows.py:breaks", {"word": INPUT})
        client.wait(breaking)
        events = [
            event.to_wire() for run in (run_id, waiting, breaking) for event in client.stream(run)
        ]
    body = b'{"workflowPath": "flows.py:chain", "input": {"word": "' + STRANGER.encode()
    token, stranger = TOKEN.encode(), STRANGER.encode()
    end = b"\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    errors = [
        raw(
            site, b"POST /v1/runs HTTP/1.1\r\nAuthorization: Bearer " + token, len(body), end, body
        ),
        raw(site, b"GET /v1/runs HTTP/1.1\r\nBroken " + stranger, 0, end),
        raw(site, b"GET /v1/runs/x/events?token=" + stranger + b" HTTP/1.1", 0, end),
        raw(site, b"GET /v1/runs HTTP/1.1\r\nx-smithers-key: " + stranger, 0, end),
        raw(site, b"\x16\x03\x01" + stranger, 0, end),
    ]
    assert all(b"error" in error for error in errors)
    assert read_metrics(site.server.url, GUEST)
    send(site.server, "GET", f"/{STRANGER}", None)
    send(site.server, "GET", f"/v1/runs/{INPUT}", GUEST)
    return {"events": json.dumps(events), "errors": b"".join(errors).decode("latin-1")}


def raw(site: Site, head: bytes, size: int, end: bytes, body: bytes = b"") -> bytes:
    """Send bytes, and read what comes back until the server closes."""
    place = urllib.parse.urlsplit(site.server.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(head + b"\r\nContent-Length: %d" % size + end + body)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    return answer
