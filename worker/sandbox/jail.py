"""Build jails: once, around the jailer, the part that all of them share; around the first process of each, its own part.

The shared part, the mould, is a mount namespace that the jailer moves into. Each jail has a copy of it, in a user namespace
of its own, so the kernel locks all of its mounts. Visible inside: the system's programs and libraries,
read-only; the root at its own path, writable, with `.smithers` hidden and the server's own code read-only; a private
/tmp; six devices; /proc of these processes only, read-only (as host root a writable one would expose the kernel's
settings). Nothing else of the host's tree is mounted, so nothing else needs protection: no home, no database socket,
no credential of a service.

Each step raises OSError, and no command is run unless all of them succeed. Only /proc may be left empty: if a
container hides parts of its own, the kernel refuses another (docs/sandbox.md).
"""

import errno
import os
import signal
import socket
import stat
from contextlib import suppress
from typing import Final, NamedTuple

from worker.sandbox import syscalls
from worker.sandbox.request import JailPolicy
from worker.sandbox.seccomp import compile_filter
from worker.sandbox.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
)

_OLD: Final = "/.old"
_TMP: Final = "/tmp"  # noqa: S108 - the jail's own, where nobody else is
_SHM: Final = "/dev/shm"  # noqa: S108 - as above
_VAR_TMP: Final = f"/var{_TMP}"  # a link to _TMP, unless what is bound lies there
_STAGE: Final = "/mnt"
_TMP_FILES: Final = 65_536  # an empty file uses kernel memory, but none of the size limit
_HOST_NAME: Final = "sandbox"
HIDDEN: Final = ".smithers"
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_ETC: Final = (
    *("alternatives", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf", "timezone"),
    # Never these two as a whole: private keys are beside the certificates.
    *("ssl/certs", "ssl/openssl.cnf", "pki/ca-trust", "pki/tls/certs", "pki/tls/cert.pem"),
)
_ETC_OF_NETWORK: Final = ("gai.conf", "hosts", "protocols", "resolv.conf", "services")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_FLAGS: Final = MS_NOSUID | MS_NODEV
_CLOSED: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
# From Linux 6.14 on /proc/sys/kernel/pid_max is the PID namespace's own; before that it is the whole host's.
_OWN_PID_MAX: Final = (6, 14)
_LEAST_PID_MAX: Final = 301


class Mould(NamedTuple):
    """The shared part of all jails of a jailer."""

    policy: JailPolicy
    cgroup_limits: str  # whether there are any, and why not
    uid: int
    gid: int
    proc: int  # the host's /proc, for a process whose jail does not have one yet
    filter: bytes


def namespaces(policy: JailPolicy) -> int:
    """Return the flags of clone(2) for a jail, besides the mould's."""
    if not policy.is_jailed:
        return 0
    flags = (
        syscalls.CLONE_NEWUSER
        | syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWCGROUP
    )
    return flags if policy.allow_network else flags | syscalls.CLONE_NEWNET


def make_mould(policy: JailPolicy, *, cgroup_limits: str) -> Mould:
    """Move the calling process, which has one thread, into the shared part of its jails."""
    mould = Mould(
        policy=policy,
        cgroup_limits=cgroup_limits,
        uid=os.getuid(),
        gid=os.getgid(),
        proc=os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        filter=compile_filter(allow_network=policy.allow_network),
    )
    if not policy.is_jailed:
        return mould
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))  # other credentials may clear it
    _map_ids(mould)
    socket.sethostname(_HOST_NAME)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    # On the root's own path, which is known to exist; the pivot removes it again.
    syscalls.mount("tmpfs", policy.root, "tmpfs", _FLAGS, "mode=0755,size=1m")
    os.chdir(policy.root)
    os.mkdir(_OLD[1:])
    syscalls.pivot_root(".", _OLD[1:])
    os.chdir("/")
    _mount_common(policy)
    _mount_etc(mould.uid, mould.gid, allow_network=policy.allow_network)
    _bind(policy.root, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    _close(policy)
    syscalls.detach_mount(_OLD)
    os.rmdir(_OLD)
    syscalls.restrict_mounts("/", _CLOSED, is_recursive=False)
    return mould


def build_jail(mould: Mould) -> None:
    """Put the calling process, the first of new namespaces, into its jail."""
    policy = mould.policy
    _map_ids(mould)
    bound = [policy.root, *_extra(policy)]
    _mount_own(_TMP, _FLAGS, policy.limits.tmp_bytes, bound)
    _mount_own(_SHM, _FLAGS | MS_NOEXEC, policy.limits.tmp_bytes, bound)
    if _uses_var_tmp(policy):
        _mount_own(_VAR_TMP, _FLAGS, policy.limits.tmp_bytes, bound)
    with suppress(PermissionError):
        syscalls.mount("proc", "/proc", "proc", _FLAGS | MS_NOEXEC)
        _limit_pids(policy.limits.processes)
        syscalls.restrict_mounts("/proc", _CLOSED, is_recursive=False)
    _hide(f"{policy.root}/{HIDDEN}")


def _map_ids(mould: Mould) -> None:
    """Map the caller's own ids: no other ids exist inside."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{mould.uid} {mould.uid} 1"),
        ("gid_map", f"{mould.gid} {mould.gid} 1"),
    ):
        _write(f"self/{name}", text, directory=mould.proc)


def _mount_common(policy: JailPolicy) -> None:
    for place in (_TMP, "/dev", _SHM, "/proc", "/var", _STAGE):
        os.mkdir(place)
    if _uses_var_tmp(policy):
        os.mkdir(_VAR_TMP)
    else:
        os.symlink(_TMP, _VAR_TMP)
    for name in _DEVICES:
        _bind(f"/dev/{name}", MOUNT_ATTR_NOSUID)
    for name, number in (("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2"), ("fd", "")):
        os.symlink(f"/proc/self/fd{number}", f"/dev/{name}")
    _mount_dead_proc()
    _mount_system(policy)


def _mount_dead_proc() -> None:
    """Mount the /proc of a namespace whose only process is gone: the kernel allows a jail one only if one is visible."""
    pid = syscalls.clone(syscalls.CLONE_NEWPID)
    if pid == 0:
        try:
            syscalls.mount("proc", "/proc", "proc", _FLAGS | MS_NOEXEC)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in {0, errno.EPERM}:
        raise OSError(code, f"mount /proc: {os.strerror(abs(code))}")


def _mount_own(place: str, flags: int, size_bytes: int, bound: list[str]) -> None:
    """Mount an empty tmpfs over a place, with the mounts below that place on top; no root is covered."""
    if place in bound:
        return
    options = f"mode=1777,size={size_bytes},nr_inodes={_TMP_FILES}"
    inside = [path for path in bound if path.startswith(f"{place}/")]
    if not inside:
        syscalls.mount("tmpfs", place, "tmpfs", flags, options)
        return
    syscalls.mount("tmpfs", _STAGE, "tmpfs", flags, options)
    for path in inside:
        staged = _STAGE + path.removeprefix(place)
        os.makedirs(staged, exist_ok=True)
        syscalls.mount(path, staged, None, MS_BIND | MS_REC)
    syscalls.mount(_STAGE, place, None, MS_MOVE)


def _limit_pids(count: int) -> None:
    """Limit the number of processes if the kernel has a limit for each namespace, which applies to root as well."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release >= _OWN_PID_MAX:
        _write("/proc/sys/kernel/pid_max", str(max(count, _LEAST_PID_MAX)))


def _extra(policy: JailPolicy) -> list[str]:
    """Return what is visible besides the system and the root, and outside both."""
    inside = (policy.root.rstrip("/") + "/", "/usr/")
    return [path for path in policy.read_only if not f"{path}/".startswith(inside)]


def _uses_var_tmp(policy: JailPolicy) -> bool:
    return any(f"{path}/".startswith(f"{_VAR_TMP}/") for path in (policy.root, *_extra(policy)))


def _mount_system(policy: JailPolicy) -> None:
    for path in (*_SYSTEM, *_extra(policy)):
        try:
            mode = os.lstat(_OLD + path).st_mode
        except (FileNotFoundError, PermissionError):
            continue
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(_OLD + path), path)
        elif stat.S_ISDIR(mode):
            _bind(path, _CLOSED)


