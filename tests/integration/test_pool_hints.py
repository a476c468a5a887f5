"""A pool hears once for all of its children, and what is for a child reaches it: no child looks by itself but in one test."""

import asyncio
import os
import signal

from smithers.store.claims import ClaimKind
from smithers.store.hints import Channel, Hints
from smithers.store.worker_store import open_worker_store
from tests.support.turns import Ground
from tests.support.world import World, until
from worker.claimer import MAX_CLAIM

ONE = """
    from smithers import Task, workflow

    @workflow
    def one(ctx):
        return Task("a", 1)
"""
GATE = """
    import asyncio
    from pathlib import Path

    async def held():
        while not Path("go").exists():
            await asyncio.sleep(0.02)

    def go():
        Path("go").touch()
"""
HELD = """
    from gate import held
    from smithers import Task, workflow

    @workflow
    def simple(ctx):
        return Task("held", held)
"""
ASKED = """
    from gate import go, held
    from smithers import Approval, Parallel, Sequence, Task, workflow

    @workflow
    def asked(ctx):
        answered = Sequence(Approval("ask", title="?"), Task("go", go))
        return Parallel(Task("held", held), answered)
"""


async def start_hinted(world: World, workers: int = 2) -> None:
    """Start a pool whose children only hints move, and wait until it listens and they have nothing to do."""
    world.start_pool(workers=workers, module="tests.support.hinted")

    async def is_quiet() -> bool:
        rows = await world.sql.fetch(
            """SELECT application_name AS name, query FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'idle'"""
        )
        asleep = [
            row for row in rows if row["name"] == "smithers-claim" and "due_at" in row["query"]
        ]
        ears = [row for row in rows if row["name"] == "smithers-pool-hints"]
        return len(asleep) == workers and [row["query"] for row in ears] == [
            'LISTEN "smithers_news"'
        ]

    await until(is_quiet, "the pool listens and its children sleep")


async def put_off(world: World) -> None:
    """Have no run be due."""
    await world.sql.execute("UPDATE smithers.runs SET due_at = due_at + interval '1 day'")


async def make_due(world: World) -> None:
    """Have all runs be due, and tell nobody."""
    await world.sql.execute("UPDATE smithers.runs SET due_at = smithers.clock()")


async def children(world: World) -> list[int]:
    rows = await world.sql.fetch("SELECT pid FROM smithers.workers WHERE dead_at IS NULL")
    return [row["pid"] for row in rows]


async def test_one_session_listens_for_a_pool_and_all_its_children(world: World) -> None:
    world.write("one.py", ONE)
    await start_hinted(world, workers=3)
    await world.start("r", "one.py")
    await world.until_status("r", "finished")
    names = await world.sql.fetch(
        """SELECT application_name AS name FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'smithers-%-hints'"""
    )
    assert sorted(row["name"] for row in names) == ["smithers-pool-hints", "smithers-test-hints"]


async def test_a_start_is_claimed_by_its_hint(world: World) -> None:
    world.write("one.py", ONE)
    await start_hinted(world)
    for number in range(5):
        await world.start(f"r{number}", "one.py")
        await world.until_status(f"r{number}", "finished")


async def test_news_reach_the_owner_of_a_run(world: World) -> None:
    world.write("gate.py", GATE)
    world.write("asked.py", ASKED)
    await start_hinted(world)
    await world.start("r", "asked.py")
    await world.until_event("r", "ApprovalRequested ask")
    assert await world.decide("r", "ask", is_approved=True) == "decided"
    await world.until_status("r", "finished")


async def test_a_child_that_is_stopped_holds_up_no_hint_to_its_sibling(world: World) -> None:
    world.write("one.py", ONE)
    await start_hinted(world)
    for pid in await children(world):  # one of them is the one that the hint would be for
        os.kill(pid, signal.SIGSTOP)
        await world.start(f"r{pid}", "one.py")
        await world.until_status(f"r{pid}", "finished")
        os.kill(pid, signal.SIGCONT)


async def test_a_child_with_more_than_its_share_has_its_sibling_go_on(world: World) -> None:
    world.write("gate.py", GATE)
    world.write("held.py", HELD)
    run_ids = [f"r{number}" for number in range(4 * MAX_CLAIM)]
    for run_id in run_ids:
        await world.start(run_id, "held.py")
    await put_off(world)
    await start_hinted(world)
    await make_due(world)
    world.wake()

    async def are_shared() -> bool:
        owned = await world.sql.fetch(
            "SELECT count(*) AS count FROM smithers.runs WHERE owner_id IS NOT NULL GROUP BY owner_id"
        )
        return len(owned) == 2 and sum(row["count"] for row in owned) == len(run_ids)

    await until(are_shared, "both children hold all runs between them")
    (world.root / "go").touch()
    for run_id in run_ids:
        await world.until_status(run_id, "finished")


async def test_a_connection_that_was_lost_comes_back_and_the_children_look(world: World) -> None:
    world.write("one.py", ONE)
    await world.start("r", "one.py")
    await put_off(world)
    await start_hinted(world)
    await make_due(world)
    async with Ground(world.dsn) as ground:
        await ground.cut("smithers-pool-hints")
    await world.until_status("r", "finished")


async def test_children_whose_parent_stands_still_look_by_themselves(world: World) -> None:
    world.write("one.py", ONE)
    pool = world.start_pool(workers=2)
    await world.start("before", "one.py")
    await world.until_status("before", "finished")
    pool.send_signal(signal.SIGSTOP)
    await world.start("r", "one.py")
    await world.until_status("r", "finished")


async def test_a_child_tells_whoever_listens_what_it_gives_back(database: str) -> None:
    heard: asyncio.Queue[frozenset[str] | None] = asyncio.Queue()
    async with (
        Ground(database) as ground,
        Hints(database, role="ear").listen({Channel.DUE: heard.put_nowait}),
        open_worker_store(database, await ground.add_worker()) as store,
    ):
        assert await heard.get() is None
        await ground.start("r")
        (claim,) = await store.claim("default", 1, ClaimKind.MANY)
        await store.release([claim.run_id])
        assert await heard.get() == frozenset({"default"})
