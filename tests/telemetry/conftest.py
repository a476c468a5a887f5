"""A server whose spans go to a collector, and a root with workflows; both for all tests here."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import canary
from tests.support.canary import TOKEN
from tests.support.collector import Collector, collecting
from tests.support.serving import Serving, clean_environment, serving

WORKERS = 2


class Site:
    """The server, what it sends its spans to, and how its metrics are read."""

    def __init__(self, server: Serving, collector: Collector, let_go: Path) -> None:
        self.server = server
        self.collector = collector
        self.let_go = let_go

    @property
    def client(self):
        return self.server.client(TOKEN)

    def scrape(self) -> str:
        """Read /metrics."""
        return read_metrics(self.server.url, TOKEN)

    def value(self, name: str, **labels: str) -> float:
        """Read one series; 0 where there is none."""
        return value_of(self.scrape(), name, **labels)

    def children(self) -> dict[int, int]:
        """Find the processes that move runs, by their slots."""
        found: dict[int, int] = {}
        for told in self.log():
            if told["event"] == "child_started":
                found[told["slot"]] = told["pid"]
            elif told["event"] == "child_ended":
                found.pop(told["slot"], None)
        return found

    def log(self) -> list[dict[str, Any]]:
        """Read what the server's processes have logged so far."""
        return [json.loads(line) for line in list(self.server.talk.lines) if line.startswith("{")]


def read_metrics(url: str, token: str | None = None, path: str = "/metrics") -> str:
    import urllib.request

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(
        urllib.request.Request(url + path, headers=headers), timeout=30
    ) as got:
        text: str = got.read().decode()
    canary.look_through(text, "a metric")
    return text


def value_of(text: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


@contextmanager
def open_site(root: Path, collector: Collector, *flags: str, **env: str) -> Iterator[Site]:
    """Have a server whose children are all at work; with a DATABASE_URL on that database, which must be migrated."""
    let_go = root / "let-go"
    told = {
        "SMITHERS_API_KEY": TOKEN,
        "SMITHERS_OTEL_ENABLED": "1",
        "LET_GO": str(let_go),
        **collector.variables,
        **env,
    }
    flags = ("--port", "0", "--workers", str(WORKERS), *flags)
    with (
        Serving(root, None, *flags, **told)
        if "DATABASE_URL" in env
        else serving(root, *flags, **told)
    ) as server:
        site = Site(server, collector, let_go)
        server.talk.until(lambda _line: len(site.children()) == WORKERS)
        yield site


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    shutil.copy(Path(__file__).with_name("flows.py"), folder)
    return folder


@pytest.fixture(scope="module")
def site(root: Path) -> Iterator[Site]:
    assert "SMITHERS_API_KEY" not in clean_environment()
    with collecting("http/protobuf") as collector, open_site(root, collector) as site:
        yield site
