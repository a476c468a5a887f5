"""When a run's commits are told of: each of a slow run, some of a fast one, and what was not told soon afterwards."""

from math import inf

from worker.pace import FAST_S, PAUSE_S, Pace


class Clock:
    """A loop's clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def time(self) -> float:
        return self.now_s


def commit(pace: Pace) -> bool:
    """Commit as an executor does; say whether it was told."""
    is_told = pace.may_tell()
    if is_told:
        pace.tell()
    else:
        pace.owe()
    return is_told


def commits(pace: Pace, clock: Clock, count: int, apart_s: float) -> list[bool]:
    told = []
    for _ in range(count):
        told.append(commit(pace))
        clock.now_s += apart_s
    return told


def test_a_fast_run_is_told_of_at_first_and_then_once_a_pause():
    clock = Clock()
    assert commits(Pace(clock), clock, 100, PAUSE_S / 4 * 1.001) == [True, False, False, False] * 25


def test_a_run_that_is_not_fast_is_told_of_with_each_commit():
    clock = Clock()
    assert commits(Pace(clock), clock, 20, FAST_S * 1.001) == [True] * 20


def test_what_was_not_told_is_due_a_pause_after_the_first_of_it():
    clock = Clock()
    pace = Pace(clock)
    assert commit(pace)
    assert pace.owed_at == inf
    clock.now_s += 0.001
    assert not commit(pace)
    owed_at = pace.owed_at
    assert owed_at == clock.now_s + PAUSE_S
    clock.now_s += 0.001
    assert not commit(pace)
    assert pace.owed_at == owed_at
    pace.tell()
    assert pace.owed_at == inf
    assert not commit(pace)
