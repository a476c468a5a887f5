"""Make the kernel's scheduler run this thread soon after it wakes.

A thread that wakes while others use all processors waits until one of them has used up its slice, 1.4 to 3 ms by default. A
child sleeps for each answer of the database and then runs for 0.3 ms: a lone run spent as long waiting for a processor as
running. Since Linux 6.12, a thread with a shorter slice goes first when it wakes. Its priority and its share of the
processor stay the same: sched_setattr(2), and Documentation/scheduler/sched-eevdf.rst of the kernel.
"""

import ctypes
import os
import struct
import sys
from typing import Final

SLICE_NS: Final = 300_000  # about a turn

# sched_setattr, sched_getattr; the same numbers are other calls in a process of 32 bits, or on another system.
_NUMBERS: Final = (
    {"x86_64": (314, 315), "aarch64": (274, 275)}
    if sys.platform == "linux" and sys.maxsize > 2**32
    else {}
)
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQII")  # `struct sched_attr`: 56 bytes
_POLICY, _FLAGS, _NICE, _RUNTIME = 1, 2, 3, 5
_RESET_ON_FORK: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def shorten_slices() -> None:
    """Ask for short slices for this thread alone: threads and processes that it starts have the usual ones.

    Does nothing where that is not possible: on another kernel or machine, in a container that forbids it, or where
    somebody chose a scheduling policy for this process, or a priority above the usual one: what it starts would lose that.
    """
    attributes = read_attributes()
    if attributes is None or attributes[_POLICY] != os.SCHED_OTHER or attributes[_NICE] < 0:
        return
    if attributes[_RUNTIME] == 0:  # the kernel keeps no slice for a thread
        return
    attributes[_FLAGS] |= _RESET_ON_FORK
    attributes[_RUNTIME] = SLICE_NS
    set_number, _ = _NUMBERS[os.uname().machine]
    _LIBC.syscall(set_number, 0, _ATTRIBUTES.pack(*attributes), 0)


def read_attributes() -> list[int] | None:
    """Return this thread's `sched_attr`, field by field; None: the kernel does not tell."""
    numbers = _NUMBERS.get(os.uname().machine)
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if numbers is None or _LIBC.syscall(numbers[1], 0, buffer, _ATTRIBUTES.size, 0) != 0:
        return None
    return list(_ATTRIBUTES.unpack(buffer.raw))
