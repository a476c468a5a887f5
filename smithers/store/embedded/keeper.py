"""Keep one Postgres server running for as long as anybody uses it, then stop it.

A process of its own: `python -I -S keeper.py LOCK UID GID POSTGRES [ARG...]`. It returns at once
and leaves the keeper behind, nobody's child and in another session, out of reach of Ctrl-C.
Guaranteed: a server that was killed comes back, and so does one that has given itself up after it
once was ready, e.g. for a full disk, however long that takes; one that was asked to stop stays
down; when the last shared lock on LOCK is gone, however its holder went, the server is stopped (fast: sessions
are cut, a checkpoint is made), and LOCK is held exclusively until it has ended.

Imports a little of the standard library and nothing else: it is in memory as long as the server.
"""

import contextlib
import fcntl
import os
import select
import signal
import sys
import time

USE_CHECK_S = 0.5  # how long a server lingers when its users were killed
# Before a restart: a tenth of the time that it is down. Sessions outlive a killed postmaster until
# they look up, and no other starts before that; a full disk may stay full for hours.
PAUSE_SHARE = 0.1
MIN_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0


def main() -> None:
    """Start the server as UID:GID, leave a keeper, return."""
    lock_path, uid, gid, *command = sys.argv[1:]
    # Opened here: a lock belongs to the open file, and an inherited one would be our user's own.
    lock_fd = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW)
    if os.fork():
        os._exit(0)  # our user waits for this one, and has no child to reap later
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Sent to all of a service or a container: the users go when they are done, we go with them.
        signal.signal(ignored, signal.SIG_IGN)
    _keep(lock_fd, int(uid), int(gid), command)


def _keep(lock_fd: int, uid: int, gid: int, command: list[str]) -> None:
    wake_fd = _wake_up_on_child_death()
    server_pid = _start(uid, gid, command)
    has_served = False  # a first start that fails is not repeated: its user waits to say why
    served_at = time.monotonic()
    while _is_used(lock_fd):
        ended_pid, status = _await_end(server_pid, wake_fd)
        if not ended_pid:
            if _is_ready(server_pid, command):
                has_served, served_at = True, time.monotonic()
            continue
        has_served = has_served or os.WIFSIGNALED(status)
        if not has_served or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0):
            return
        down_s = time.monotonic() - served_at
        pause_s = min(max(PAUSE_SHARE * down_s, MIN_PAUSE_S), MAX_PAUSE_S)
        select.select([], [], [], pause_s)
        if not _is_used(lock_fd):
            return
        server_pid = _start(uid, gid, command)
    ended_pid = 0
    while not ended_pid:
        os.kill(server_pid, signal.SIGINT)  # repeated: a signal that comes before the exec is lost
        ended_pid, _ = _await_end(server_pid, wake_fd)


def _is_ready(server_pid: int, command: list[str]) -> bool:
    """Say whether the server takes sessions, as its own postmaster.pid has it."""
    pgdata = command[command.index("-D") + 1]
    try:
        with open(f"{pgdata}/postmaster.pid", "rb") as file:  # noqa: PTH123 - pathlib is large
            lines = file.read().split(b"\n")
    except OSError:
        return False
    return lines[0] == b"%d" % server_pid and lines[7:8] == [b"ready   "]


def _await_end(server_pid: int, wake_fd: int) -> tuple[int, int]:
    """Wait USE_CHECK_S for the server's end; the pid is 0 if it runs."""
    select.select([wake_fd], [], [], USE_CHECK_S)
    with contextlib.suppress(BlockingIOError):
        os.read(wake_fd, 1024)
    return os.waitpid(server_pid, os.WNOHANG)


def _start(uid: int, gid: int, command: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        if os.geteuid() != uid:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        for default in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(default, signal.SIG_DFL)
        os.execv(command[0], command)  # noqa: S606 - our user made the command
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _is_used(lock_fd: int) -> bool:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _wake_up_on_child_death() -> int:
    # A flag set by a handler is missed between the look and the wait; a byte in a pipe is not.
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_fd


if __name__ == "__main__":
    main()
