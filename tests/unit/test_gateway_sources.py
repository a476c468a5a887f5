"""Where a gateway reads source: on its loop only what is remembered, unchanged and quickly looked at."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import sources as sources_module
from gateway.sources import Sources
from smithers.source import closure
from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceReader
from smithers.source.parsing import ParsedSource, read_source
from tests.support.source_files import write_files

HOUR_NS = 3_600_000_000_000


class Readings:
    """Which thread found or parsed what; a parse waits for `may_parse`."""

    def __init__(self, reader: SourceReader, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found_on: list[int] = []
        self.parsed_on: list[int] = []
        self.is_parsing = threading.Event()
        self.may_parse = threading.Event()
        self.may_parse.set()
        find = reader.find

        def find_here(path: str) -> Any:
            self.found_on.append(threading.get_ident())
            return find(path)

        def parse_here(content: bytes, path: str) -> ParsedSource:
            self.parsed_on.append(threading.get_ident())
            self.is_parsing.set()
            assert self.may_parse.wait(30)
            return read_source(content, path)

        monkeypatch.setattr(reader, "find", find_here)
        monkeypatch.setattr(closure, "read_source", parse_here)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return write_files(tmp_path, {"small.py": "import helpers\n", "helpers.py": "X = 1\n"})


@pytest.fixture
def reader(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceReader]:
    # Every file was last changed an hour ago, and every look at one is quick.
    later = SimpleNamespace(time_ns=lambda: time.time_ns() + HOUR_NS)
    monkeypatch.setattr(closure, "time", later)
    monkeypatch.setattr(sources_module, "SWIFT_S", 60.0)
    with RootDirectory(top) as root:
        yield SourceReader(root)


async def test_what_was_edited_is_parsed_in_a_thread(
    top: Path, reader: SourceReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, here = Readings(reader, monkeypatch), threading.get_ident()
    sources = Sources(reader, cast("Any", None), cast("Any", None))
    first = await sources.read("small.py")
    assert await sources.read("small.py") == first
    assert [thread == here for thread in seen.found_on] == [False, True]
    await asyncio.sleep(0)  # the next turn of the loop
    write_files(top, {"helpers.py": "X = 22\n"})
    assert (await sources.read("small.py")).modules["helpers.py"] == "X = 22\n"
    assert len(seen.parsed_on) == 3
    assert here not in seen.parsed_on


async def test_the_loop_waits_for_no_thread_that_parses(
    top: Path, reader: SourceReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Readings(reader, monkeypatch)
    sources = Sources(reader, cast("Any", None), cast("Any", None))
    first = await sources.read("small.py")
    write_files(top, {"large.py": "import helpers\n"})
    seen.is_parsing.clear()
    seen.may_parse.clear()
    large = asyncio.create_task(sources.read("large.py"))
    try:
        assert await asyncio.to_thread(seen.is_parsing.wait, 30)
        async with asyncio.timeout(60):
            assert await sources.read("small.py") == first
    finally:
        seen.may_parse.set()
    assert set((await large).modules) == {"large.py", "helpers.py"}


async def test_requests_of_one_turn_share_a_read(
    reader: SourceReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Sources(reader, cast("Any", None), cast("Any", None))
    await sources.read("small.py")
    seen = Readings(reader, monkeypatch)
    bundles = await asyncio.gather(*(sources.read("small.py") for _ in range(20)))
    assert len(seen.found_on) == 1
    assert all(bundle is bundles[0] for bundle in bundles)
