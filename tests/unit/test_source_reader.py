"""A reader parses only what changed, and never takes a changed file for an unchanged one."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from smithers.source import closure
from smithers.source.beneath import FileContent, RootDirectory
from smithers.source.closure import SourceReader
from smithers.source.errors import OutsideRoot, SourceBroken, SourceNotFound
from smithers.source.parsing import ParsedSource, read_source
from tests.support.source_files import write_files

HOUR_NS = 3_600_000_000_000


class CountingRoot(RootDirectory):
    """Remembers which files were read; what it reads is real."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.files_read: list[str] = []

    def read(self, relative: str, *, max_bytes: int) -> FileContent:
        self.files_read.append(relative)
        return super().read(relative, max_bytes=max_bytes)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    files = {"flows/hello.py": "import helpers\n", "helpers.py": "X = 1\n"}
    return write_files(tmp_path / "root", files)


@pytest.fixture
def root(top):
    with CountingRoot(top) as directory:
        yield directory


@pytest.fixture
def an_hour_later(monkeypatch):
    """Let the reader believe that every file here was last changed an hour ago."""
    later = SimpleNamespace(time_ns=lambda: time.time_ns() + HOUR_NS)
    monkeypatch.setattr(closure, "time", later)


def text_of(reader: SourceReader, file: str = "helpers.py") -> str:
    return reader.read("flows/hello.py").modules[file]


@pytest.mark.usefixtures("an_hour_later")
def test_an_unchanged_file_is_not_read_again(root):
    reader = SourceReader(root)
    first = reader.read("flows/hello.py")
    root.files_read.clear()
    assert reader.read("flows/hello.py") == first
    assert root.files_read == []


@pytest.mark.usefixtures("an_hour_later")
def test_a_changed_file_alone_is_read_again(root, top):
    reader = SourceReader(root)
    text_of(reader)
    root.files_read.clear()
    write_files(top, {"helpers.py": "X = 22\n"})
    assert text_of(reader) == "X = 22\n"
    assert root.files_read == ["helpers.py"]


def test_a_file_that_was_just_changed_is_not_trusted_to_look_changed(root, top, monkeypatch):
    reader = SourceReader(root)
    assert text_of(reader) == "X = 1\n"
    # As on a file system whose clock has not ticked in between: nothing to be seen from outside.
    frozen = root.find_identity("helpers.py")
    monkeypatch.setattr(root, "find_identity", lambda _path: frozen)
    write_files(top, {"helpers.py": "X = 2\n"})
    assert text_of(reader) == "X = 2\n"


def test_an_edit_of_the_same_size_with_its_time_restored_is_seen(root, top):
    reader = SourceReader(root)
    status = (top / "helpers.py").stat()
    for number in range(2, 10):
        write_files(top, {"helpers.py": f"X = {number}\n"})
        os.utime(top / "helpers.py", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert text_of(reader) == f"X = {number}\n"


def test_a_time_in_the_future_is_never_trusted(root, top, monkeypatch):
    reader = SourceReader(root)
    future_ns = time.time_ns() + 2 * HOUR_NS
    os.utime(top / "helpers.py", ns=(future_ns, future_ns))
    monkeypatch.setattr(closure, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + HOUR_NS))
    text_of(reader)
    root.files_read.clear()
    text_of(reader)
    assert root.files_read == ["helpers.py"]


@pytest.mark.usefixtures("an_hour_later")
def test_a_file_that_appears_and_shadows_another_is_seen(root, top):
    reader = SourceReader(root)
    text_of(reader)
    write_files(top, {"flows/helpers.py": "X = 'nearer'\n"})
    assert text_of(reader, "flows/helpers.py") == "X = 'nearer'\n"
    write_files(top, {"flows/helpers/__init__.py": "X = 'package'\n"})
    assert text_of(reader, "flows/helpers/__init__.py") == "X = 'package'\n"
    (top / "flows/helpers/__init__.py").unlink()
    (top / "flows/helpers.py").unlink()
    assert text_of(reader) == "X = 1\n"


@pytest.mark.usefixtures("an_hour_later")
def test_what_goes_wrong_is_seen_and_gone_when_it_is_mended(root, top, tmp_path):
    reader = SourceReader(root)
    text_of(reader)
    write_files(top, {"helpers.py": "X = (\n"})
    with pytest.raises(SourceBroken):
        text_of(reader)
    write_files(top, {"helpers.py": "X = 3\n"})
    assert text_of(reader) == "X = 3\n"
    (top / "flows").rename(tmp_path / "flows")
    with pytest.raises(SourceNotFound):
        text_of(reader)
    (top / "flows").symlink_to(tmp_path / "flows", target_is_directory=True)
    with pytest.raises(OutsideRoot):  # the very same file, but no longer beneath the root
        text_of(reader)


