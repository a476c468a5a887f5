"""One server for all tests here that only use it: the examples and some workflows of the tests' own below one root."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from smithers.client import Client
from tests.support.serving import TREE, Serving, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Serving]:
    with serving(TREE) as started:
        yield started


@pytest.fixture
def client(server: Serving) -> Iterator[Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    """A root with the workflows of tests/e2e/flows.py."""
    text = (Path(__file__).parent / "flows.py").read_text(encoding="utf-8")
    (tmp_path / "flows.py").write_text(text, encoding="utf-8")
    return tmp_path
