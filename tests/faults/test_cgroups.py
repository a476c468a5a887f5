"""Limits on all processes of a command together, by cgroups; without them the reason is told."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jailing import PLAIN_USER, REPOSITORY, UNREACHABLE, USERS
from tests.support.limiting import PROCESSES
from worker.sandbox.cgroups import NEEDED, NoCgroups, find_place

TOPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
TOP = next((top for top in TOPS if (top / "cgroup.controllers").exists()), None)
IS_GIVEN = (
    TOP is not None
    and os.geteuid() == 0
    and set(NEEDED) <= set((TOP / "cgroup.controllers").read_text().split())
)
needs_cgroups = pytest.mark.skipif(
    not IS_GIVEN, reason="needs root, and memory and pids in cgroups of version 2"
)


@pytest.fixture(params=USERS)
def delegated(request: pytest.FixtureRequest) -> Iterator[tuple[Path, int]]:
    """Make a cgroup as systemd's `Delegate=yes` with `DelegateSubgroup=main` does."""
    assert TOP is not None
    user = USERS[request.param]
    place = TOP / f"smithers-test-{os.getpid()}"
    (TOP / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    place.mkdir()
    (place / "main").mkdir()
    for folder in (place, place / "main"):
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(folder / name, user, -1)
    os.setxattr(place, "user.delegate", b"1")
    try:
        yield place, user
    finally:
        for left in place.glob("*/"):
            left.rmdir()
        place.rmdir()


def try_inside(place: Path, user: int, *, is_jailed: bool) -> dict[str, Any]:
    """Run tests.support.limiting in the cgroup, as that user; return what it has seen."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        os.chown(root, user, -1)
        told = (str(user), root, str(int(is_jailed)))
        ended = subprocess.run(
            [
                *("sh", "-c", 'echo 0 > "$0/main/cgroup.procs" && exec "$@"', place),
                *(sys.executable, "-m", "tests.support.limiting", *told),
            ],
            capture_output=True,
            check=False,
            cwd=REPOSITORY,
            text=True,
            timeout=110,
        )
    if ended.returncode == UNREACHABLE:
        pytest.skip("a plain user can reach no Python here, or not this tree")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.slow
@needs_cgroups
@pytest.mark.parametrize("is_jailed", [True, False], ids=["jailed", "open"])
def test_all_processes_of_a_command_share_its_limits(
    delegated: tuple[Path, int], *, is_jailed: bool
) -> None:
    place, user = delegated
    seen = try_inside(place, user, is_jailed=is_jailed)
    assert seen["limits"] == "yes (cpu, memory, pids)"
    assert "memory may be short" in seen["hungry"]
    assert 20 < seen["most"] <= PROCESSES + 1
    assert seen["hello"] == "hello\n"
    assert seen["left"] == []
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["main"]


def test_a_process_in_a_cgroup_that_is_not_its_own_is_told_so(tmp_path: Path) -> None:
    own = make_tree(tmp_path, "/a/main")
    (own.parent / "cgroup.controllers").write_text("cpu memory pids\n")
    with pytest.raises(NoCgroups, match=r"a/main: not delegated; .*/a: not delegated"):
        find_place(proc=tmp_path, uid=0)
    if os.geteuid() != 0:
        own.parent.chmod(0o500)
        with pytest.raises(NoCgroups, match="a: not writable"):
            find_place(proc=tmp_path)


def test_a_delegated_cgroup_is_taken_and_its_children_get_controllers(tmp_path: Path) -> None:
    own = make_tree(tmp_path, "/a/main")
    (own.parent / "cgroup.controllers").write_text("cpu io memory pids\n")
    assert find_place(proc=tmp_path, uid=PLAIN_USER) == own.parent
    assert (own.parent / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make_tree(tmp_path, "/")
    (own / "cgroup.controllers").write_text("hugetlb\n")
    with pytest.raises(NoCgroups, match="no controller for memory and pids"):
        find_place(proc=tmp_path)
    (own / "cgroup.controllers").write_text("memory pids\n")

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(NoCgroups, match="has processes of its own"):
        find_place(proc=tmp_path)
    (tmp_path / "self" / "cgroup").write_bytes(b"3:memory:/\n")
    with pytest.raises(NoCgroups, match="no cgroups of version 2"):
        find_place(proc=tmp_path)


def make_tree(proc: Path, own: str) -> Path:
    """Write down, as the kernel does, that this process is in a cgroup; return that."""
    top = proc / "mounted"
    place = top / own.lstrip("/")
    place.mkdir(parents=True)
    for folder in {place, place.parent if place != top else place}:
        for name in ("procs", "controllers", "subtree_control"):
            (folder / f"cgroup.{name}").write_text("")
    (proc / "self").mkdir()
    (proc / "self" / "mountinfo").write_text(
        f"24 30 0:22 / /sys rw - sysfs sysfs rw\n29 24 0:26 / {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    (proc / "self" / "cgroup").write_text(f"0::{own}\n")
    return place