@pytest.mark.usefixtures("an_hour_later")
@pytest.mark.parametrize(("limit", "value"), [("MAX_CACHED_FILES", 3), ("MAX_CACHED_BYTES", 20)])
def test_what_is_remembered_is_bounded_and_still_right(root, top, monkeypatch, limit, value):
    monkeypatch.setattr(closure, limit, value)
    write_files(top, {f"m{number}.py": f"X = {number}\n" for number in range(10)})
    reader = SourceReader(root)
    for _ in range(2):
        for number in range(10):
            bundle = reader.read(f"m{number}.py")
            assert bundle.modules == {f"m{number}.py": f"X = {number}\n"}
    assert len(reader._files._files) <= 3
    assert reader._files._size_bytes == sum(
        len(file.content) for file in reader._files._files.values()
    )


def test_threads_may_share_a_reader(root, top):
    reader = SourceReader(root)
    write_files(top, {f"m{number}.py": "import helpers" for number in range(20)})
    with ThreadPoolExecutor(8) as pool:
        bundles = list(pool.map(reader.read, [f"m{number}.py" for number in range(20)] * 5))
    assert {len(bundle.modules) for bundle in bundles} == {2}
    assert len({bundle.source_hash for bundle in bundles}) == 20


@pytest.mark.usefixtures("an_hour_later")
def test_only_what_is_remembered_and_unchanged_is_found(root, top):
    reader = SourceReader(root)
    assert reader.find("flows/hello.py") is None
    first = reader.read("flows/hello.py")
    root.files_read.clear()
    assert reader.find("flows/hello.py") == first
    write_files(top, {"helpers.py": "X = 22\n"})
    assert reader.find("flows/hello.py") is None
    assert root.files_read == []
    with pytest.raises(OutsideRoot):
        reader.find("../outside.py")


@pytest.mark.usefixtures("an_hour_later")
def test_a_thread_that_reads_keeps_nobody_from_another_version(root, top, monkeypatch):
    reader = SourceReader(root)
    first = reader.read("flows/hello.py")
    write_files(top, {"large.py": "import helpers\n", "new.py": "import helpers\n"})
    parse, is_parsing, may_go_on = read_source, threading.Event(), threading.Event()

    def read_slowly(content: bytes, path: str) -> ParsedSource:
        if path == "large.py":
            is_parsing.set()
            assert may_go_on.wait(30)
        return parse(content, path)

    monkeypatch.setattr(closure, "read_source", read_slowly)
    with ThreadPoolExecutor() as pool:
        large = pool.submit(reader.read, "large.py")
        assert is_parsing.wait(30)
        try:
            for look in (reader.find, reader.read):
                assert pool.submit(look, "flows/hello.py").result(60) == first
            assert set(pool.submit(reader.read, "new.py").result(60).modules) == {
                "new.py",
                "helpers.py",
            }
        finally:
            may_go_on.set()
        assert set(large.result().modules) == {"large.py", "helpers.py"}


@pytest.mark.usefixtures("an_hour_later")
def test_of_threads_that_want_one_version_one_parses_it(root, top, monkeypatch):
    reader = SourceReader(root)
    parse, parsed = read_source, []

    def count(content: bytes, path: str) -> ParsedSource:
        parsed.append(path)
        return parse(content, path)

    monkeypatch.setattr(closure, "read_source", count)
    with ThreadPoolExecutor(8) as pool:
        bundles = list(pool.map(reader.read, ["flows/hello.py"] * 8))
    assert sorted(parsed) == ["flows/hello.py", "helpers.py"]
    assert len({bundle.source_hash for bundle in bundles}) == 1


@pytest.mark.usefixtures("an_hour_later")
def test_a_read_of_an_unchanged_file_is_cheap(tmp_path):
    write_files(tmp_path, {"flows/hello.py": "import asyncio\nfrom pydantic import BaseModel\n"})
    with RootDirectory(tmp_path) as root:
        reader = SourceReader(root)
        reader.read("flows/hello.py")
        start = time.perf_counter()
        for _ in range(200):
            reader.read("flows/hello.py")
        print(f"\n{(time.perf_counter() - start) / 200 * 1e6:.0f} µs a read")  # noqa: T201 - said, not asserted
