"""When a worker of another pool counts as dead: what lasts is believed, what may pass is not."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from smithers.ids import WorkerId
from smithers.store.owners import LivingWorker, ProcessIdentity
from worker import processes
from worker.death_watch import (
    DISCONNECTED_S,
    LATE_S,
    OUTAGE_GRACE_S,
    SERVER_GRACE_S,
    SILENT_LOOKS,
    DeathWatch,
)

ELSEWHERE = ProcessIdentity(boot_id="other", pid_namespace="n", pid=7, process_start="1")
OWN_POOL = uuid4()
WORKER = LivingWorker(
    worker_id=WorkerId(uuid4()),
    pool_id=uuid4(),
    process=ELSEWHERE,
    heartbeat_at=datetime(2026, 11, 23, tzinfo=UTC),
    silent_s=0.5,
    server_up_s=1_000,
    is_connected=True,
)
SILENT = replace(WORKER, silent_s=31)
DISCONNECTED = replace(WORKER, is_connected=False)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> DeathWatch:
    return DeathWatch(OWN_POOL, lambda: True, clock)


def test_silence_is_believed_when_it_lasts(watch: DeathWatch) -> None:
    seen = [watch.look([SILENT]) for _ in range(SILENT_LOOKS)]
    assert seen == [[]] * (SILENT_LOOKS - 1) + [[(SILENT, "silent")]]


def test_a_heartbeat_between_two_looks_begins_the_silence_anew(watch: DeathWatch) -> None:
    for one in [SILENT] * (SILENT_LOOKS - 1) + [WORKER] + [SILENT] * (SILENT_LOOKS - 1):
        assert watch.look([one]) == []


def test_a_lost_session_counts_when_it_does_not_come_back(watch: DeathWatch, clock: Clock) -> None:
    for one in (DISCONNECTED, WORKER, DISCONNECTED):
        assert watch.look([one]) == []
        clock.now += DISCONNECTED_S
    assert watch.look([DISCONNECTED]) == []
    clock.now += 0.1
    assert watch.look([DISCONNECTED]) == [(DISCONNECTED, "disconnected")]


def test_a_lost_session_does_not_count_while_heartbeats_come(
    watch: DeathWatch, clock: Clock
) -> None:
    for number in range(20):  # only the way to the direct address is closed
        beaten_at = WORKER.heartbeat_at + timedelta(seconds=number)
        assert watch.look([replace(DISCONNECTED, heartbeat_at=beaten_at)]) == []
        clock.now += DISCONNECTED_S


def test_who_has_no_session_judges_nobody_by_theirs(clock: Clock) -> None:
    has_session = False
    watch = DeathWatch(OWN_POOL, lambda: has_session, clock)
    for _ in range(10):
        assert watch.look([DISCONNECTED]) == []
        clock.now += DISCONNECTED_S
    has_session = True
    assert watch.look([DISCONNECTED]) == []  # the time without one does not count
    clock.now += DISCONNECTED_S + 0.1
    assert watch.look([DISCONNECTED]) == [(DISCONNECTED, "disconnected")]


def test_a_clock_that_was_set_back_makes_no_heartbeat_new(watch: DeathWatch, clock: Clock) -> None:
    ahead = replace(DISCONNECTED, silent_s=-600)
    assert watch.look([ahead]) == []
    clock.now += DISCONNECTED_S + 0.1
    assert watch.look([ahead]) == [(ahead, "disconnected")]


@pytest.mark.parametrize(
    "excused",
    [
        replace(DISCONNECTED, server_up_s=SERVER_GRACE_S - 1),
        replace(DISCONNECTED, pool_id=OWN_POOL),
    ],
    ids=["Postgres has only just come", "it is of the same pool"],
)
def test_a_lost_session_may_be_excused(
    watch: DeathWatch, clock: Clock, excused: LivingWorker
) -> None:
    for _ in range(5):
        assert watch.look([excused]) == []
        clock.now += DISCONNECTED_S


def miss_a_look(watch: DeathWatch, _clock: Clock) -> None:
    watch.miss()


def be_late(_watch: DeathWatch, clock: Clock) -> None:
    clock.now += LATE_S + 0.1


@pytest.mark.parametrize("break_off", [miss_a_look, be_late])
@pytest.mark.parametrize("absent", [DISCONNECTED, SILENT], ids=["disconnected", "silent"])
def test_after_an_outage_of_the_database_others_are_given_time_to_come_back(
    watch: DeathWatch,
    clock: Clock,
    absent: LivingWorker,
    break_off: Callable[[DeathWatch, Clock], None],
) -> None:
    watch.look([WORKER])
    break_off(watch, clock)
    for _ in range(int(OUTAGE_GRACE_S)):
        assert watch.look([absent]) == []
        clock.now += 1
    assert watch.look([WORKER]) == []


def test_who_does_not_come_back_after_an_outage_is_dead(watch: DeathWatch, clock: Clock) -> None:
    watch.miss()
    found: list[Any] = []
    while not found:
        found = watch.look([DISCONNECTED, replace(SILENT, worker_id=WorkerId(uuid4()))])
        clock.now += 1
    assert OUTAGE_GRACE_S + DISCONNECTED_S < clock.now - 100 <= OUTAGE_GRACE_S + SILENT_LOOKS + 1


def test_an_outage_excuses_no_process_of_this_host_that_is_gone(watch: DeathWatch) -> None:
    itself = processes.identify(1)
    assert itself is not None
    gone = replace(WORKER, process=replace(itself, process_start="before"))
    watch.miss()
    assert watch.look([gone]) == [(gone, "process-gone")]


def test_a_process_of_this_host_that_is_gone_is_dead_at_once(watch: DeathWatch) -> None:
    itself = processes.identify(1)
    assert itself is not None
    assert watch.look([replace(WORKER, process=itself)]) == []
    gone = replace(WORKER, process=replace(itself, process_start="before"))
    assert watch.look([gone]) == [(gone, "process-gone")]
