"""Ways out of the jail and past the tools, each tried as root and as a plain user: `python -m tests.support.escapes`.

It prints the table of docs/sandbox.md. A canary lies in a file beside the root that everybody may read and write, and in the
worker's environment; listeners wait outside. Found is what showed the canary, reached somebody, or left a trace outside.
"""

import asyncio
import codecs
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from smithers.tools import ToolError, edit, grep, read, write
from tests.support.jailing import (
    CANARY,
    REPOSITORY,
    UNREACHABLE,
    USERS,
    become,
    run_jailed,
)
from tests.support.postgres import open_server
from tests.support.serving import find_processes
from tests.support.tools import lending_tools, swap_for_ever

SWAPS = 10_000
GONE_WITHIN_S = 60.0
CONNECT = """python3 -c '
import socket, sys
with socket.socket({family}, {kind}) as out:
    out.settimeout(1)
    out.connect({address})
    out.send(b"x")
    print("REACHED")'"""
READ_WAYS = {
    "`..`": (
        "cat ../outside/secret.txt",
        "cat ../../../../../../../../{secret}",
        "cd ..; cat outside/secret.txt",
        "cat $PWD/../outside/*",
        "cd -P ../outside && cat secret.txt",
    ),
    "absolute paths": (
        "cat {secret}",
        "cat //{secret}",
        "find / -xdev -name secret.txt -exec cat {{}} +",
        "grep -rs canary /tmp /home /var /etc /run /srv /opt",
        "python3 -c 'print(open(\"{secret}\").read())'",
        "tar -cf - {outside}",
    ),
    "symbolic links": (
        "cat ready-made",
        "cat folder/secret.txt",
        "ln -s {secret} made; cat made",
        "ln -s / all; cat all{secret}",
        "ln -s ../outside beside; cat beside/secret.txt",
        "ln -s /proc/self/root top; cat top{secret}",
        "echo x > ready-made",
        "echo x >> folder/new.txt",
        "cp -f /bin/true folder/new.txt",
    ),
    "dangling links": (
        "echo x > dangling",
        "echo x >> dangling",
        "cp /bin/true dangling",
        "ln -s {outside}/new2.txt gone; echo x | tee gone",
        'python3 -c \'open("dangling", "w").write("x")\'',
        "mkdir -p dangling/deep",
    ),
    "hard links": (
        "ln {secret} hard && cat hard",
        "ln ready-made hard2; cat hard2",
        "ln -L ready-made hard3; cat hard3",
        "cp -l {secret} hard4; cat hard4",
        'python3 -c \'import os; os.link("{secret}", "hard5")\'; cat hard5',
    ),
    "the environment": (
        "env",
        "set",
        "cat /proc/*/environ | tr '\\0' '\\n'",
        "cat /proc/{pid}/environ",
        "python3 -c 'import os; print(os.environ)'",
        "grep -a canary /proc/1/mem /proc/1/environ",
    ),
}
PROC_WAYS = (
    "cat /proc/self/root{secret}",
    "cat /proc/1/root{secret}",
    "cat /proc/1/cwd/../outside/secret.txt",
    "cat /proc/self/cwd/../outside/secret.txt",
    "cat /proc/{pid}/root{secret}",
    "cat /proc/{pid}/cmdline && echo REACHED",
    "for n in 0 1 2 3 4 5 6 7 8 9; do readlink /proc/1/fd/$n && echo REACHED; done",
    "for n in 0 1 2 3 4 5 6 7 8 9; do (echo x > /proc/1/fd/$n) && echo REACHED; done",
    "cat /proc/1/maps && test -s /proc/1/maps && echo REACHED",
    "echo x > /proc/sys/kernel/hostname && echo REACHED",
    "echo h > /proc/sysrq-trigger && echo REACHED",
    "mount -o remount,rw /proc && echo REACHED",
    "umount /proc && echo REACHED",
    "test $(ls /proc | grep -c '^[0-9]') -gt 5 && echo REACHED",
)
NETWORK_WAYS = {
    "Unix sockets by path": (
        CONNECT.replace("{address}", '"{named}"'),
        "curl -s --unix-socket {named} http://x",
    ),
    "Postgres' own socket": (
        CONNECT.replace("{address}", '"{postgres}/.s.PGSQL.5432"'),
        "ls {postgres}/.s.PGSQL* && echo REACHED",
    ),
    "abstract Unix sockets": (CONNECT.replace("{address}", 'chr(0) + "{named}"'),),
    "TCP": (
        CONNECT.replace("{family}", "2").replace("{address}", '("127.0.0.1", {tcp})'),
        CONNECT.replace("{family}", "10").replace("{address}", '("::ffff:127.0.0.1", {tcp})'),
        "curl -s -m 1 http://127.0.0.1:{tcp}",
    ),
    "`/dev/tcp`, `/dev/udp`": (
        "echo x > /dev/tcp/127.0.0.1/{tcp} && echo REACHED",
        "echo x > /dev/udp/127.0.0.1/{udp} && echo REACHED",
    ),
    "UDP": (
        CONNECT.replace("{family}", "2")
        .replace("{kind}", "2")
        .replace("{address}", '("127.0.0.1", {udp})'),
    ),
    "DNS": (
        "getent hosts example.org && echo REACHED",
        'python3 -c \'import socket; print("REACHED", socket.getaddrinfo("example.org", 80))\'',
    ),
    "vsock, netlink, packets": (
        CONNECT.replace("{family}", "40").replace("{address}", "(2, 1024)"),
        CONNECT.replace("{family}", "16").replace("{kind}", "3").replace("{address}", "(0, 0)"),
        "python3 -c 'import socket; socket.socket(17, 3); print(\"REACHED\")'",
    ),
}
ALL_WAYS = {**READ_WAYS, "`/proc`": PROC_WAYS, **NETWORK_WAYS}
SURVIVING_WAYS = (
    "setsid sleep {mark} & echo",
    "setsid -f sleep {mark}",
    "nohup sleep {mark} & echo",
    "(setsid sh -c '(sleep {mark} &)' &)",
    "trap '' TERM HUP INT; (trap '' TERM; exec sleep {mark}) & sleep {mark}",
    "python3 -c 'import os, time; os.fork() or os.setsid() or os.fork() or time.sleep({mark})'",
)
BOMBS = (
    "bomb() {{ sleep {mark} & bomb | bomb & }}; bomb; wait",
    "while :; do sleep {mark} & done",
    "python3 -c 'import os\nwhile True:\n    try: os.fork()\n    except OSError: {mark}'",
)
FILLING_WAYS = (
    "head -c 20M /dev/zero > big; test $(stat -c %s big) -gt 1048576 && echo REACHED",
    "truncate -s 1T big && echo REACHED",
    "fallocate -l 1G big && echo REACHED",
    "for n in 1 2 3; do head -c 900K /dev/zero > /tmp/$n; done; test $(du -skx /tmp | cut -f1) -gt 1200 && echo REACHED",
    "for n in 1 2; do head -c 900K /dev/zero > /dev/shm/$n; done; test $(du -sk /dev/shm | cut -f1) -gt 1200 && echo REACHED",
)
OPTIONS = ("-r", "--version", "-f{secret}", "--file={secret}", "-e", "--", "--include-dir=/", "-Rz")


