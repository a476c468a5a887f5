"""What a child's claimer holds, from a claim to the end of whoever had the run; executors do nothing here but wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from smithers.ids import RunId
from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.worker_store import WorkerStore, open_worker_store
from tests.support.turns import Ground
from worker import claimer as claiming
from worker.claimer import MAX_FRUITLESS_S, Claimer
from worker.loads import Loads

RUN = RunId("r")


class Held:
    """In an executor's place: holds its run until it is let go."""

    last_seq = 0
    attempt_count = 0
    is_suspect = False

    def __init__(self, claim: ClaimedRun, _tools: Any) -> None:
        self.claim = claim
        self.begun = asyncio.Event()
        self.heard = asyncio.Event()
        self.over = asyncio.Event()

    async def execute(self) -> None:
        self.begun.set()
        await self.over.wait()

    def hear_news(self) -> None:
        self.heard.set()


class Site:
    """A claimer at work, and what it holds."""

    def __init__(self, claimer: Claimer, store: WorkerStore, ground: Ground) -> None:
        self.claimer = claimer
        self.store = store
        self.ground = ground
        self.running = asyncio.create_task(claimer.run())

    def held(self) -> list[Held]:
        """The executors that the claimer has, each of them one of ours."""
        executors: list[Any] = [executor for executor, *_ in self.claimer._executors.values()]
        return executors

    async def until_held(self, run_id: str, after: Held | None = None) -> Held:
        """Wait until the claimer has claimed a run, anew if it was `after`."""
        async with asyncio.timeout(60):
            while not self.running.done():
                held: Any = self.claimer._executors.get(RunId(run_id), (None,))[0]
                if held is not None and held is not after:
                    return held
                await asyncio.sleep(0.01)
        raise AssertionError(self.running)


@asynccontextmanager
async def claiming_from(
    database: str, limit: int = 8, queues: tuple[str, ...] = ("default",)
) -> AsyncIterator[Site]:
    async with Ground(database) as ground:
        worker_id = await ground.add_worker()
        async with open_worker_store(database, worker_id) as store:
            gauge = SimpleNamespace(set=lambda _count: None)
            tools: Any = SimpleNamespace(
                store=store,
                meters=SimpleNamespace(active=gauge),
                variables_of=lambda _claim: None,
            )
            claimer = Claimer(
                tools,
                queues=queues,
                limit=limit,
                kind=ClaimKind.MANY,
                loads=Loads([0], [0.0]),
                slot=0,
                on_broken=pytest.fail,
            )
            yield Site(claimer, store, ground)


@pytest.fixture(autouse=True)
def _executors_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "Executor", Held)
    monkeypatch.setattr(claiming, "NEWS_EVERY_S", 0.05)


async def test_a_claim_that_overtakes_the_answer_to_its_park_waits_for_it(database: str) -> None:
    async with claiming_from(database) as site:
        await site.ground.start(RUN)
        first = await site.until_held(RUN)
        await site.store.release([RUN])  # committed, and whoever had the run does not know it yet
        site.claimer.hear_due()
        second = await site.until_held(RUN, after=first)
        await site.ground.start("next")
        site.claimer.hear_due()
        following = await site.until_held("next")
        assert not second.begun.is_set()
        first.over.set()
        async with asyncio.timeout(60):
            await second.begun.wait()
        assert site.claimer.active_count == 2
        for held in (second, following):
            held.over.set()
        site.claimer.drain()
        await site.running
        assert site.claimer.active_count == 0


async def test_all_of_a_run_that_was_claimed_twice_is_stopped(database: str) -> None:
    async with claiming_from(database) as site:
        await site.ground.start(RUN)
        first = await site.until_held(RUN)
        await site.store.release([RUN])
        site.claimer.hear_due()
        await site.until_held(RUN, after=first)
        site.claimer.drain()
        await site.claimer.release_all()
        async with asyncio.timeout(60):
            await site.running
        owner = await site.ground.sql.fetchval("SELECT owner_id FROM smithers.runs")
        assert owner is None


async def test_nothing_is_kept_of_a_run_that_was_lost_before_its_first_commit(
    database: str,
) -> None:
    async with claiming_from(database) as site:
        await site.ground.start(RUN)
        held = await site.until_held(RUN)
        assert site.store._uncommitted == {RUN: held.claim.epoch}
        await site.ground.sql.execute("UPDATE smithers.runs SET owner_id = NULL, epoch = epoch + 1")
        held.over.set()  # as after LeaseLost
        site.claimer.drain()
        await site.running
        assert site.store._uncommitted == {}


