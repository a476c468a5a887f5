"""Escapes from the jail, tried as root and as a plain user; docs/sandbox.md has the table."""

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.jailing import CANARY, USERS, run_jailed
from tests.support.serving import find_processes, until_none
from worker.sandbox.commands import Commands, SandboxPolicy
from worker.sandbox.probe import probe_sandbox

PYTHON = ("python3", "-c")


@dataclass(frozen=True)
class Place:
    """A root for tools, and what lies beside it."""

    user: int
    root: Path
    outside: Path

    @property
    def secret(self) -> Path:
        return self.outside / "secret.txt"

    def shell(self, line: str, **more: Any) -> dict[str, Any]:
        return run_jailed(self.user, self.root, {"argv": ["bash", "-c", line]}, **more)[0]

    def python(self, code: str, **more: Any) -> dict[str, Any]:
        return run_jailed(self.user, self.root, {"argv": [*PYTHON, code]}, **more)[0]

    def all(self, *lines: str) -> list[dict[str, Any]]:
        return run_jailed(self.user, self.root, *({"argv": ["bash", "-c", line]} for line in lines))


@pytest.fixture(params=USERS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    top = Path(tempfile.mkdtemp(prefix="smithers-jail-", dir="/tmp"))
    top.chmod(0o755)
    user = USERS[request.param]
    found = Place(user, top / "root", top / "outside")
    for folder in (found.root, found.outside):
        folder.mkdir()
        shutil.chown(folder, user)
    found.secret.write_text(CANARY)
    found.secret.chmod(0o666)  # nobody's permissions keep it: only the jail does
    try:
        yield found
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
    try:
        if heard.type == socket.SOCK_STREAM:
            heard.accept()[0].close()
        else:
            heard.recv(100)
    except BlockingIOError:
        return False
    return True


def test_a_command_sees_the_root_and_writes_to_it(place: Place) -> None:
    end = place.shell("echo hello > note.txt; cat note.txt; id -u")
    assert end == {"exit_code": 0, "text": f"hello\n{place.user}\n"}
    assert (place.root / "note.txt").read_text() == "hello\n"


def test_no_path_leads_to_what_lies_beside_the_root(place: Place) -> None:
    (place.root / "ready-made").symlink_to(place.secret)
    (place.root / "folder").symlink_to(place.outside)
    ends = place.all(
        "cat ../outside/secret.txt",
        "cat ../../../../../../../../" + str(place.secret),
        f"cat {place.secret}",
        f"cat /proc/self/root{place.secret} /proc/1/root{place.secret} /proc/self/cwd/../outside/secret.txt",
        f"ln -s {place.secret} made; cat made ready-made folder/secret.txt",
        f"ln {place.secret} hard; cat hard; ln ready-made hard2; cat hard2",
        "ls -la /; find / -xdev -name secret.txt -exec cat {} +",
        "cat /etc/shadow /root/.ssh/* /root/.bash_history /home/*/.ssh/* /etc/ssl/private/* /run/* /var/run/*",
        f"grep -r {CANARY[:6]} / --exclude-dir=proc --exclude-dir=usr -s",
    )
    assert [end["text"] for end in ends if CANARY in end["text"]] == []
    assert place.secret.stat().st_nlink == 1


def test_nothing_is_written_outside_of_the_root(place: Place) -> None:
    new = place.outside / "new.txt"
    (place.root / "dangling").symlink_to(new)
    (place.root / "over").symlink_to(place.secret)
    ends = place.all(
        "echo x > dangling; echo x > over; echo x >> over",
        f"mkdir -p {place.outside}; echo x > {new}; echo x > {place.secret}; ls -la {place.outside}",
        "for place in / /usr /usr/bin /etc /lib /dev /proc/sys/kernel/core_pattern /proc/sysrq-trigger /var; do "
        "echo x > $place/x; echo x > $place; done; mv /usr/bin/env /usr/bin/env2; rm -rf /usr/bin/yes",
        "mount -t tmpfs x /usr; mount -o remount,rw /usr; umount /usr; umount -l /proc",
    )
    assert all("Read-only" in end["text"] or "denied" in end["text"] for end in ends[2:3])
    assert not new.exists()
    assert place.secret.read_text() == CANARY
    assert shutil.which("yes") is not None


def test_the_workers_environment_and_memory_are_not_seen(place: Place) -> None:
    ends = place.all(
        "env; set",
        "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'",
        "cat /proc/1/environ; cat /proc/1/maps; ls -l /proc/1/fd /proc/1/cwd; head -c 100 /proc/1/mem",
        "ls /proc | grep -c '^[0-9]'; ls -l /proc/self/fd; cat /proc/keys",
        f"cat /proc/{os.getpid()}/environ /proc/{os.getppid()}/environ; ls -l /proc/{os.getpid()}/root",
    )
    assert [end["text"] for end in ends if CANARY in end["text"]] == []
    count, *descriptors = ends[3]["text"].splitlines()
    assert int(count) <= 5
    assert sum(line.startswith("l") for line in descriptors) <= 4


def test_no_socket_of_the_host_can_be_reached(place: Place, postgres_server: str) -> None:
    from urllib.parse import parse_qs, urlsplit

    path = str(place.outside / "socket")
    inside = place.root / "abstract"
    postgres = parse_qs(urlsplit(postgres_server).query).get("host", ["/var/run/postgresql"])[0]
    with (
        listening(socket.AF_UNIX, socket.SOCK_STREAM, path) as named,
        listening(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{inside}") as abstract,
        listening(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)) as tcp,
        listening(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)) as udp,
    ):
        Path(path).chmod(0o777)
        tcp_port, udp_port = tcp.getsockname()[1], udp.getsockname()[1]
        code = f"""
import glob, socket
def attempt(family, kind, address):
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(1)
            s.connect(address)
            s.send(b"x")
            print("REACHED", address)
    except OSError as error:
        print(error)
attempt(socket.AF_UNIX, socket.SOCK_STREAM, {path!r})
attempt(socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + {str(inside)!r})
for found in glob.glob({postgres!r} + "/.s.PGSQL.*") + [{postgres!r} + "/.s.PGSQL.5432"]:
    attempt(socket.AF_UNIX, socket.SOCK_STREAM, found)
attempt(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {tcp_port}))
attempt(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {udp_port}))
attempt(socket.AF_INET, socket.SOCK_STREAM, ("1.1.1.1", 443))
attempt(socket.AF_INET6, socket.SOCK_STREAM, ("::1", {tcp_port}))
attempt(40, socket.SOCK_STREAM, (2, 1024))  # vsock, to the hypervisor
attempt(socket.AF_NETLINK, socket.SOCK_RAW, (0, 0))
for name in ("localhost", "example.org"):
    try:
        print("REACHED", socket.getaddrinfo(name, 80, proto=6) and socket.create_connection((name, 80), 1))
    except OSError as error:
        print(error)
"""
        ends = [
            place.python(code),
            *place.all(
                f"echo x > /dev/tcp/127.0.0.1/{tcp_port} && echo REACHED",
                f"echo x > /dev/udp/127.0.0.1/{udp_port} && echo REACHED",
                "getent hosts example.org && echo REACHED; curl -s -m 2 http://127.0.0.1 && echo REACHED",
                f"ls {postgres} && echo REACHED",
            ),
        ]
        assert [end["text"] for end in ends if "REACHED" in end["text"]] == []
        assert not any(was_reached(heard) for heard in (named, abstract, tcp, udp))


