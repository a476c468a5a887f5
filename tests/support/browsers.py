"""A page in a headless Chromium, and the one origin that it knows: its own site, with gateways behind it.

The origin gives the page, adds the token that the page does not have, and hands every other request to the first gateway that
answers, as a site's own server does. A gateway that is not there, or is on its way out, is passed over; where none is left
the connection is cut, so that the browser comes back by itself.
"""

import http.client
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from tests.support.serving import LIMIT_S

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--headless",
    "--no-sandbox",  # root's, as in most containers, cannot have one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
FOLLOWING = """<!doctype html>
<title>A run</title>
<script>
const seen = [];
const source = new EventSource("/v1/runs/RUN/events");
const tell = () => fetch("/seen", { method: "POST", body: JSON.stringify({ seen, state: source.readyState }) });
source.addEventListener("smithers", (event) => {
  seen.push([Number(event.lastEventId), JSON.parse(event.data).type]);
  tell();
});
source.addEventListener("error", tell);
</script>
"""
CLOSED = 2  # an EventSource's readyState once it will not come back


class Origin(ThreadingHTTPServer):
    """The page's site, on a free port."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, token: str, run_id: str) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.token = token
        self.page = FOLLOWING.replace("RUN", run_id).encode()
        self.gateways: list[str] = []  # URLs, the one to be asked first at the front
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[tuple[int, str]] = []
        self.state = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: browsers and gateways go away as they like."""

    def take(self, told: dict[str, Any]) -> None:
        """Take what the page has seen; an earlier telling may come later."""
        with self._changed:
            if len(told["seen"]) >= len(self.seen):
                self.seen = [(number, kind) for number, kind in told["seen"]]
                self.state = max(self.state, told["state"])
                self._changed.notify_all()

    def until(self, is_so: Callable[[Self], bool]) -> None:
        """Wait until the page has seen enough."""
        with self._changed:
            assert self._changed.wait_for(lambda: is_so(self), timeout=LIMIT_S), self.seen

    @property
    def kinds(self) -> list[str]:
        """The events' types, in the order in which the page saw them."""
        return [kind for _, kind in self.seen]


class _Visit(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(self.server.page)
        elif self.path == "/favicon.ico":
            self.send_error(404)
        else:
            self._hand_on()

    def do_POST(self) -> None:
        assert self.path == "/seen"
        self.server.take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Keep silent."""

    def _hand_on(self) -> None:
        headers = {"Authorization": f"Bearer {self.server.token}", "Accept": "text/event-stream"}
        if last := self.headers["Last-Event-ID"]:
            headers["Last-Event-ID"] = last
        for url in list(self.server.gateways):
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)) as link:
                try:
                    link.request("GET", self.path, headers=headers)
                    answer = link.getresponse()
                except (OSError, http.client.HTTPException):
                    continue
                with answer:
                    if answer.status < 500:
                        self._pass_on(answer)
                        return
        self.close_connection = True  # without a word

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name in ("Content-Type", "Cache-Control"):
            if answer.headers[name]:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        while data := answer.read1():
            self.wfile.write(data)


@contextmanager
def browsing(url: str) -> Iterator[None]:
    """Have a Chromium look at a page."""
    assert CHROMIUM is not None
    profile = tempfile.mkdtemp(prefix="smithers-chromium-")
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert process.poll() is None, "the browser has gone"
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        shutil.rmtree(Path(profile), ignore_errors=True)
