"""Build the jail around the calling process, the first of its namespaces.

What is seen from inside: the system's programs and libraries, read-only; the root at its own path, to write to, with
`.smithers` hidden; a private /tmp; six devices; /proc of these processes alone, read-only (as host root a writable one
would hand out the kernel's settings). Nothing else of the host's tree is mounted, so there is nothing to be kept from:
no home, no socket of a database, no credential of a service.

Each step raises OSError, and no command is run unless all of them were taken. /proc alone may be left empty: where a
container hides parts of its own, the kernel refuses another (docs/sandbox.md).
"""

import os
import socket
import stat
from contextlib import suppress
from typing import Final

from worker.sandbox import syscalls
from worker.sandbox.request import JailRequest
from worker.sandbox.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
)

_OLD: Final = "/.old"
_TMP: Final = "/tmp"  # noqa: S108 - the jail's own, where nobody else is
_SHM: Final = "/dev/shm"  # noqa: S108 - as above
_HOST_NAME: Final = "sandbox"
HIDDEN: Final = ".smithers"
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_ETC: Final = (
    *("alternatives", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf", "timezone"),
    # Never all of these two: private keys lie beside the certificates.
    *("ssl/certs", "ssl/openssl.cnf", "pki/ca-trust", "pki/tls/certs", "pki/tls/cert.pem"),
)
_ETC_OF_NETWORK: Final = ("gai.conf", "hosts", "protocols", "resolv.conf", "services")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_FLAGS: Final = MS_NOSUID | MS_NODEV
_CLOSED: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
# From Linux 6.14 on /proc/sys/kernel/pid_max is the PID namespace's own; before that it is the whole host's.
_OWN_PID_MAX: Final = (6, 14)
_LEAST_PID_MAX: Final = 301


def namespaces(*, allow_network: bool) -> int:
    """Return the flags of clone(2) for a jail."""
    flags = (
        syscalls.CLONE_NEWUSER
        | syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWCGROUP
    )
    return flags if allow_network else flags | syscalls.CLONE_NEWNET


def build_jail(request: JailRequest, uid: int, gid: int) -> None:
    """Put the calling process, the first of new namespaces, into the jail; `uid` and `gid` are what it was before."""
    _map_ids(uid, gid)
    socket.sethostname(_HOST_NAME)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    # On the root's own path, which is known to be there; the pivot takes it away again.
    syscalls.mount("tmpfs", request.root, "tmpfs", _FLAGS, "mode=0755,size=1m")
    os.chdir(request.root)
    os.mkdir(_OLD[1:])
    syscalls.pivot_root(".", _OLD[1:])
    os.chdir("/")
    _mount_private(request)
    _mount_system(request)
    _mount_etc(uid, gid, allow_network=request.allow_network)
    _mount_root(request.root)
    syscalls.detach_mount(_OLD)
    os.rmdir(_OLD)
    syscalls.restrict_mounts("/", _CLOSED, is_recursive=False)


def _map_ids(uid: int, gid: int) -> None:
    """Be inside who one is outside: no other id exists there."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _mount_private(request: JailRequest) -> None:
    options = f"mode=1777,size={request.limits.tmp_bytes}"
    for place in (_TMP, "/dev", _SHM, "/proc", "/var"):
        os.mkdir(place)
    os.symlink(_TMP, f"/var{_TMP}")
    syscalls.mount("tmpfs", _TMP, "tmpfs", _FLAGS, options)
    syscalls.mount("tmpfs", _SHM, "tmpfs", _FLAGS | MS_NOEXEC, options)
    for name in _DEVICES:
        _bind(f"/dev/{name}", MOUNT_ATTR_NOSUID)
    for name, number in (("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2"), ("fd", "")):
        os.symlink(f"/proc/self/fd{number}", f"/dev/{name}")
    with suppress(PermissionError):
        syscalls.mount("proc", "/proc", "proc", _FLAGS | MS_NOEXEC)
        _limit_pids(request.limits.processes)
        syscalls.restrict_mounts("/proc", _CLOSED, is_recursive=False)


def _limit_pids(count: int) -> None:
    """Bound the number of processes where the kernel has a bound for each namespace: it holds for root as well."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release >= _OWN_PID_MAX:
        _write("/proc/sys/kernel/pid_max", str(max(count, _LEAST_PID_MAX)))


def _mount_system(request: JailRequest) -> None:
    inside = (request.root.rstrip("/") + "/", "/usr/")
    extra = [path for path in request.read_only if not f"{path}/".startswith(inside)]
    for path in (*_SYSTEM, *extra):
        try:
            mode = os.lstat(_OLD + path).st_mode
        except (FileNotFoundError, PermissionError):
            continue
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(_OLD + path), path)
        elif stat.S_ISDIR(mode):
            _bind(path, _CLOSED)


def _mount_etc(uid: int, gid: int, *, allow_network: bool) -> None:
    """Give programs the few files of /etc that they need; users are made up, whoever there is on the host."""
    os.mkdir("/etc")
    for name in _ETC + (_ETC_OF_NETWORK if allow_network else ()):
        if os.path.exists(f"{_OLD}/etc/{name}"):
            _bind(f"/etc/{name}", _CLOSED)
    root = "" if uid == 0 else "root:x:0:0:root:/:/bin/sh\n"
    _write("/etc/passwd", f"{root}sandbox:x:{uid}:{gid}:sandbox:{_TMP}:/bin/sh\n")
    _write("/etc/group", f"sandbox:x:{gid}:\n")


def _mount_root(root: str) -> None:
    _bind(root, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    hidden = f"{root}/{HIDDEN}"
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
    """Show a directory or a file of the host, with all that is mounted below it, at its own path."""
    source = _OLD + path
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, "")
    syscalls.mount(source, path, None, MS_BIND | MS_REC)
    syscalls.restrict_mounts(path, attributes, is_recursive=True)


def _write(path: str, text: str) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(number, text.encode())
    finally:
        os.close(number)