async def test_a_child_that_claims_no_more_still_looks_for_news(database: str) -> None:
    async with claiming_from(database) as site:
        await site.ground.start(RUN)
        held = await site.until_held(RUN)
        site.claimer.drain()
        await site.ground.sql.execute(
            "UPDATE smithers.runs SET cancel_requested_at = smithers.clock()"
        )
        async with asyncio.timeout(60):
            for _ in range(3):  # not only a look that was under way
                held.heard.clear()
                await held.heard.wait()
        held.over.set()
        async with asyncio.timeout(60):
            await site.running


async def test_what_a_run_has_committed_while_news_were_asked_for_is_none(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with claiming_from(database) as site:
        committing: list[Held] = []
        find_news = site.store.find_news

        async def answer_late(cursors: dict[RunId, int]) -> dict[RunId, int | None]:
            found = await find_news(cursors)
            for held in committing:
                held.last_seq = 1
            return found

        monkeypatch.setattr(site.store, "find_news", answer_late)
        for run_id in ("busy", "told"):
            await site.ground.start(run_id)
        busy, told = [await site.until_held(run_id) for run_id in ("busy", "told")]
        committing.append(busy)
        await site.ground.sql.execute("UPDATE smithers.runs SET last_seq = 1")
        async with asyncio.timeout(60):
            await told.heard.wait()
        assert not busy.heard.is_set()
        for held in (busy, told):
            held.over.set()
        site.claimer.drain()
        await site.running


async def test_a_queue_that_always_has_something_leaves_room_for_the_others(database: str) -> None:
    async with claiming_from(database, limit=1, queues=("busy", "quiet")) as site:
        await site.ground.start(*(f"busy-{number}" for number in range(4)), queue="busy")
        await site.ground.start("quiet", queue="quiet")
        site.claimer.hear_due()
        order: list[str] = []
        async with asyncio.timeout(60):
            while len(order) < 5:
                for executor in site.held():
                    if executor.claim.run_id not in order:
                        order.append(executor.claim.run_id)
                        executor.over.set()
                await asyncio.sleep(0.01)
        assert "quiet" in order[:2]
        site.claimer.drain()
        await site.running


async def test_a_due_run_that_cannot_be_claimed_is_tried_less_and_less_often(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with claiming_from(database) as site:
        tried_at: list[float] = []
        claim = site.store.claim

        async def note(*given: Any) -> list[ClaimedRun]:
            tried_at.append(asyncio.get_running_loop().time())
            return await claim(*given)

        monkeypatch.setattr(site.store, "claim", note)
        await site.ground.sql.execute("UPDATE smithers.workers SET dead_at = smithers.clock()")
        await site.ground.start(RUN)
        site.claimer.hear_due()
        async with asyncio.timeout(60):
            while len(tried_at) < 14:
                await asyncio.sleep(0.01)
        await site.ground.sql.execute("UPDATE smithers.workers SET dead_at = NULL")
        pauses = [after - before for before, after in pairwise(tried_at)]
        assert min(pauses[-3:]) >= MAX_FRUITLESS_S
        held = await site.until_held(RUN)
        held.over.set()
        site.claimer.drain()
        await site.running


async def test_a_child_takes_no_more_runs_than_it_may(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with claiming_from(database, limit=3) as site:
        has_looked, look = asyncio.Event(), site.claimer._claim

        async def note(*given: Any) -> bool:
            is_more = await look(*given)
            has_looked.set()
            return is_more

        monkeypatch.setattr(site.claimer, "_claim", note)
        names = [RunId(f"r{number}") for number in range(5)]
        await site.ground.start(*names)
        site.claimer.hear_due()
        async with asyncio.timeout(60):
            while site.claimer.active_count < 3:
                await asyncio.sleep(0.01)
            for _ in range(
                3
            ):  # not only a look that was under way; at its end it holds all that it has claimed
                has_looked.clear()
                site.claimer.hear_due()
                await has_looked.wait()
        assert site.claimer.active_count == 3
        owned = "SELECT count(*) FROM smithers.runs WHERE owner_id IS NOT NULL"
        assert await site.ground.sql.fetchval(owned) == 3
        held = site.held()
        site.claimer.drain()
        for executor in held:
            executor.over.set()
        async with asyncio.timeout(60):
            await site.running
