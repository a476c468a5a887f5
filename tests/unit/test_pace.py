"""Which commits carry a hint: each of a slow run, some of a fast one."""

import itertools

from worker.pace import FAST_S, PAUSE_S, Pace


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def commits(count: int, *apart_s: float) -> list[bool]:
    """Claim a run and begin commits so far apart, over and over; say which are told."""
    clock = Clock()
    pace = Pace(clock)
    told = []
    for pause_s in itertools.islice(itertools.cycle(apart_s), count):
        clock.now_s += pause_s
        told.append(pace.may_tell())
    return told


def test_a_fast_run_is_told_of_once_a_pause_from_its_claim_on():
    assert commits(100, PAUSE_S / 5 * 1.001) == [False, False, False, False, True] * 20


def test_a_run_that_is_not_fast_is_told_of_with_each_commit():
    assert commits(20, FAST_S * 1.001) == [True] * 20


def test_a_run_of_short_and_long_nodes_is_told_of_after_each_long_one():
    assert commits(20, FAST_S / 2, 2 * FAST_S) == [False, True] * 10
