"""The second wall: a system call filter for a jailed command and all its processes.

It is a list of what is refused, not of what is allowed: the namespaces are the first wall, and a build or a test suite
calls nearly everything else. Refused are new namespaces and mounts, kernel interfaces that were never meant for strangers
(bpf, io_uring, keyrings, userfaultfd, handles of files), looking into other processes, sockets of families that no network
namespace holds back (vsock), and making files setuid. Calls newer than this table do not exist (ENOSYS), nor does any
other machine's way of calling: a table that is out of date is stricter, not weaker.

The program is assembled here, some 300 instructions: libseccomp would be a shared library that slim images lack.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from worker.sandbox import syscalls

_AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_MACHINES: Final = ("x86_64", "aarch64")
_LAST_KNOWN: Final = 451  # cachestat, Linux 6.5

# By name: the number on x86_64 and on aarch64.
_REFUSED: Final = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
# Libraries have alternatives if these do not exist. Their arguments are in memory, which no filter can inspect.
_ABSENT: Final = {
    "clone3": (435, 435),
    "io_setup": (206, 0),  # its rings are counted for the whole host: fs.aio-max-nr
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "openat2": (437, 437),
}
_NEW_NAMESPACES: Final = 0x7E02_0000
_SET_ID: Final = 0o6000
_CREATES: Final = 0o100 | 0o20000000  # O_CREAT, O_TMPFILE: without them there is no mode
# A call, its numbers, and (argument, mask) pairs: refused where each argument has a bit of its mask.
_REFUSED_WITH: Final = (
    ("clone", (56, 220), ((0, _NEW_NAMESPACES),)),
    ("chmod", (90, None), ((1, _SET_ID),)),
    ("fchmod", (91, 52), ((1, _SET_ID),)),
    ("fchmodat", (268, 53), ((2, _SET_ID),)),
    ("creat", (85, None), ((1, _SET_ID),)),
    ("mknod", (133, None), ((1, _SET_ID),)),
    ("mknodat", (259, 33), ((2, _SET_ID),)),
    ("open", (2, None), ((1, _CREATES), (2, _SET_ID))),
    ("openat", (257, 56), ((2, _CREATES), (3, _SET_ID))),
)
_SOCKET: Final = (41, 198)
_SOCKETPAIR: Final = (53, 199)
_IOCTL: Final = (16, 29)
_TERMINAL_INJECTIONS: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_LOCAL_FAMILIES: Final = (socket.AF_UNIX,)
_NETWORK_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15
_IF_GREATER: Final = 0x25
_IF_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF_0000
_KILL: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_INSTRUCTION_BYTES: Final = 8
_NR_OFFSET: Final = 0
_ARCH_OFFSET: Final = 4


class Instruction(NamedTuple):
    """One `struct sock_filter`: jumps count the instructions to pass over."""

    code: int
    if_true: int
    if_false: int
    value: int


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def compile_filter(*, allow_network: bool) -> bytes:
    """Return the filter for this machine as the kernel takes it."""
    program = assemble(syscalls.machine(), allow_network=allow_network)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install_filter(code: bytes) -> None:
    """Install the filter for this process and its descendants; irrevocable."""
    filtering = ctypes.byref(_Program(len(code) // _INSTRUCTION_BYTES, code))
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(syscalls.PR_SET_SECCOMP, syscalls.SECCOMP_MODE_FILTER, filtering)


def assemble(machine: str, *, allow_network: bool) -> list[Instruction]:
    """Return the filter for a machine of the table."""
    column = _MACHINES.index(machine)
    program = [
        _load(_ARCH_OFFSET),
        Instruction(_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        Instruction(_RETURN, 0, 0, _KILL),
        _load(_NR_OFFSET),
        Instruction(_IF_GREATER, 0, 1, _LAST_KNOWN),
        _refuse(errno.ENOSYS),
    ]
    for numbers, code in _whole_calls():
        if (number := numbers[column]) is not None:
            program += [Instruction(_IF_EQUAL, 0, 1, number), _refuse(code)]
    for _, numbers, conditions in _REFUSED_WITH:
        if (number := numbers[column]) is not None:
            program += _for_call(number, _refuse_with_bits(conditions))
    families = _LOCAL_FAMILIES + (_NETWORK_FAMILIES if allow_network else ())
    for numbers in (_SOCKET, _SOCKETPAIR):
        program += _for_call(numbers[column], _refuse_but_for(families))
    program += _for_call(_IOCTL[column], _refuse_values(1, _TERMINAL_INJECTIONS))
    return [*program, Instruction(_RETURN, 0, 0, _ALLOW)]


def _whole_calls() -> Iterator[tuple[tuple[int, int | None], int]]:
    for numbers in _REFUSED.values():
        yield numbers, errno.EPERM
    for numbers in _ABSENT.values():
        yield numbers, errno.ENOSYS


def _for_call(number: int, body: list[Instruction]) -> list[Instruction]:
    """Check one call's arguments, and reload its number if they are fine."""
    return [Instruction(_IF_EQUAL, 0, len(body) + 1, number), *body, _load(_NR_OFFSET)]


def _refuse_with_bits(conditions: tuple[tuple[int, int], ...]) -> list[Instruction]:
    body = [_refuse(errno.EPERM)]
    for argument, mask in reversed(conditions):
        body = [_load_argument(argument), Instruction(_IF_ANY_BIT, 0, len(body), mask), *body]
    return body


def _refuse_but_for(families: tuple[int, ...]) -> list[Instruction]:
    body = [_refuse(errno.EAFNOSUPPORT)]
    for family in reversed(families):
        body = [Instruction(_IF_EQUAL, len(body), 0, family), *body]
    return [_load_argument(0), *body]


def _refuse_values(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    body = [_load_argument(argument)]
    for value in values:
        body += [Instruction(_IF_EQUAL, 0, 1, value), _refuse(errno.EPERM)]
    return body


def _load(offset: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, offset)


def _load_argument(number: int) -> Instruction:
    """Load the low half of an argument: all that these calls look at themselves (both machines are little-endian)."""
    return _load(16 + 8 * number)


def _refuse(code: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, _ERRNO | code)