def test_with_the_network_allowed_it_is_reached_and_files_are_not(place: Place) -> None:
    with listening(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)) as tcp:
        line = f"echo x > /dev/tcp/127.0.0.1/{tcp.getsockname()[1]}; cat {place.secret}"
        end = place.shell(line, allow_network=True)
        assert was_reached(tcp)
    assert CANARY not in end["text"]


@pytest.mark.parametrize(
    "line",
    [
        "setsid sleep {} & setsid -f sleep {}; nohup sleep {} & echo started",
        "(setsid sh -c '(sleep {} &) ; sleep {}' &) ; echo started",
        "trap '' TERM HUP INT; (trap '' TERM; exec sleep {}) & sleep {}",
        "python3 -c 'import os, time; os.fork() or os.setsid() or os.fork() or time.sleep({})'; echo started",
    ],
    ids=["setsid", "double-fork", "deaf-to-signals", "daemon"],
)
def test_no_process_outlives_its_command(place: Place, line: str) -> None:
    for is_jailed in (True, False):
        mark = f"3600.{uuid4().int % 10**9}"
        command = {"argv": ["bash", "-c", line.replace("{}", mark)], "timeout_s": 1}
        run_jailed(place.user, place.root, command, is_jailed=is_jailed)
        until_none(mark)


