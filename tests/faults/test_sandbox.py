"""What holds in the jail, as root and as a plain user; the ways out of it are tried by test_escapes."""

import errno
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

from smithers.tools import ToolError
from tests.support.escapes import listening, was_reached
from tests.support.jailing import CANARY, REPOSITORY, USERS, run_jailed
from tests.support.serving import find_processes, until_none
from worker.sandbox import commands as commands_module
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


def test_a_command_sees_the_root_and_writes_to_it(place: Place) -> None:
    end = place.shell("echo hello > note.txt; cat note.txt; id -u")
    assert end == {"exit_code": 0, "text": f"hello\n{place.user}\n"}
    assert (place.root / "note.txt").read_text() == "hello\n"


def test_a_root_may_lie_where_a_command_has_a_directory_of_its_own(place: Place) -> None:
    for parent in ("/tmp", "/dev/shm", "/var/tmp"):
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            folder.chmod(0o755)
            shutil.chown(folder, place.user)
            listing = f"ls {folder}; test -e {place.root} || echo alone"
            ends = [
                *run_jailed(place.user, folder, {"argv": ["sh", "-c", f"touch a; {listing}"]}),
                *run_jailed(place.user, Path(parent), {"argv": ["sh", "-c", f"ls {folder}"]}),
            ]
        finally:
            shutil.rmtree(folder)
        assert [end["text"] for end in ends] == ["a\nalone\n", "a\n"]


def test_nothing_is_written_outside_of_the_root(place: Place) -> None:
    new = place.outside / "new.txt"
    (place.root / "dangling").symlink_to(new)
    (place.root / "over").symlink_to(place.secret)
    place.all(
        "echo x > dangling; echo x > over; echo x >> over",
        f"mkdir -p {place.outside}; echo x > {new}; echo x > {place.secret}; ls -la {place.outside}",
        "for place in / /usr /usr/bin /etc /lib /dev /proc/sys/kernel/core_pattern /proc/sysrq-trigger /var; do "
        "echo x > $place/x; echo x > $place; done; mv /usr/bin/env /usr/bin/env2; rm -rf /usr/bin/yes",
        "mount -t tmpfs x /usr; mount -o remount,rw /usr; umount /usr; umount -l /proc",
    )
    assert not new.exists()
    assert place.secret.read_text() == CANARY
    assert shutil.which("yes") is not None


def test_the_servers_own_code_below_the_root_is_not_written_to(place: Place) -> None:
    """An ordinary layout: a virtual environment in the project's directory."""
    venv = place.root / "services" / "api" / ".venv"
    program = venv / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text("own")
    for path in (*place.root.rglob("*"), place.root):
        shutil.chown(path, place.user)
    lines = (
        "echo x > services/api/.venv/bin/python; echo x > services/api/.venv/bin/new; rm -rf services/api/.venv",
        *(
            f'python3 -c \'import os; os.rename("{path}", "other")\''
            for path in ("services/api/.venv", "services/api", "services")
        ),
        "ln services/api/.venv/bin/python hard",
        "mkdir -p services/api/.venv/bin; mount -o remount,rw services/api/.venv; umount services/api/.venv",
        "cat services/api/.venv/bin/python && echo fine > services/api/note && mv services/api/note services/note",
    )
    commands = ({"argv": ["bash", "-c", line]} for line in lines)
    ends = run_jailed(place.user, place.root, *commands, prefix=venv)
    assert [end["exit_code"] == 0 for end in ends] == [False] * (len(lines) - 1) + [True]
    assert ends[-1]["text"] == "own"
    assert {str(path.relative_to(place.root)) for path in place.root.rglob("*")} == {
        *("services", "services/api", "services/note"),
        *(f"services/api/.venv{inside}" for inside in ("", "/bin", "/bin/python")),
    }
    assert program.read_text() == "own"


def test_of_a_checkout_that_is_the_root_the_servers_packages_are_closed() -> None:
    line = "for place in . docs gateway migrations smithers worker; do test -w $place && echo $place; done; true"
    end = run_jailed(os.geteuid(), REPOSITORY, {"argv": ["bash", "-c", line]})[0]
    assert end == {"exit_code": 0, "text": ".\ndocs\n"}


def test_no_command_is_run_where_the_servers_own_code_cannot_be_closed(place: Place) -> None:
    real = place.outside / "venv"
    real.mkdir()
    link = place.root / ".venv"
    link.symlink_to(real)
    for prefix, reason in ((place.root, "where Python is installed"), (link, f"through {link}")):
        end = run_jailed(place.user, place.root, {"argv": ["true"]}, prefix=prefix)[0]
        assert end["error"] == "SANDBOX_UNAVAILABLE"
        assert reason in end["text"]


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


