"""Who goes for what has become due: the child that holds the fewest runs, of those that live and claim."""

import time

import pytest

from worker.loads import APART, FRESH_S, GONE, Loads


def loads(*counts: int, stale: tuple[int, ...] = ()) -> Loads:
    now = time.monotonic()
    fresh = now + 3_600  # however long a test takes
    beats = [now - 2 * FRESH_S if slot in stale else fresh for slot in range(len(counts))]
    return Loads(list(counts), beats)


@pytest.mark.parametrize(
    ("counts", "stale", "goes"),
    [
        ((0,), (), 0),
        ((0, 0, 0), (), 0),
        ((2, 1, 1), (), 1),
        ((GONE, 5, 7), (), 1),
        ((APART, 5, 7), (), 1),
        ((0, 3), (0,), 1),
    ],
    ids=["alone", "equals", "fewest", "one claims no more", "one is apart", "one is silent"],
)
def test_exactly_one_of_those_that_claim_goes(counts, stale, goes):
    given = loads(*counts, stale=stale)
    claiming = [slot for slot, count in enumerate(counts) if count >= 0 and slot not in stale]
    assert [slot for slot in claiming if given.is_next(slot)] == [goes]


def test_what_a_child_tells_is_seen_by_the_others():
    shared = loads(0, 0)
    shared.tell(0, 4)
    assert shared.is_next(1)
    shared.tell(1, GONE)
    assert shared.is_next(0)