def test_without_a_jail_the_environment_is_clean_all_the_same(place: Place) -> None:
    end = place.shell(f"env; cat {place.secret}", is_jailed=False)
    assert "SECRET" not in end["text"]
    assert end["text"].endswith(CANARY)  # which is why it is called unsafe


def test_a_command_can_neither_kill_nor_stop_anybody_else(place: Place) -> None:
    mark = uuid4().hex
    end = place.shell(f"kill -9 -1; kill -9 {os.getpid()} 1; kill -STOP 1; echo {mark}")
    assert mark in end["text"]


def test_a_fork_bomb_ends_with_its_time(place: Place) -> None:
    mark = uuid4().hex
    code = f"import os\nmark = '{mark}'\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    end = run_jailed(
        place.user, place.root, {"argv": [*PYTHON, code], "timeout_s": 2}, limits={"processes": 400}
    )[0]
    assert end["error"] == "TOOL_TIMEOUT"
    until_none(mark)


def test_processes_are_counted(place: Place) -> None:
    code = """
import os, time
count = 0
try:
    while os.fork():
        count += 1
    time.sleep(30)
except OSError:
    print(count)
"""
    end = place.python(code, limits={"processes": 350})
    if place.user == 0 and kernel() < (6, 14):
        pytest.skip("before Linux 6.14 the kernel does not count root's processes in a namespace")
    assert 100 < int(end["text"]) < 400


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def test_a_file_a_temporary_directory_and_memory_have_limits(place: Place) -> None:
    limits = {"file_bytes": 1 << 20, "tmp_bytes": 1 << 20, "memory_bytes": 256 << 20}
    big = run_jailed(
        place.user,
        place.root,
        {"argv": ["dd", "if=/dev/zero", "of=big", "bs=64K", "count=100"]},
        {"argv": ["bash", "-c", "for n in 1 2 3 4; do head -c 600000 /dev/zero > /tmp/$n; done"]},
        {
            "argv": [
                "bash",
                "-c",
                "for n in 1 2 3 4; do head -c 600000 /dev/zero > /dev/shm/$n; done",
            ]
        },
        {"argv": [*PYTHON, "bytearray(512 << 20)"]},
        {"argv": ["sh", "-c", "ulimit -c"]},
        limits=limits,
    )
    assert (place.root / "big").stat().st_size <= 1 << 20
    assert "File too large" in big[0]["text"]
    assert "No space left" in big[1]["text"]
    assert "No space left" in big[2]["text"]
    assert "MemoryError" in big[3]["text"]
    assert big[4]["text"] == "0\n"


def test_a_command_is_stopped_before_the_disk_is_full(place: Place) -> None:
    space = os.statvfs(place.root)
    limits = {"free_bytes": space.f_bavail * space.f_frsize + (1 << 30)}
    end = run_jailed(place.user, place.root, {"argv": ["sleep", "60"]}, limits=limits)[0]
    assert end["error"] == "TOOL_FAILED"
    assert "nearly full" in end["text"]


def test_no_file_gets_the_rights_of_its_owner(place: Place) -> None:
    place.all(
        "cp /bin/true mine; chmod 4755 mine; chmod u+s mine; chmod 2755 mine; setcap cap_sys_admin+ep mine",
        "install -m 6755 /bin/true yours; python3 -c \"import os; os.open('his', os.O_CREAT, 0o4755)\"",
        "mknod null c 1 3; mknod disk b 254 0",
    )
    modes = [path.lstat().st_mode for path in place.root.iterdir()]
    assert modes
    assert not any(mode & (stat.S_ISUID | stat.S_ISGID) for mode in modes)
    assert all(stat.S_ISREG(mode) for mode in modes)


