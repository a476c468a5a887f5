"""Which runs under suspicion a child tries beside which; executors do nothing here but wait."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.worker_store import open_worker_store
from tests.support.turns import Ground, names
from worker import claimer as claiming
from worker.claimer import MAX_SUSPECTS, Claimer
from worker.loads import GONE, Loads


class Trial:
    """In an executor's place: under suspicion until it is acquitted."""

    def __init__(self, claim: ClaimedRun, _tools: Any) -> None:
        self.claim = claim
        self.is_suspect = claim.crash_count > 0
        self.over = asyncio.Event()

    async def execute(self) -> None:
        await self.over.wait()


class Suspects:
    """A child for runs under suspicion, and the runs."""

    def __init__(self, ground: Ground, claimer: Claimer, group: asyncio.TaskGroup) -> None:
        self.ground = ground
        self.claimer = claimer
        self.group = group

    async def add(self, crash_count: int, *run_ids: str, priority: int = 0) -> None:
        """Start runs that were in flight in so many dead children."""
        await self.ground.start(*run_ids, priority=priority)
        await self.ground.sql.execute(
            "UPDATE smithers.runs SET crash_count = $1 WHERE run_id = ANY ($2)",
            crash_count,
            list(run_ids),
        )

    @property
    def trials(self) -> Iterable[Any]:
        return [executor for executor, _ in self.claimer._executors.values()]

    async def look(self) -> set[str]:
        """Let it claim what it may; return what it holds under suspicion."""
        while await self.claimer._claim_apart(self.group):
            pass
        return {trial.claim.run_id for trial in self.trials if trial.is_suspect}

    def acquit(self, *run_ids: str) -> None:
        for trial in self.trials:
            if trial.claim.run_id in run_ids:
                trial.is_suspect = False


async def test_suspects_of_one_death_are_tried_together_and_those_of_two_alone(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "Executor", Trial)
    async with Ground(database) as ground:
        worker_id = await ground.add_worker()
        async with open_worker_store(database, worker_id) as store:
            tools: Any = SimpleNamespace(store=store, variables_of=lambda _claim: None)
            loads = Loads([GONE], [0.0])
            claimer = Claimer(
                tools,
                queues=("default",),
                limit=256,
                kind=ClaimKind.SUSPECT,
                loads=loads,
                slot=0,
                on_broken=pytest.fail,
            )
            async with asyncio.TaskGroup() as group:
                child = Suspects(ground, claimer, group)
                await assert_apart(child)
                for trial in child.trials:
                    trial.over.set()


async def assert_apart(child: Suspects) -> None:
    await child.add(2, "twice-first", priority=1)
    await child.add(2, "twice-last", priority=-1)
    await child.add(1, *names(MAX_SUSPECTS + 3, "once"))
    assert await child.look() == {"twice-first"}
    assert await child.look() == {"twice-first"}
    child.acquit("twice-first")
    tried = await child.look()
    assert len(tried) == MAX_SUSPECTS
    child.acquit(tried.pop(), tried.pop())
    further = await child.look()
    assert tried < further
    assert len(further) == MAX_SUSPECTS
    child.acquit(*further)
    (last,) = await child.look()
    assert last.startswith("once")
    child.acquit(last)
    assert await child.look() == {"twice-last"}
    await child.add(1, "once-more")
    assert await child.look() == {"twice-last"}
    child.acquit("twice-last")
    assert await child.look() == {"once-more"}