@dataclass(frozen=True, slots=True)
class Tried:
    """How often a way out was tried, and how often something was found."""

    kind: str
    tries: int
    found: int


@dataclass(frozen=True, slots=True)
class Place:
    """A root for tools, what lies beside it, and who listens there."""

    user: int
    root: Path
    outside: Path
    words: Mapping[str, Any]
    listeners: tuple[socket.socket, ...]

    def run(self, ways: Mapping[str, tuple[str, ...]], **more: Any) -> list[Tried]:
        """Try each line in one process; count those that found something, and at last what they left outside."""
        timeout_s = more.pop("timeout_s", 20)
        lines = [(kind, fill(line, self.words)) for kind, way in ways.items() for line in way]
        asked = [{"argv": ["bash", "-c", line], "timeout_s": timeout_s} for _, line in lines]
        ends = run_jailed(self.user, self.root, *asked, **more)
        found = Counter(
            kind
            for (kind, _), end in zip(lines, ends, strict=True)
            if CANARY in end["text"] or "REACHED" in end["text"]
        )
        traces = Tried(
            "… files and connections outside after all of these", len(lines), self._count_traces()
        )
        return [*(Tried(kind, len(way), found[kind]) for kind, way in ways.items()), traces]

    def _count_traces(self) -> int:
        secret = self.outside / "secret.txt"
        new = [path for path in self.outside.iterdir() if path.name not in {"secret.txt", "socket"}]
        traces = len(new) + (secret.read_text() != CANARY) + (secret.stat().st_nlink > 1)
        traces += sum(was_reached(heard) for heard in self.listeners)
        for path in new:
            path.unlink()
        secret.write_text(CANARY)
        return traces