def test_every_namespace_is_the_jails_own(place: Place) -> None:
    names = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    end = place.shell(f"cd /proc/self/ns; readlink {' '.join(names)}")
    assert end["exit_code"] == 0
    outside = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in names]
    assert [text for text in end["text"].split() if text in outside] == []
    assert len(end["text"].split()) == len(names)


def test_nothing_is_written_or_executed_where_it_need_not_be(place: Place) -> None:
    places = "/ /bin /dev /etc /lib /mnt /proc /usr /usr/bin /var"
    written, executed = place.all(
        f"for place in {places}; do touch $place/x 2> /dev/null && echo $place; done; true",
        "for place in /tmp /dev/shm; do cp /bin/true $place/x; $place/x && echo $place; done; true",
    )
    assert written == {"exit_code": 0, "text": ""}
    assert executed["text"].startswith("/tmp\n")
    assert "/dev/shm/x: Permission denied" in executed["text"]


def test_nothing_is_typed_into_a_terminal(place: Place) -> None:
    """The filter refuses it before the kernel looks whether there is a terminal at all."""
    code = """
import errno, fcntl
for request in (0x5412, 0x541C):
    try:
        fcntl.ioctl(0, request, b"x")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert place.python(code)["text"] == "EPERM\nEPERM\n"


def test_a_command_is_what_is_killed_where_memory_is_short(place: Place) -> None:
    for is_jailed in (True, False):
        end = place.shell("cat /proc/self/oom_score_adj", is_jailed=is_jailed)
        assert end == {"exit_code": 0, "text": "1000\n"}


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
        {"argv": ["sh", "-c", "ulimit -c; ulimit -n"]},
        {"argv": ["stat", "--file-system", "--format=%c", "/tmp", "/dev/shm"]},
        limits=limits,
    )
    assert (place.root / "big").stat().st_size <= 1 << 20
    assert "File too large" in big[0]["text"]
    assert "No space left" in big[1]["text"]
    assert "No space left" in big[2]["text"]
    assert "MemoryError" in big[3]["text"]
    assert big[4]["text"] == "0\n256\n"
    assert big[5]["text"] == "65536\n65536\n"


def test_a_command_is_stopped_before_the_disk_is_full(place: Place) -> None:
    space = os.statvfs(place.root)
    limits = {"free_bytes": space.f_bavail * space.f_frsize + (1 << 30)}
    end = run_jailed(place.user, place.root, {"argv": ["sleep", "60"]}, limits=limits)[0]
    assert end["error"] == "TOOL_FAILED"
    assert "nearly full" in end["text"]


def test_a_command_is_stopped_before_there_is_room_for_no_more_files(place: Place) -> None:
    space = os.statvfs(place.root)
    if space.f_files == 0:
        pytest.skip("this filesystem makes inodes as they are needed")
    limits = {"free_files": space.f_favail + 1_000_000}
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
    "clone(user)": ((56, 220), 0x10000000 | 17, 0), "io_setup": ((206, 0), 1, 0),
    "init_module": ((175, 105), 0, 0), "newest": ((460, 460), 0, 0),
}
for name, (numbers, first, second) in from_name.items():
    result = libc.syscall(numbers[machine], first, second, 0, 0, 0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("ALLOWED", name, result, ctypes.get_errno())
print(len(from_name))
"""


def test_the_kernels_back_doors_are_shut(place: Place) -> None:
    assert place.python(FORBIDDEN_CALLS)["text"] == "19\n"


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
    jailed = str(await probe_sandbox(SandboxPolicy(root=tmp_path)))
    assert jailed.startswith("jailed")
    assert ("; cgroup limits: yes (" in jailed) != ("; cgroup limits: no, because " in jailed)
    unsafe = str(await probe_sandbox(SandboxPolicy(root=tmp_path, is_jailed=False)))
    assert unsafe.startswith("unsafe: ")
    assert "; cgroup limits: " in unsafe
    unfit = str(await probe_sandbox(SandboxPolicy(root=Path("/usr"))))
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
    assert not found.is_available
    assert leak in found.standing


async def test_a_command_waits_while_its_account_has_too_many_descriptors_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, refusals = socket.send_fds, [errno.ETOOMANYREFS] * 3

    def send_or_refuse(*given: Any) -> int:
        if refusals:
            raise OSError(refusals[0], os.strerror(refusals.pop()))
        return send(*given)

    monkeypatch.setattr(socket, "send_fds", send_or_refuse)
    commands = Commands(SandboxPolicy(root=tmp_path))
    try:
        assert (await commands.look_around())["uid"] == os.getuid()
        assert refusals == []
        monkeypatch.setattr(commands_module, "SEND_PATIENCE_S", 0.0)
        refusals += [errno.ETOOMANYREFS] * 100
        with pytest.raises(ToolError, match="Too many references"):
            await commands.look_around()
    finally:
        commands.close()


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
