"""The fork server: what a fork is given, and what its parent learns of its end."""

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from worker.fork_server import LOST, Fork, ForkServer, open_fork_server
from worker.processes import die_with_parent

PATIENCE_S = 60


@pytest.fixture
def fork_server() -> Iterator[ForkServer]:
    server = open_fork_server()
    yield server
    server.close()


def write(text: str, receiver: int) -> None:
    os.write(receiver, text.encode())


def write_length(text: str, receiver: int) -> None:
    os.write(receiver, str(len(text)).encode())


def say_where_stdin_leads(receiver: int) -> None:
    os.write(receiver, os.fsencode(Path("/proc/self/fd/0").readlink()))


def end_with(code: int) -> None:
    os._exit(code)


def fail() -> None:
    raise ValueError("on purpose")


def hang() -> None:
    signal.pause()


def be_a_child(receiver: int) -> None:
    die_with_parent()
    os.write(receiver, b"1")
    signal.pause()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def forked(fork_server: ForkServer, *order: Any, handed: Sequence[int] = ()) -> Iterator[Fork]:
    fork = fork_server.fork(*order, handed=handed)
    try:
        yield fork
    finally:
        fork.kill()
        fork.close()


def read_what(fork_server: ForkServer, *order: Any) -> str:
    reader, writer = os.pipe()
    with os.fdopen(reader) as said, forked(fork_server, *order, handed=[writer]) as fork:
        os.close(writer)
        text = said.read()
        assert fork.wait() == 0
    return text


def test_a_fork_has_its_arguments_and_descriptors(fork_server: ForkServer) -> None:
    assert read_what(fork_server, write, "hello") == "hello"
    size = 3_000_000  # more than a socket takes at once
    assert read_what(fork_server, write_length, "x" * size) == str(size)


def test_the_pools_stdin_is_the_pools_alone(fork_server: ForkServer) -> None:
    assert read_what(fork_server, say_where_stdin_leads) == os.devnull


@pytest.mark.parametrize(("order", "code"), [((end_with, 7), 7), ((fail,), 1), ((end_with, 0), 0)])
def test_the_parent_learns_a_forks_exit_code(
    fork_server: ForkServer, order: tuple[Any, ...], code: int
) -> None:
    with forked(fork_server, *order) as fork:
        assert fork.wait() == code
        assert fork.wait() == code


def test_a_fork_that_was_killed_has_ended(fork_server: ForkServer) -> None:
    with forked(fork_server, hang) as fork:
        assert not select.select([fork.sentinel], [], [], 0)[0]
        fork.kill()
        assert select.select([fork.sentinel], [], [], PATIENCE_S)[0]
        fork.kill()  # nobody
        assert fork.wait() == -signal.SIGKILL


def test_without_a_fork_server_there_is_no_pool(fork_server: ForkServer) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as said, forked(fork_server, be_a_child, handed=[writer]) as fork:
        os.close(writer)
        assert said.read(1) == "1"
        os.kill(parent(fork.pid), signal.SIGKILL)
        assert said.read() == ""  # the fork has ended, too
        assert fork.wait() == LOST
        with pytest.raises(SystemExit):
            fork_server.fork(hang)
