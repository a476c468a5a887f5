"""When a run's commits are told of: the first ones each, then some, and what was not told soon afterwards."""

from math import inf

from worker.pace import AT_ONCE, PAUSE_S, Pace


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
        clock.now_s += apart_s
        told.append(commit(pace))
    return told


def fast_run() -> tuple[Pace, Clock]:
    """A run that has used up what is told at once."""
    clock = Clock()
    pace = Pace(clock)
    assert commits(pace, clock, AT_ONCE, 0.0) == [True] * AT_ONCE
    return pace, clock


def test_after_its_first_commits_a_fast_run_is_told_of_once_a_pause():
    pace, clock = fast_run()
    told = commits(pace, clock, 100, PAUSE_S / 4 * 1.001)
    assert told == [False, False, False, True] * 25


def test_a_slow_run_is_told_of_with_each_commit():
    pace, clock = fast_run()
    assert commits(pace, clock, 20, PAUSE_S * 1.001) == [True] * 20


def test_what_was_not_told_is_due_a_pause_after_the_first_of_it():
    pace, clock = fast_run()
    assert pace.owed_at == inf
    commits(pace, clock, 1, PAUSE_S / 4)
    owed_at = pace.owed_at
    assert owed_at == clock.now_s + PAUSE_S
    commits(pace, clock, 1, PAUSE_S / 4)
    assert pace.owed_at == owed_at
    pace.tell()
    assert pace.owed_at == inf
    assert not commit(pace)
