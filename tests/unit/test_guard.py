"""Which silence a pool kills its children for; its clock is moved by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from smithers.store.claims import ClaimKind
from worker.children import LOOK_EVERY_S, SILENT_CHILD_S, START_GRACE_S, Children
from worker.forked import Child
from worker.settings import PoolSettings


class Guarded:
    """A pool's children, of which one is there, and nothing else."""

    def __init__(self) -> None:
        settings = PoolSettings(dsn="", direct_dsn="", root_dir="/", worker_count=1)
        nothing: Any = None
        self.children = Children(
            settings,
            store=nothing,
            fork_server=nothing,
            sheet=nothing,
            meters=nothing,
            on_left=pytest.fail,
        )
        process: Any = SimpleNamespace(kill=lambda: None)
        self.child = Child(
            worker_id=nothing,
            slot=0,
            process=process,
            orders=nothing,
            outlet=nothing,
            started_at=0.0,
            kind=ClaimKind.MANY,
        )
        self.children._living[0] = self.child
        self.now = 1.0

    def beat(self) -> None:
        self.children._loads.beats[0] = self.now

    def look(self, after_s: float = LOOK_EVERY_S) -> None:
        self.now += after_s
        self.children.look(self.now)

    def look_for(self, wait_s: float) -> None:
        """Look as often as a pool does."""
        for _ in range(round(wait_s / LOOK_EVERY_S)):
            self.look()


@pytest.fixture
async def guarded() -> Guarded:
    return Guarded()


@pytest.mark.parametrize(("has_begun", "limit_s"), [(True, SILENT_CHILD_S), (False, START_GRACE_S)])
def test_a_child_that_is_silent_for_too_long_is_killed(
    guarded: Guarded, has_begun: bool, limit_s: float
) -> None:
    if has_begun:
        guarded.beat()
    guarded.look_for(limit_s - 2)
    assert guarded.child.killed_for is None
    guarded.look_for(4)
    assert guarded.child.killed_for == "silent"


def test_a_child_is_not_killed_for_a_silence_in_which_its_pool_stood_still(
    guarded: Guarded,
) -> None:
    guarded.beat()
    guarded.look()
    guarded.look(after_s=SILENT_CHILD_S + 5)
    guarded.look_for(SILENT_CHILD_S - 2)
    assert guarded.child.killed_for is None
    guarded.beat()
    guarded.look_for(SILENT_CHILD_S - 2)
    assert guarded.child.killed_for is None


def test_a_child_that_stays_silent_after_its_pool_stood_still_is_killed(guarded: Guarded) -> None:
    guarded.beat()
    guarded.look()
    guarded.look(after_s=SILENT_CHILD_S + 5)
    guarded.look_for(SILENT_CHILD_S + 2)
    assert guarded.child.killed_for == "silent"
