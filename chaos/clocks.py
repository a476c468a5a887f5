"""Move the clock of one process and all below it: what time(), gettimeofday() and CLOCK_REALTIME say there.

A library is loaded before the others and adds the seconds that stand in a file, which all of them have mapped: a clock that
is moved is moved at once, everywhere, and stays so after a restart. Clocks that only count (CLOCK_MONOTONIC) are left
alone, as a kernel leaves them when its time is set; so is CLOCK_REALTIME_COARSE, by which a witness tells the true time.
"""

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

CAN_MOVE: Final = shutil.which("cc") is not None
SHIFT: Final = struct.Struct("l")
SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long *shift_s;

__attribute__((constructor)) static void map_shift(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(NULL, sizeof *shift_s, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) shift_s = page;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    if (!failed && clock == CLOCK_REALTIME && shift_s) at->tv_sec += *shift_s;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def build(place: Path) -> Path | None:
    """Make the library in a directory; None where nothing can make it, and clocks stay true."""
    if not CAN_MOVE:
        return None
    source, library = place / "clock.c", place / "clock.so"
    source.write_text(SOURCE)
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Clock:
    """What processes that are started with its environment hold for the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.move(0)

    def environment(self, library: Path | None) -> dict[str, str]:
        """What a process is started with; it is as it was where there is no library."""
        if library is None:
            return {}
        return {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._path)}

    def move(self, seconds: int) -> None:
        """Set how far the clock is ahead of the true time; below 0: behind."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, SHIFT.pack(seconds), 0)  # eight bytes, seen whole or not at all
        finally:
            os.close(descriptor)
