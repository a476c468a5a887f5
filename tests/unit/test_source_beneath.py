"""Files are opened beneath the root only, with openat2 and without it."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smithers.source.beneath import RootDirectory
from smithers.source.errors import OutsideRoot, SourceError, SourceNotFound, SourceUnreadable
from tests.support.source_files import write_files

RACE_S = 0.3
RACE_LIMIT_S = 60.0


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return write_files(tmp_path / "outside", {"hello.py": "SECRET", "sub/hello.py": "SECRET"})


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    return write_files(tmp_path / "root", {"hello.py": "fine", "sub/hello.py": "fine"})


@pytest.fixture(params=["openat2", "stepwise"])
def root(request, inside: Path) -> Iterator[RootDirectory]:
    with RootDirectory(inside) as directory:
        if request.param == "openat2" and not directory.follows_links:
            pytest.skip("this kernel, or its seccomp filter, has no openat2")
        directory.follows_links = request.param == "openat2"
        yield directory


def read(root: RootDirectory, path: str, *, max_bytes: int = 1000) -> bytes:
    return root.read(path, max_bytes=max_bytes).content


@pytest.mark.parametrize("path", ["hello.py", "sub/hello.py", "./sub//./hello.py"])
def test_a_file_beneath_the_root_is_read(root, path):
    assert read(root, path) == b"fine"


@pytest.mark.parametrize(
    "path",
    [
        "../outside/hello.py",
        "sub/../hello.py",
        "..",
        "/etc/passwd",
        "//etc/passwd",
        "hello.py\0",
        "sub/\0../x",
    ],
)
def test_a_path_that_climbs_is_outside_before_the_disk_is_asked(root, outside, path):
    for ask in (read, RootDirectory.is_file):
        with pytest.raises(OutsideRoot):
            ask(root, path)


@pytest.mark.parametrize("path", ["nowhere.py", "hello.py/x", "a" * 300, "", ".", "\udc80.py"])
def test_what_is_not_there_is_not_found(root, path):
    with pytest.raises(SourceNotFound):
        read(root, path)


def test_links_that_lead_out_are_refused(root, inside, outside):
    (inside / "file.py").symlink_to(outside / "hello.py")
    (inside / "relative.py").symlink_to("../outside/hello.py")
    (inside / "directory").symlink_to(outside, target_is_directory=True)
    (inside / "up").symlink_to("..", target_is_directory=True)
    for path in ("file.py", "relative.py", "directory/hello.py", "up/outside/hello.py"):
        with pytest.raises(OutsideRoot) as caught:
            read(root, path)
        assert str(outside) not in caught.value.reason


def test_links_that_stay_inside_are_followed_by_openat2_alone(root, inside):
    (inside / "file.py").symlink_to("sub/hello.py")
    (inside / "directory").symlink_to("sub", target_is_directory=True)
    (inside / "sub" / "back.py").symlink_to("../hello.py")
    for path in ("file.py", "directory/hello.py", "sub/back.py"):
        if root.follows_links:
            assert read(root, path) == b"fine"
            assert root.is_file(path)
        else:
            with pytest.raises(OutsideRoot):
                read(root, path)


def test_a_link_to_itself_is_an_error_of_ours(root, inside):
    (inside / "loop.py").symlink_to("loop.py")
    with pytest.raises(SourceError):
        read(root, "loop.py")


def test_links_of_proc_are_refused():
    with RootDirectory(Path("/proc/self")) as root, pytest.raises((OutsideRoot, SourceUnreadable)):
        read(root, "root/etc/passwd")


def test_a_fifo_is_refused_and_does_not_block(root, inside):
    os.mkfifo(inside / "fifo.py")
    with pytest.raises(SourceUnreadable, match="regular file"):
        read(root, "fifo.py")
    assert not root.is_file("fifo.py")


def test_a_directory_is_no_file(root):
    with pytest.raises(SourceUnreadable, match="regular file"):
        read(root, "sub")
    assert root.is_dir("sub")
    assert root.is_dir("")
    assert not root.is_file("sub")
    assert not root.is_dir("hello.py")
    assert not root.is_dir("nowhere")


def test_a_file_is_refused_above_its_limit_only(root, inside):
    (inside / "large.py").write_bytes(b"x" * 101)
    assert len(read(root, "large.py", max_bytes=101)) == 101
    with pytest.raises(SourceUnreadable, match="100 bytes"):
        read(root, "large.py", max_bytes=100)


def test_a_second_name_of_an_outside_file_is_refused(root, inside, outside):
    os.link(outside / "hello.py", inside / "linked.py")
    with pytest.raises(SourceUnreadable, match="hard links"):
        read(root, "linked.py")


def test_what_cannot_be_opened_says_why(root, inside, monkeypatch):
    monkeypatch.chdir(inside)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.py")
        with pytest.raises(SourceUnreadable, match="cannot be opened: No such device"):
            read(root, "socket.py")


def test_a_file_that_changes_while_it_is_read_is_read_again(root, inside, monkeypatch):
    original, reads = os.read, []

    def change_once(fd: int, size: int) -> bytes:
        reads.append(size)
        if len(reads) == 1:
            (inside / "hello.py").write_bytes(b"longer than before")
        return original(fd, size)

    monkeypatch.setattr("smithers.source.beneath.os.read", change_once)
    assert read(root, "hello.py") == b"longer than before"


def test_a_file_that_never_stops_changing_is_refused(root, inside, monkeypatch):
    original = os.read

    def change_always(fd: int, size: int) -> bytes:
        with (inside / "hello.py").open("ab") as file:
            file.write(b"x")
        return original(fd, size)

    monkeypatch.setattr("smithers.source.beneath.os.read", change_always)
    with pytest.raises(SourceUnreadable, match="being written"):
        read(root, "hello.py")


def test_a_root_that_is_replaced_stays_the_same_directory(root, inside, outside):
    inside.rename(inside.with_name("moved"))
    outside.rename(inside)
    assert read(root, "hello.py") == b"fine"


def test_no_descriptor_is_left_open(root, inside, outside):
    (inside / "out.py").symlink_to(outside / "hello.py")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("hello.py", "sub/hello.py", "sub", "nowhere/x", "out.py"):
        try:
            read(root, path)
        except SourceError:
            root.is_dir("sub")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_closed_root_reads_nothing(root):
    root.close()
    root.close()
    with pytest.raises(SourceUnreadable):
        read(root, "hello.py")


def test_a_root_that_is_missing_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        RootDirectory(tmp_path / "nowhere")


def swap(name: Path, good: Path, bad: Path, *, stop: threading.Event) -> None:
    """Let one name be, in turns, what lies inside and a link to what lies outside."""
    away = name.with_name(name.name + ".away")
    link = name.with_name(name.name + ".link")
    link.symlink_to(bad)
    while not stop.is_set():
        if good == name:  # a real file or directory, moved away and replaced by the link
            name.rename(away)
            link.rename(name)
            name.rename(link)
            away.rename(name)
        else:  # a link, pointed elsewhere in one step
            for target in (good, bad):
                fresh = name.with_name(name.name + ".fresh")
                fresh.symlink_to(target)
                fresh.rename(name)


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_no_race_with_a_link_ever_leads_out(root, inside, outside, kind):
    name, path, good = {
        "directory": (inside / "sub", "sub/hello.py", inside / "sub"),
        "file": (inside / "hello.py", "hello.py", inside / "hello.py"),
        "link": (inside / "link", "link/hello.py", Path("sub")),
    }[kind]
    bad = outside / "hello.py" if kind == "file" else outside
    stop, start = threading.Event(), time.monotonic()
    seen: set[bytes | type[SourceError]] = set()
    swapper = threading.Thread(target=swap, args=(name, good, bad), kwargs={"stop": stop})
    swapper.start()
    # A race that showed only one side was none: it goes on until both were seen.
    sides = {OutsideRoot, b"fine"} if root.follows_links else {OutsideRoot}
    try:
        while (spent := time.monotonic() - start) < RACE_S or not seen >= sides:
            assert spent < RACE_LIMIT_S
            try:
                seen.add(read(root, path))
            except SourceError as error:
                seen.add(type(error))
    finally:
        stop.set()
        swapper.join()
    assert b"SECRET" not in seen