FORBIDDEN_CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
machine = ["x86_64", "aarch64"].index(os.uname().machine)
from_name = {
    "unshare(user)": ((272, 97), 0x10000000, 0), "setns": ((308, 268), 0, 0), "mount": ((165, 40), 0, 0),
    "ptrace": ((101, 117), 0, 0), "bpf": ((321, 280), 0, 0), "keyctl": ((250, 219), 0, 0),
    "io_uring_setup": ((425, 425), 8, 0), "userfaultfd": ((323, 282), 0, 0), "open_tree": ((428, 428), -100, 0),
    "perf_event_open": ((298, 241), 0, 0), "process_vm_readv": ((310, 270), 1, 0), "clone3": ((435, 435), 0, 0),
    "name_to_handle_at": ((303, 264), 0, 0), "chroot": ((161, 51), 0, 0), "syslog": ((103, 116), 3, 0),
    "clone(user)": ((56, 220), 0x10000000 | 17, 0), "init_module": ((175, 105), 0, 0), "newest": ((460, 460), 0, 0),
}
for name, (numbers, first, second) in from_name.items():
    result = libc.syscall(numbers[machine], first, second, 0, 0, 0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("ALLOWED", name, result, ctypes.get_errno())
print(len(from_name))
"""


def test_the_kernels_back_doors_are_shut(place: Place) -> None:
    assert place.python(FORBIDDEN_CALLS)["text"] == "18\n"


def test_what_is_hidden_in_the_root_is_not_there(place: Place) -> None:
    hidden = place.root / ".smithers"
    hidden.mkdir()
    (hidden / "state").write_text(CANARY)
    ends = place.all(
        "ls -la .smithers; cat .smithers/state; ln -s .smithers way; cat way/state",
        "mv .smithers other; rm -rf .smithers; umount .smithers; cat .smithers/state other/state",
        f"cat /proc/self/root{hidden}/state; echo x > .smithers/new",
    )
    assert [end["text"] for end in ends if CANARY in end["text"]] == []
    assert [path.name for path in hidden.iterdir()] == ["state"]


def test_without_namespaces_nothing_is_run_and_the_reason_says_what_to_do(place: Place) -> None:
    end = run_jailed(place.user, place.root, {"argv": ["touch", "proof"]}, is_filtered=True)[0]
    assert end["error"] == "SANDBOX_UNAVAILABLE"
    assert "docs/sandbox.md" in end["text"]
    assert "--unsafe-tools" in end["text"]
    assert not (place.root / "proof").exists()


async def test_a_probe_says_how_commands_are_run_and_what_is_in_the_way(tmp_path: Path) -> None:
    assert (await probe_sandbox(SandboxPolicy(root=tmp_path))).startswith("jailed")
    unsafe = await probe_sandbox(SandboxPolicy(root=tmp_path, is_jailed=False))
    assert unsafe.startswith("unsafe: ")
    unfit = await probe_sandbox(SandboxPolicy(root=Path("/usr")))
    assert unfit.startswith("unavailable: ")
    assert "the root directory is /usr" in unfit


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        ({"writable": ["/usr"]}, "/usr can be written to"),
        ({"processes": [1, 2, 3]}, "processes of others are seen"),
        ({"filter": 0}, "system calls are not filtered"),
        ({"interfaces": ["eth0"]}, "the network can be reached"),
    ],
)
async def test_a_jail_that_does_not_hold_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], leak: str
) -> None:
    commands = Commands(SandboxPolicy(root=tmp_path))
    seen = await commands.look_around()
    commands.close()

    async def look(_commands: Commands) -> dict[str, Any]:
        return {**seen, **changes}

    monkeypatch.setattr(Commands, "look_around", look)
    found = await probe_sandbox(SandboxPolicy(root=tmp_path))
    assert found.startswith("unavailable: ")
    assert leak in found


def test_a_command_that_is_not_there_is_no_fault_of_the_sandbox(place: Place) -> None:
    missing, nowhere, mute = run_jailed(
        place.user,
        place.root,
        {"argv": ["no-such-program"]},
        {"argv": ["true"], "cwd": "no/such/folder"},
        {"argv": ["cat"], "stdin": "typed"},
    )
    assert missing == {"error": "TOOL_FAILED", "text": "there is no command 'no-such-program'"}
    assert nowhere["error"] == "TOOL_FAILED"
    assert mute == {"exit_code": 0, "text": "typed"}
    assert find_processes("no-such-program") == []


@pytest.mark.skipif("root" not in USERS, reason="only root may hide parts of /proc")
def test_where_proc_is_partly_hidden_a_command_has_none(tmp_path: Path) -> None:
    """As in a container: the kernel then mounts no other /proc for a user namespace."""
    root = tmp_path / "root"
    root.mkdir()
    hide = 'mount -t tmpfs hidden /proc/bus && exec "$@"'
    end = run_jailed(
        0,
        root,
        {"argv": ["sh", "-c", "ls -A /proc; echo done"]},
        before=("unshare", "-m", "sh", "-c", hide, "-"),
    )[0]
    assert end == {"exit_code": 0, "text": "done\n"}
