"""Keep one Postgres server running for as long as anybody uses it, then stop it.

Run by path, as a process of its own, by smithers.store.embedded: `python -I -S keeper.py LOCK UID GID POSTGRES [ARG...]`.
It returns at once and leaves the keeper behind, nobody's child and in a session of its own, so that neither Ctrl-C nor the death of a
user reaches it. Guaranteed: a server that was killed comes back; a server that was asked to stop stays down; when the
last holder of a shared lock on LOCK is gone, however it went, the server is told to stop (fast, so after a checkpoint).
If the keeper itself is killed the server stays, and its last user stops it.

Imports nothing but a little of the standard library: it stays in memory as long as the server.
"""

import fcntl
import os
import select
import signal
import sys

USE_CHECK_S = (
    0.5  # how long a server without users may linger; the death of the server wakes us at once
)
RESTART_PAUSE_S = 0.25
# The sessions of a killed postmaster live until they look up, and Postgres does not start before: ~30 s.
RESTART_COUNT = 120


def main() -> None:
    """Start the server as UID:GID, leave a keeper, return."""
    lock_path, uid, gid, *command = sys.argv[1:]
    # An open file of our own: a lock belongs to the open file, and the starter's is shared with the starter.
    lock_fd = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW)
    if os.fork():
        os._exit(0)  # the starter waits for this one only, and has no child to reap later
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # To all of a service or a container: the users decide when they go, and we go with the last.
        signal.signal(ignored, signal.SIG_IGN)
    _keep(lock_fd, int(uid), int(gid), command)


def _keep(lock_fd: int, uid: int, gid: int, command: list[str]) -> None:
    wake_fd = _wake_up_on_child_death()
    server_pid = _start(uid, gid, command)
    restarts_left = 0  # the first start fails at once: its user waits to read why
    while _is_used(lock_fd):
        select.select([wake_fd], [], [], USE_CHECK_S)
        _drain(wake_fd)
        ended_pid, status = os.waitpid(server_pid, os.WNOHANG)
        if not ended_pid:
            continue
        if os.WIFSIGNALED(status):
            restarts_left = RESTART_COUNT
        elif os.WEXITSTATUS(status) == 0 or not restarts_left:
            return
        restarts_left -= 1
        select.select([], [], [], RESTART_PAUSE_S)
        server_pid = _start(uid, gid, command)
    # We hold the lock exclusively until we end: who comes now waits, and starts anew.
    ended_pid = 0
    while not ended_pid:
        os.kill(
            server_pid, signal.SIGINT
        )  # again and again: one that comes before the exec is lost
        select.select([wake_fd], [], [], USE_CHECK_S)
        _drain(wake_fd)
        ended_pid, _ = os.waitpid(server_pid, os.WNOHANG)


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
        os.execv(command[0], command)
    except OSError as exc:
        os.write(2, f"{command[0]}: {exc}\n".encode())
    finally:
        os._exit(127)


def _is_used(lock_fd: int) -> bool:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _wake_up_on_child_death() -> int:
    # A handler that only sets a flag would lose a death between the look and the wait; a byte in a pipe is not lost.
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_fd


def _drain(wake_fd: int) -> None:
    try:
        os.read(wake_fd, 1024)
    except BlockingIOError:
        pass


if __name__ == "__main__":
    main()
