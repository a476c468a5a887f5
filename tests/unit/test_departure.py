"""When a child that is to go has a limit for what it still has, and what it tells its parent."""

from multiprocessing import Pipe

from worker.child import BROKEN, CUT_SHORT, MAX_LEFT_BEHIND, _Departure
from worker.settings import RETIRES


def test_a_body_left_behind_leaves_the_others_their_time_and_many_do_not() -> None:
    parents_end, orders = Pipe()
    departure = _Departure(orders)
    for _ in range(MAX_LEFT_BEHIND - 1):
        departure.leave_behind("stuck")
    assert departure.has_begun.is_set()
    assert not departure.is_limited.is_set()
    departure.leave_behind("stuck")
    assert departure.is_limited.is_set()
    assert parents_end.recv() == RETIRES
    assert not parents_end.poll()  # once


def test_an_order_to_end_has_a_limit_and_no_successor() -> None:
    parents_end, orders = Pipe()
    departure = _Departure(orders)
    departure.hurry()
    departure.leave_behind("stuck")
    assert departure.has_begun.is_set()
    assert departure.is_limited.is_set()
    assert not parents_end.poll()


def test_a_child_whose_pipe_a_body_has_closed_retires_all_the_same() -> None:
    _, orders = Pipe()
    departure = _Departure(orders)
    orders.close()
    departure.retire("stuck")
    assert departure.has_begun.is_set()


def test_how_a_child_ends_says_what_it_may_leave_and_whether_a_run_is_to_blame() -> None:
    _parents_end, orders = Pipe()
    departure = _Departure(orders)
    departure.give_up("no descriptors")
    assert (departure.exit_code, departure.is_broken) == (0, False)
    departure.leave_behind("stuck")
    assert (departure.exit_code, departure.is_broken) == (CUT_SHORT, False)
    departure.break_down("nobody can move it")
    assert (departure.exit_code, departure.is_broken) == (BROKEN, True)
