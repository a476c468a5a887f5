"""Which commits carry a hint: each of a slow run, some of a fast one."""

from worker.pace import FAST_S, PAUSE_S, Pace


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def commits(count: int, *, apart_s: float, took_s: float = 0.0) -> list[bool]:
    """Commit as an executor does, so far apart, each taking so long; say which were told."""
    clock = Clock()
    pace = Pace(clock)
    told = []
    for _ in range(count):
        is_told = pace.may_tell()
        clock.now_s += took_s
        pace.commit(is_told=is_told)
        told.append(is_told)
        clock.now_s += apart_s
    return told


def test_a_fast_run_is_told_of_at_first_and_then_once_a_pause():
    assert commits(100, apart_s=PAUSE_S / 4 * 1.001) == [True, False, False, False] * 25


def test_a_run_that_is_not_fast_is_told_of_with_each_commit():
    assert commits(20, apart_s=FAST_S * 1.001) == [True] * 20


def test_slow_commits_of_a_fast_run_are_told_of_alternately():
    assert commits(20, apart_s=0.0002, took_s=2 * PAUSE_S) == [True, False] * 10


def test_a_run_of_short_and_long_nodes_is_told_of_after_each_long_one():
    clock = Clock()
    pace = Pace(clock)
    told = []
    for apart_s in [0.001, 0.006] * 10:
        told.append(pace.may_tell())
        pace.commit(is_told=told[-1])
        clock.now_s += apart_s
    assert told == [True, False] * 10
