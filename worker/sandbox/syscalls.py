"""The few system calls for which Python has no function; every failure is an OSError that names its call.

Numbers are given for the machines that the sandbox knows; on any other machine() raises OSError, and no command is run.
"""

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_GET_SECCOMP: Final = 21
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39

SECCOMP_MODE_FILTER: Final = 2

_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_CLONE_INTO_CGROUP: Final = 0x2_0000_0000
_CLONE3: Final = 435
_MOUNT_SETATTR: Final = 442  # the same on every machine, like all that came after 2018
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_NUMBERS: Final = {  # clone, pivot_root, capset
    "x86_64": (56, 155, 126),
    "aarch64": (220, 41, 91),
}

# PyDLL: a clone must return in both processes with the interpreter's lock held.
_LIBC: Final = ctypes.PyDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    )


def clone(flags: int, *, cgroup: int | None = None) -> int:
    """Fork into new namespaces, and into a cgroup by its descriptor; the child's pid is returned, and 0 in the child.

    For a process with one thread: handlers that libraries have registered for a fork are not called.
    """
    sigchld = 17
    if cgroup is None:
        return _syscall("clone", _number(0), flags | sigchld, 0, 0, 0, 0)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, its size, tls, set_tid, its size, cgroup
    arguments = (ctypes.c_uint64 * 11)(
        flags | _CLONE_INTO_CGROUP, 0, 0, 0, sigchld, 0, 0, 0, 0, 0, cgroup
    )
    return _syscall("clone3", _CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))


def unshare(flags: int) -> None:
    """Move this process, which has one thread, into new namespaces."""
    _check("unshare", _LIBC.unshare(flags))


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, options: str = ""
) -> None:
    """Mount a filesystem, as described in section 2 of the manual."""
    named = f"mount {target}"
    kind_bytes = None if kind is None else kind.encode()
    arguments = (os.fsencode(source), os.fsencode(target), kind_bytes)
    _check(named, _LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode()))


def restrict_mounts(target: str, attributes: int, *, is_recursive: bool) -> None:
    """Add attributes to a mount, and to those below it; what others have locked stays (Linux 5.12)."""
    attr = _MountAttr(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if is_recursive else 0
    path, size = os.fsencode(target), ctypes.sizeof(attr)
    _syscall(
        f"mount_setattr {target}",
        _MOUNT_SETATTR,
        _AT_FDCWD,
        path,
        flags,
        ctypes.byref(attr),
        size,
    )


def detach_mount(target: str) -> None:
    """Detach a mount and all below it from this namespace."""
    _check(f"umount {target}", _LIBC.umount2(os.fsencode(target), MNT_DETACH))


def pivot_root(new_root: str, old_root: str) -> None:
    """Make one directory the root, and move the old root to another."""
    _syscall("pivot_root", _number(1), os.fsencode(new_root), os.fsencode(old_root))


def prctl(option: int, *arguments: object) -> int:
    """Set or get a property of this process, as described in section 2 of the manual."""
    given = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    given += [ctypes.c_ulong(0)] * (4 - len(given))
    return _check("prctl", _LIBC.prctl(option, *given))


def drop_capabilities() -> None:
    """Give up every capability, now and for whatever is executed later."""
    nothing = ctypes.c_ulong(0)
    for capability in range(64):
        if _LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), nothing, nothing, nothing):
            break  # one more than the kernel knows
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _syscall("capset", _number(2), ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def machine() -> str:
    """Return this machine's name in the tables; raise OSError for an unknown one."""
    name = os.uname().machine
    if name not in _NUMBERS:
        raise OSError(f"the sandbox does not know the system calls of {name}")
    return name


def _number(place: int) -> int:
    return _NUMBERS[machine()][place]


def _syscall(name: str, number: int, *arguments: object) -> int:
    given = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    return _check(name, _LIBC.syscall(ctypes.c_long(number), *given))


def _check(name: str, result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
