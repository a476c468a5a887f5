"""What tools promise to the body of a task: where they reach, what they record, how they are called."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import re
import socket
import stat
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from smithers.current import current_task
from smithers.errors import SmithersError
from smithers.tools import (
    InvalidToolInput,
    ToolError,
    ToolRefused,
    ToolTimedOut,
    bash,
    current_call,
    edit,
    grep,
    read,
    tool,
    write,
)
from smithers.tools.files import MAX_FILE_BYTES
from tests.support.tools import Records, lending_tools, swap_for_ever
from worker.sandbox import commands as sandbox_commands
from worker.threads import MAX_THREADS
from worker.toolboxes import MAX_DEPTH, AttemptToolbox

CANARY = "canary-51c0"
SWAPS = 10_000
MAX_CALL_BYTES = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(CANARY)
    return tmp_path / "root"


@pytest.fixture
async def lent(root: Path) -> AsyncIterator[tuple[AttemptToolbox, Records]]:
    with lending_tools(root) as found:
        yield found


async def test_what_is_written_is_read_and_edited(root: Path, lent: object) -> None:
    written = await write("notes/today.md", "one\ntwo\nthree\n")
    assert (written.bytes, written.is_new) == (14, True)
    changed = await edit("notes/today.md", "two", "2")
    assert changed.replacements == 1
    part = await read("notes/today.md", start_line=2, max_lines=1)
    assert (part.text, part.line_count, part.is_truncated) == ("2\n", 3, True)
    assert not (await write("notes/today.md", "new")).is_new
    assert [path.name for path in (root / "notes").iterdir()] == ["today.md"]


@pytest.mark.parametrize(
    "call", [lambda path: write(path, "mine"), lambda path: edit(path, "old", "new")]
)
async def test_a_file_in_the_place_of_a_directory_is_said_to_be_one(
    root: Path, lent: object, call: Callable[[str], Awaitable[object]]
) -> None:
    await write("d/f.txt", "text")
    with pytest.raises(ToolRefused, match=r"d/f\.txt is a file, not a directory"):
        await call("d/f.txt/y")
    with pytest.raises(ToolRefused, match=r"d/f\.txt"):
        await call("d/f.txt/y/z")


@pytest.mark.parametrize("old", ["absent", "twice", ""])
async def test_an_edit_that_is_not_certain_changes_nothing(
    root: Path, lent: object, old: str
) -> None:
    (root / "a.txt").write_text("twice twice")
    with pytest.raises(ToolRefused):
        await edit("a.txt", old, "x")
    assert (root / "a.txt").read_text() == "twice twice"


async def test_all_of_a_text_is_replaced_when_asked_for(root: Path, lent: object) -> None:
    (root / "a.txt").write_text("twice twice")
    (root / "a.txt").chmod(0o750)
    assert (await edit("a.txt", "twice", "once", replace_all=True)).replacements == 2
    assert (root / "a.txt").read_text() == "once once"
    assert (root / "a.txt").stat().st_mode & 0o777 == 0o750


async def test_what_is_replaced_keeps_its_mode_and_its_owner(root: Path, lent: object) -> None:
    file = root / "a.sh"
    before = os.umask(0o077)
    try:
        for change in (lambda: write("a.sh", "two"), lambda: edit("a.sh", "one", "two")):
            file.write_text("one")
            if os.geteuid() == 0:
                os.chown(file, 65_534, 65_533)
            file.chmod(0o4776)
            status = file.stat()
            await change()
            assert file.read_text() == "two"
            assert stat.S_IMODE(file.stat().st_mode) == 0o776
            assert (file.stat().st_uid, file.stat().st_gid) == (status.st_uid, status.st_gid)
    finally:
        os.umask(before)


async def test_of_edits_at_once_none_is_lost(root: Path, lent: object) -> None:
    (root / "a.txt").write_text("".join(f"<{number}>" for number in range(20)))
    await asyncio.gather(*(edit("a.txt", f"<{number}>", f"[{number}]") for number in range(20)))
    assert (root / "a.txt").read_text() == "".join(f"[{number}]" for number in range(20))


async def test_an_edit_takes_no_more_memory_than_a_file_may_have(root: Path, lent: object) -> None:
    (root / "a.txt").write_text("a" * (MAX_FILE_BYTES // 4))
    tracemalloc.start()
    try:
        with pytest.raises(ToolRefused, match="this would have"):
            await edit("a.txt", "a", "ü" * 50, replace_all=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * MAX_FILE_BYTES
    assert (root / "a.txt").stat().st_size == MAX_FILE_BYTES // 4


async def test_who_waits_for_a_directory_that_others_keep_locked_ends_with_its_attempt(
    root: Path, lent: object
) -> None:
    """A thread that went on waiting would cost the worker."""
    directory = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        current_task().cancelled.set()
        with pytest.raises(ToolRefused, match="kept locked"):
            async with asyncio.timeout(60):
                await write("a.txt", "new")
    finally:
        os.close(directory)


def lay_traps(root: Path) -> dict[str, str]:
    """Make what must not be followed; return it by its kind."""
    outside = root.parent / "outside"
    (root / "link").symlink_to(outside / "secret.txt")
    (root / "up").symlink_to("../outside/secret.txt")
    (root / "folder").symlink_to(outside)
    (root / "dangling").symlink_to(outside / "new.txt")
    (root / "magic").symlink_to("/proc/self/cwd")
    os.link(outside / "secret.txt", root / "hard")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    (root / ".smithers").mkdir()
    (root / ".smithers" / "state").write_text(CANARY)
    (root / "way").symlink_to(".smithers")
    (root / "inner").mkdir()
    return {
        "parent": "../outside/secret.txt",
        "hidden parent": "inner/../../outside/secret.txt",
        "absolute": str(outside / "secret.txt"),
        "link": "link",
        "relative link": "up",
        "through a link": "folder/secret.txt",
        "dangling link": "dangling",
        "magic link": "magic/secret.txt",
        "hard link": "hard",
        "fifo": "fifo",
        "socket": "socket",
        "directory": "inner",
        "hidden": ".smithers/state",
        "link to hidden": "way/state",
        "nul": "a\0b",
        "long": "x" * 300,
        "nothing": "",
    }


async def test_read_follows_no_way_out(root: Path, lent: tuple[object, Records]) -> None:
    for kind, path in lay_traps(root).items():
        with pytest.raises(ToolRefused) as refusal:
            await asyncio.wait_for(read(path), 60)
        assert CANARY not in str(refusal.value), kind
    assert not [call for call in lent[1].calls if CANARY in f"{call.output}{call.error}"]


async def test_write_and_edit_change_nothing_outside(root: Path, lent: object) -> None:
    outside = root.parent / "outside"
    traps = lay_traps(root)
    del traps["hard link"]  # written, it becomes a file of its own; see below
    for path in traps.values():
        for call in (write(path, "mine"), edit(path, CANARY, "mine")):
            with pytest.raises(ToolRefused):
                await asyncio.wait_for(call, 60)
    for path in ("folder/new.txt", ".smithers/new", "way/new/deep.txt", "folder/new/deep.txt"):
        with pytest.raises(ToolRefused):
            await write(path, "mine")
    await write("hard", "mine")
    assert (root / "hard").read_text() == "mine"
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"secret.txt": CANARY}
    assert [path.name for path in (root / ".smithers").iterdir()] == ["state"]
    assert (root / ".smithers" / "state").read_text() == CANARY


async def test_the_servers_own_code_below_the_root_is_read_and_not_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(root / "project" / ".venv"))
    program = root / "project" / ".venv" / "bin" / "tool"
    program.parent.mkdir(parents=True)
    program.write_text("own")
    (root / "way").symlink_to("project/.venv")
    with lending_tools(root):
        for path in ("project/.venv/bin/tool", "project/.venv/new/deep.txt", "way/bin/tool"):
            with pytest.raises(ToolRefused, match="code that the server runs"):
                await write(path, "mine")
        with pytest.raises(ToolRefused, match="code that the server runs"):
            await edit("project/.venv/bin/tool", "own", "mine")
        assert (await read("way/bin/tool")).text == "own"
        await write("project/.venv2", "mine")
    assert [path.name for path in (root / "project" / ".venv").rglob("*")] == ["bin", "tool"]


async def test_no_swap_of_links_opens_a_way_out(root: Path, lent: object) -> None:
    """Ten thousand reads and writes while another process exchanges a directory and a link that leads out."""
    outside, stop = root.parent / "outside", root.parent / "stop"
    (root / "d").mkdir()
    (root / "d" / "secret.txt").write_text("harmless")
    (root / "other").symlink_to(outside)
    context = multiprocessing.get_context("spawn")
    swapper = context.Process(target=swap_for_ever, args=(stop, root / "d", root / "other"))
    swapper.start()
    read_file: Callable[..., Any] = read._function  # a plain function
    write_file = write._function
    outcomes = {"read": 0, "refused": 0, "written": 0, "unwritten": 0}
    try:
        ends = time.monotonic() + 60
        for number in itertools.count():
            # Until all was seen: the other process may be slow to begin.
            if number >= SWAPS and (min(outcomes.values()) > 0 or time.monotonic() > ends):
                break
            try:
                assert read_file("d/secret.txt").text == "harmless"
                outcomes["read"] += 1
            except ToolRefused:
                outcomes["refused"] += 1
            if number % 10 == 0:
                try:
                    write_file("d/other.txt", "mine")
                    outcomes["written"] += 1
                except ToolRefused:
                    outcomes["unwritten"] += 1
    finally:
        stop.touch()
        swapper.join(30)
    assert min(outcomes.values()) > 0, outcomes
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"secret.txt": CANARY}


async def test_large_and_binary_files_are_refused(root: Path, lent: object) -> None:
    (root / "binary").write_bytes(b"\xff\xfe\x00")
    with (root / "large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    (root / "long").write_text("x" * 1_000_000)
    for path in ("binary", "large"):
        with pytest.raises(ToolRefused):
            await read(path)
    for text in ("x" * (MAX_CALL_BYTES + 1), "\ud800"):
        with pytest.raises(InvalidToolInput):
            await write("new", text)
    assert not (root / "new").exists()
    long = await read("long")
    assert (len(long.text), long.is_truncated) == (200_000, True)


async def test_a_program_is_run_without_a_shell_and_a_line_with_one(
    root: Path, lent: object
) -> None:
    assert (await bash("echo", ["$HOME; ls *", "-n"])).stdout == "$HOME; ls * -n\n"
    ended = await bash.shell("echo $((6 * 7)); cat; echo wrong >&2; exit 3", stdin="in\n")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (3, "42\nin\n", "wrong\n")
    with pytest.raises(ToolError, match="exit code 3: wrong"):
        ended.check()
    (root / "sub").mkdir()
    assert (await bash("pwd", cwd="sub")).stdout == f"{root}/sub\n"


@pytest.mark.parametrize("start", ["cat > f <<E\n", "/", '"\U0001f600'])
async def test_a_script_in_the_place_of_a_program_is_named_by_its_beginning(
    lent: object, start: str
) -> None:
    with pytest.raises(ToolError, match=r"there is no command|cannot be executed") as refused:
        await bash(start + '\U000e0001\\"' * 4_000)
    assert len(str(refused.value)) < 1_500


@pytest.mark.parametrize("cwd", ["..", "/", "/etc", "sub/../..", ".smithers/../.."])
async def test_a_command_works_below_the_root_only(lent: object, cwd: str) -> None:
    with pytest.raises(ToolRefused):
        await bash("pwd", cwd=cwd)


async def test_what_a_command_prints_is_cut_at_its_limit(lent: object) -> None:
    ended = await bash.shell("head -c 300000 /dev/zero | tr '\\0' x; echo short >&2")
    assert (len(ended.stdout), ended.is_stdout_truncated) == (100_000, True)
    assert (ended.stderr, ended.is_stderr_truncated) == ("short\n", False)
    assert (await bash("yes")).exit_code < 0


async def test_what_a_command_prints_fits_where_calls_are_kept(lent: object) -> None:
    ended = await bash.shell("head -c 90000 /dev/zero; head -c 90000 /dev/zero >&2; printf x >&2")
    assert 80_000 < len(ended.stdout) < 90_000
    assert len(ended.stderr) == len(ended.stdout)
    assert ended.is_stdout_truncated
    assert ended.is_stderr_truncated


async def test_a_command_that_takes_too_long_is_over_in_time(lent: object) -> None:
    began = time.monotonic()
    with pytest.raises(ToolTimedOut):
        await bash.shell("trap '' TERM; sleep 3600", timeout=0.2)
    assert time.monotonic() - began < 60


async def test_grep_finds_lines(root: Path, lent: object) -> None:
    (root / "a.py").write_text("import os\nx = 1\n")
    (root / "sub").mkdir()
    (root / "sub" / "b: c.py").write_text("import sys  # 42\n")
    (root / "c.txt").write_text("import nothing\n")
    (root / "two\nlines.py").write_text("x = 2\n")
    os.mkfifo(root / "fifo")
    (root / "binary").write_bytes(b"import \0")
    found = await grep(r"^import \w+\b", glob="*.py")
    assert sorted((match.path, match.line, match.text) for match in found.matches) == [
        ("a.py", 1, "import os"),
        ("sub/b: c.py", 1, "import sys  # 42"),
    ]
    assert [match.path for match in (await grep("= 2")).matches] == ["two\nlines.py"]
    assert (await grep("nothing at all")).matches == []
    assert [match.line for match in (await grep("X = ", "a.py", ignore_case=True)).matches] == [2]
    few = await grep("import", max_matches=1)
    assert (len(few.matches), few.is_truncated) == (1, True)


async def test_what_grep_finds_fits_where_calls_are_kept(root: Path, lent: object) -> None:
    (root / "app.log").write_text(("x" + "\x01" * 300 + "\n") * 2_000)
    found = await grep("x", max_matches=10_000)
    assert 500 < len(found.matches) < 600
    assert found.is_truncated


async def test_what_grep_found_is_not_lost_where_some_files_cannot_be_read(
    root: Path, lent: object
) -> None:
    (root / "a.txt").write_text("found\n")
    (root / "kept.txt").write_text("found\n")
    (root / "kept.txt").chmod(0)  # a jail's root has no right to read it either
    found = await grep("found")
    assert [match.path for match in found.matches] == ["a.txt"]
    assert not found.is_truncated
    assert (await grep("nothing at all")).matches == []
    with pytest.raises(ToolError, match="nowhere"):
        await grep("found", "nowhere")


async def test_grep_is_no_error_beside_a_process_that_makes_and_removes_files(
    root: Path, lent: object
) -> None:
    for number in range(50):
        (root / f"{number}.txt").write_text("found\n")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for number in range(50):
                path = root / f"passing{number}"
                path.write_text("passing\n")
                path.unlink()

    passing = threading.Thread(target=come_and_go)
    passing.start()
    try:
        for _ in range(20):
            assert len((await grep("found")).matches) == 50
            assert (await grep("nothing at all")).matches == []
    finally:
        stop.set()
        passing.join()


async def test_what_grep_found_before_it_printed_too_much_is_told(
    root: Path, lent: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_commands, "MAX_PRINTED_BYTES", 1 << 20)
    (root / "a.txt").write_text(("x" * 1_000 + "\n") * 4_000)
    found = await grep("x", max_matches=10_000)
    assert len(found.matches) > 100
    assert found.is_truncated


async def test_grep_and_read_agree_on_what_a_line_is(root: Path, lent: object) -> None:
    (root / "a.txt").write_bytes("one\n\x0ctwo\x85\u2028\r still two\nthree\r\n".encode())
    found = (await grep("three", "a.txt")).matches[0]
    assert found.line == 3
    part = await read("a.txt", start_line=found.line, max_lines=1)
    assert (part.text, part.line_count, part.is_truncated) == ("three\r\n", 3, False)


async def test_what_is_read_fits_where_calls_are_kept(root: Path, lent: object) -> None:
    (root / "a.txt").write_text("\0" * 190_000 + "\nlast\n")
    part = await read("a.txt")
    assert 160_000 < len(part.text) < 190_000
    assert part.is_truncated


@pytest.mark.parametrize(
    "pattern", ["-r", "--version", "-f/etc/passwd", "--file=/etc/passwd", "-e", "--"]
)
async def test_a_pattern_is_never_an_option(root: Path, lent: object, pattern: str) -> None:
    (root / "a.txt").write_text(f"a {pattern} b\nroot:x:0:0\n")
    found = await grep(pattern)
    assert [match.text for match in found.matches] == [f"a {pattern} b"]


@pytest.mark.parametrize("path", ["-r", "--file=/etc/passwd", "--help"])
async def test_a_path_is_never_an_option(root: Path, lent: object, path: str) -> None:
    (root / path.replace("/", "_")).write_text("found\n")
    if "/" in path:
        with pytest.raises(ToolError):
            await grep("found", path)
        return
    assert [match.path for match in (await grep("found", path)).matches] == [path]


async def test_a_glob_is_never_an_option(root: Path, lent: object) -> None:
    (root / "a.txt").write_text("found\n")
    assert (await grep("found", glob="* --file=/etc/passwd")).matches == []


async def test_a_pattern_that_is_none_or_takes_for_ever_is_an_error(
    root: Path, lent: object
) -> None:
    (root / "a.txt").write_text("a" * 40 + "!\n")
    with pytest.raises(ToolError):
        await grep("(unclosed")
    began = time.monotonic()
    with contextlib.suppress(ToolError):
        await grep("^(a|a?)+$")
    assert time.monotonic() - began < 90


async def test_each_call_is_recorded_with_its_number(lent: tuple[object, Records]) -> None:
    await write("a.txt", "text")
    with pytest.raises(ToolRefused):
        await read("absent.txt")
    await bash("true")
    records = lent[1]
    assert records.lines == [
        "1 write started",
        "1 write finished",
        "2 read started",
        "2 read failed",
        "3 bash started",
        "3 bash finished",
    ]
    write_end, read_end = records.calls[1], records.calls[3]
    assert json.loads(write_end.input or "") == {"path": "a.txt", "text": "text"}
    assert json.loads(write_end.output or "")["bytes"] == 4
    assert json.loads(read_end.error or "")["code"] == "TOOL_REFUSED"
    assert (write_end.is_side_effect, write_end.is_idempotent) == (True, True)
    assert (read_end.is_side_effect, read_end.is_idempotent) == (False, True)
    assert (records.calls[5].is_side_effect, records.calls[5].is_idempotent) == (True, False)


class Receipt(BaseModel):
    key: str


@tool
async def charge(
    amount: Annotated[int, Field(gt=0, description="In cents.")], card: str = "visa"
) -> Receipt:
    """Take money."""
    return Receipt(key=current_call().idempotency_key)


@tool(side_effect=False)
def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


async def test_a_tool_of_ones_own_has_a_schema_and_an_idempotency_key(
    lent: tuple[object, Records],
) -> None:
    assert (charge.name, charge.description) == ("charge", "Take money.")
    assert charge.parameters["required"] == ["amount"]
    assert charge.parameters["properties"]["amount"]["description"] == "In cents."
    first = (await charge(300)).key
    assert re.fullmatch(r"r/n/0/charge/[0-9a-f]{32}/1", first)
    assert (await charge(300)).key == first.removesuffix("1") + "2"
    other = (await charge.prepare({"amount": "4"})).key
    assert other.endswith("/1")
    assert other != first
    assert await add(1, second=2) == 3
    assert json.loads(lent[1].calls[5].input or "") == {"amount": 4, "card": "visa"}


@pytest.mark.parametrize("arguments", [{}, {"amount": 0}, {"amount": 1, "colour": "red"}])
async def test_arguments_that_do_not_fit_are_said_to_a_model_in_full(
    lent: tuple[object, Records], arguments: dict[str, object]
) -> None:
    with pytest.raises(InvalidToolInput, match="charge: "):
        await charge.prepare(arguments)
    assert lent[1].calls == []


def test_a_tool_says_what_it_does() -> None:
    def mute(value: int) -> int:
        return value

    with pytest.raises(SmithersError, match="docstring"):
        tool(mute)
    assert all(
        one.description and one.parameters["type"] == "object"
        for one in (bash, bash.shell, read, write, edit, grep)
    )


async def test_a_plain_function_asks_for_the_result(lent: object) -> None:
    def body() -> str:
        write("a.txt", "text").result()
        return read("a.txt").result().text + bash("echo", ["more"]).result().stdout

    assert await asyncio.to_thread(body) == "textmore\n"


async def test_slow_tools_hold_up_no_other(root: Path, lent: object) -> None:
    (root / "a.txt").write_text("text")
    go = threading.Event()

    @tool(side_effect=False)
    def wait(number: int) -> int:
        """Wait."""
        go.wait(60)
        return number

    waiting = [asyncio.ensure_future(wait(number)) for number in range(64)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(30):
            assert (await read("a.txt")).text == "text"
    finally:
        go.set()
    assert await asyncio.gather(*waiting) == list(range(64))


class TestToolsThatCallTools:
    async def test_more_of_them_than_there_are_threads_are_all_answered(
        self, root: Path, lent: object
    ) -> None:
        (root / "a.txt").write_text("one\ntwo\n")
        all_wait = threading.Barrier(MAX_THREADS, timeout=60)

        @tool(side_effect=False)
        def count_lines(path: str) -> int:
            """Count lines."""
            all_wait.wait()
            return read(path).result().line_count

        @tool(side_effect=False)
        def count_twice(path: str) -> int:
            """Count lines, again."""
            return 2 * count_lines(path).result()

        calls = [count_twice("a.txt") for _ in range(MAX_THREADS)]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*calls) == [4] * MAX_THREADS

    async def test_they_do_not_call_one_another_without_end(self, lent: object) -> None:
        @tool(side_effect=False)
        def deeper(depth: int) -> int:
            """Go on."""
            return int(deeper(depth + 1).result())

        with pytest.raises(ToolError, match=f"{MAX_DEPTH} deep"):
            await deeper(0)


async def test_a_result_is_not_asked_for_where_it_would_block_others(
    lent: tuple[AttemptToolbox, Records],
) -> None:
    with pytest.raises(SmithersError, match="await"):
        add(1, 2).result()


async def test_a_call_that_was_never_made_is_told(lent: tuple[AttemptToolbox, Records]) -> None:
    toolbox, records = lent
    await add(1, 2)
    toolbox.check_all_made()
    write("a.txt", text="x")
    with pytest.raises(ToolError, match=r"write\('a.txt', text='x'\) was never made"):
        toolbox.check_all_made()
    assert len(records.calls) == 2


def test_tools_are_for_the_body_of_a_task() -> None:
    with pytest.raises(SmithersError, match="body of a task"):
        read("a.txt")