def fill(line: str, words: Mapping[str, Any]) -> str:
    """Put what is known of the place into a line."""
    return line.format(**{"family": 1, "kind": 1, **words})


@contextlib.contextmanager
def open_place(user: int, postgres: str) -> Iterator[Place]:
    """Lay out a root with ways out of it; `postgres`: the directory of a server's socket."""
    top = Path(tempfile.mkdtemp(prefix="smithers-escapes-", dir="/tmp"))
    top.chmod(0o755)
    root, outside = top / "root", top / "outside"
    for folder in (root, outside):
        folder.mkdir()
        shutil.chown(folder, user)
    secret, named = outside / "secret.txt", outside / "socket"
    secret.write_text(CANARY)
    secret.chmod(0o666)  # nobody's permissions keep it
    (root / "ready-made").symlink_to(secret)
    (root / "folder").symlink_to(outside)
    (root / "dangling").symlink_to(outside / "new.txt")
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(listening(*where))
            for where in (
                (socket.AF_UNIX, socket.SOCK_STREAM, str(named)),
                (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{named}"),
                (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
                (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            )
        ]
        named.chmod(0o777)
        words = {
            "secret": secret,
            "outside": outside,
            "named": named,
            "pid": os.getpid(),
            "postgres": postgres,
            "tcp": listeners[2].getsockname()[1],
            "udp": listeners[3].getsockname()[1],
            "mark": f"3600.{uuid4().int % 10**9}",
        }
        try:
            yield Place(user, root, outside, words, tuple(listeners))
        finally:
            shutil.rmtree(top)


@contextlib.contextmanager
def listening(family: int, kind: int, address: Any) -> Iterator[socket.socket]:
    """Have somebody to talk to outside."""
    with socket.socket(family, kind) as heard:
        heard.bind(address)
        if kind == socket.SOCK_STREAM:
            heard.listen()
        heard.setblocking(False)
        yield heard


def was_reached(heard: socket.socket) -> bool:
    """Say whether somebody has come."""
    try:
        if heard.type == socket.SOCK_STREAM:
            heard.accept()[0].close()
        else:
            heard.recv(100)
    except BlockingIOError:
        return False
    return True


def try_commands(place: Place) -> list[Tried]:
    """Try all that a command may try."""
    tried = place.run(ALL_WAYS)
    place.run({"": SURVIVING_WAYS}, timeout_s=1)
    tried.append(
        Tried(
            "survivors: `setsid`, daemons, processes that ignore signals",
            len(SURVIVING_WAYS),
            count_left(place),
        )
    )
    place.run({"": BOMBS}, timeout_s=2, limits={"processes": 400})
    tried.append(Tried("fork bombs", len(BOMBS), count_left(place)))
    filled = place.run({"": FILLING_WAYS}, limits={"file_bytes": 1 << 20, "tmp_bytes": 1 << 20})
    space = os.statvfs(place.root)
    is_full = {"free_bytes": space.f_bavail * space.f_frsize + (1 << 30)}
    stopped = place.run({"": ("sleep 20; echo REACHED",)}, limits=is_full)
    tried.append(
        Tried("filling the disk", len(FILLING_WAYS) + 1, filled[0].found + stopped[0].found)
    )
    return tried


def try_openly(place: Place) -> set[str]:
    """Name the harmless kinds by which something is found where there is no jail; searches of all disks are left out."""
    found = set()
    for kind, lines in {**READ_WAYS, **NETWORK_WAYS}.items():
        quick = tuple(line for line in lines if not line.startswith(("find", "grep")))
        if any(tried.found for tried in place.run({kind: quick}, is_jailed=False)):
            found.add(kind)
    return found


def count_left(place: Place) -> int:
    """Count the processes of this place that do not go away."""
    until = time.monotonic() + GONE_WITHIN_S
    while (left := find_processes(place.words["mark"])) and time.monotonic() < until:
        time.sleep(0.05)
    return len(left)


def try_tools(place: Place, swaps: int) -> list[Tried]:
    """Try all that arguments of tools may try, in a process of that user."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.escapes",
            str(place.user),
            str(place.root),
            str(swaps),
        ],
        capture_output=True,
        check=False,
        cwd=REPOSITORY,
        text=True,
        timeout=300,
    )
    if ended.returncode == UNREACHABLE:
        return []
    assert ended.returncode == 0, ended.stderr
    return [Tried(*row) for row in json.loads(ended.stdout)]


async def _try_tools_here(root: Path, swaps: int) -> list[tuple[str, int, int]]:
    outside = root.parent / "outside"
    os.mkfifo(root / "fifo")
    os.link(outside / "secret.txt", root / "hard")
    paths = {
        "`..`": ("../outside/secret.txt", "folder/../../outside/secret.txt"),
        "absolute paths": (str(outside / "secret.txt"), "//etc/passwd"),
        "symbolic links": ("ready-made", "folder/secret.txt", "folder/new.txt"),
        "dangling links": ("dangling", "dangling/deep"),
        "FIFOs": ("fifo",),
        "`/proc`": ("/proc/self/environ", "/proc/self/root/etc/passwd"),
    }
    rows = []
    with lending_tools(root):
        for kind, tried in paths.items():
            calls = [make(path) for path in tried for make in (read, _write, _edit)]
            rows.append((f"tools: {kind}", len(calls), await _count_answers(calls)))
        rows.append(("tools: hard links, read", 1, await _count_answers([read("hard")])))
        (root / "a.txt").write_text("nothing\n")
        options = [option.format(secret=outside / "secret.txt") for option in OPTIONS]
        greps = [
            call
            for option in options
            for call in (grep(option), grep("canary", option), grep("canary", glob=option))
        ]
        found = [await _ask(call) for call in greps]
        seen = sum(CANARY in str(answer) or "GNU" in str(answer) for answer in found)
        rows.append(("argument injection: patterns, paths, globs of `grep`", len(greps), seen))
        rows.append(
            ("a directory swapped for a link to the outside, meanwhile", *_swap(root, swaps))
        )
    return rows


def _write(path: str) -> Awaitable[Any]:
    return write(path, "x")


def _edit(path: str) -> Awaitable[Any]:
    return edit(path, CANARY, "x")


async def _count_answers(calls: list[Awaitable[Any]]) -> int:
    return sum([await _ask(call) is not None for call in calls])


async def _ask(call: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(call, 60)
    except ToolError:
        return None


def _swap(root: Path, swaps: int) -> tuple[int, int]:
    outside, stop = root.parent / "outside", root / "stop"
    (root / "d").mkdir()
    (root / "d" / "secret.txt").write_text("harmless")
    (root / "other").symlink_to(outside)
    swapper = os.fork()  # a plain user may not be able to execute this Python
    if swapper == 0:
        try:
            swap_for_ever(stop, root / "d", root / "other")
        finally:
            os._exit(0)
    reading: Callable[[str], Any] = read._function  # a thread's, and no coroutine's
    ways: tuple[Callable[[], Any], ...] = (
        lambda: reading("d/secret.txt").text,
        lambda: write._function("d/new.txt", "mine"),
    )
    found = 0
    try:
        for number in range(swaps):
            with contextlib.suppress(ToolError):
                found += ways[number % 10 == 9]() == CANARY
    finally:
        stop.touch()
        os.waitpid(swapper, 0)
    return swaps, found + (outside / "new.txt").exists()


def try_all(user: int, swaps: int) -> list[Tried]:
    """Try everything as a user."""
    with open_server() as dsn, open_place(user, socket_directory(dsn)) as place:
        return [*try_commands(place), *try_tools(place, swaps)]


def socket_directory(dsn: str) -> str:
    """Return where a server of this host listens."""
    return parse_qs(urlsplit(dsn).query).get("host", ["/var/run/postgresql"])[0]


def main() -> None:
    if len(sys.argv) > 1:
        user, root, swaps = sys.argv[1:]
        if int(user) != os.geteuid():
            codecs.lookup("ascii")  # loaded while its file can be reached
            become(int(user))
        sys.stdout.write(json.dumps(asyncio.run(_try_tools_here(Path(root), int(swaps)))))
        return
    tables = {name: try_all(user, SWAPS) for name, user in USERS.items()}
    heads = " | ".join(f"as {name}: tries | found" for name in tables)
    sys.stdout.write(f"| attempt | {heads} |\n|---|{'---|---|' * len(tables)}\n")
    for rows in zip(*tables.values(), strict=True):
        counts = " | ".join(f"{row.tries:,} | {row.found}" for row in rows)
        sys.stdout.write(f"| {rows[0].kind} | {counts} |\n")


if __name__ == "__main__":
    main()