def _close(policy: JailPolicy) -> None:
    """Make the server's own code below the writable root read-only."""
    above = {step for place in policy.closed for step in _steps_to(place, policy.root)}
    # A directory above could be renamed and recreated with other code, but not one that is a mount point.
    for place in (*sorted(above), *policy.closed):
        syscalls.mount(place, place, None, MS_BIND | MS_REC)
    for place in policy.closed:
        syscalls.restrict_mounts(place, _CLOSED, is_recursive=True)


def _steps_to(place: str, root: str) -> list[str]:
    """Return the directories between a root and a place below it."""
    names = place.removeprefix(root).strip("/").split("/")[:-1]
    return [f"{root}/{'/'.join(names[: count + 1])}" for count in range(len(names))]


def _mount_etc(uid: int, gid: int, *, allow_network: bool) -> None:
    """Provide the few files of /etc that programs need; users are synthetic, independent of the host's."""
    os.mkdir("/etc")
    for name in _ETC + (_ETC_OF_NETWORK if allow_network else ()):
        if os.path.exists(f"{_OLD}/etc/{name}"):
            _bind(f"/etc/{name}", _CLOSED)
    root = "" if uid == 0 else "root:x:0:0:root:/:/bin/sh\n"
    _write("/etc/passwd", f"{root}sandbox:x:{uid}:{gid}:sandbox:{_TMP}:/bin/sh\n")
    _write("/etc/group", f"sandbox:x:{gid}:\n")


def _hide(hidden: str) -> None:
    try:
        mode = os.lstat(hidden).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        syscalls.mount("tmpfs", hidden, "tmpfs", _FLAGS, "mode=0555,size=4k")
        syscalls.restrict_mounts(hidden, _CLOSED, is_recursive=False)
    elif stat.S_ISREG(mode):
        syscalls.mount("/dev/null", hidden, None, MS_BIND)


def _bind(path: str, attributes: int) -> None:
    """Bind a directory or a file of the host, with all mounts below it, at its own path."""
    source = _OLD + path
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, "")
    syscalls.mount(source, path, None, MS_BIND | MS_REC)
    syscalls.restrict_mounts(path, attributes, is_recursive=True)


def _write(path: str, text: str, *, directory: int | None = None) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=directory)
    try:
        os.write(number, text.encode())
    finally:
        os.close(number)
