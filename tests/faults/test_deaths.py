"""Kill what runs, and see that runs go on by themselves and that no finished node runs again."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from smithers.defaults import HEARTBEAT_LIMIT_S
from tests.support.world import PATIENCE_S, World, kill, until
from worker.claimer import MAX_SUSPECTS
from worker.pool import APART_START_S
from worker.settings import MAX_ISOLATED, MAX_TRYING

SOON_S = HEARTBEAT_LIMIT_S * 2 / 3  # half a second where nothing else runs
STEPS = """
    import asyncio
    from pathlib import Path
    from ledger import mark
    from smithers import Sequence, Task, workflow

    async def step(run_id, number):
        mark(f"{run_id} starts {number}")
        await asyncio.sleep(0.2)
        while Path(f"hold {number}").exists():
            await asyncio.sleep(0.02)
        mark(f"{run_id} ends {number}")
        return number

    @workflow
    def steps(ctx):
        return Sequence(*(Task(f"s{n}", lambda n=n: step(ctx.run_id, n)) for n in range(5)))
"""


def write_steps(world: World) -> None:
    world.write("steps.py", STEPS)


@contextmanager
def holding(world: World, number: int) -> Iterator[None]:
    """Have no run's step of this number end until the block is left."""
    hold = world.root / f"hold {number}"
    hold.touch()
    yield
    hold.unlink()


async def assert_each_ran_once(world: World, run_id: str) -> None:
    """Check that a node that was finished in the history was started once after its last death only."""
    await world.until_status(run_id, "finished")
    lines = await world.lines(run_id)
    for number in range(5):
        finished = [line for line in lines if line.startswith(f"NodeFinished s{number} ")]
        started = [line for line in lines if line.startswith(f"NodeStarted s{number} ")]
        assert len(finished) == 1
        assert world.ledger()[f"{run_id} starts {number}"] <= len(started)
    assert await world.outputs(run_id) == {f"s{number}": number for number in range(5)}


async def test_runs_of_a_killed_child_go_on_long_before_its_lease_ends(world: World) -> None:
    write_steps(world)
    world.start_pool(workers=2)
    with holding(world, 2):
        for number in range(4):
            await world.start(f"r{number}", "steps.py")
        await world.until_ledger("r0 starts 2")
        kill(await world.owner_pid("r0"))
    killed_at = time.monotonic()
    await world.until_event("r0", "RunAutoResumed")
    assert time.monotonic() - killed_at < SOON_S
    for number in range(4):
        await assert_each_ran_once(world, f"r{number}")


async def test_runs_of_a_killed_pool_go_on_with_the_next_one(world: World) -> None:
    write_steps(world)
    pool = world.start_pool(workers=2)
    with holding(world, 2):
        for number in range(4):
            await world.start(f"r{number}", "steps.py")
        await world.until_ledger("r0 starts 2")
        kill(pool.pid)
        pool.wait()
    world.start_pool(workers=2)
    await world.until_event("r0", "RunAutoResumed")
    for number in range(4):
        await assert_each_ran_once(world, f"r{number}")
    crashes = await world.sql.fetchval("SELECT max(crash_count) FROM smithers.runs")
    assert crashes == 0


async def test_another_pool_takes_over_from_a_host_whose_connections_closed(world: World) -> None:
    world.write(
        "gate.py",
        """
        import asyncio
        from ledger import mark
        from smithers import Task, current_task, workflow

        async def gate():
            mark("gate")
            while current_task().attempt == 1:
                await asyncio.sleep(0.01)

        @workflow
        def gated(ctx):
            return Task("before", lambda: mark("before")), Task("gate", gate)
        """,
    )
    lost = world.start_pool(workers=1)
    await world.start("r", "gate.py")
    await world.until_ledger("gate")
    # As if on another host: its pid says nothing here.
    await world.sql.execute("UPDATE smithers.workers SET boot_id = 'elsewhere'")
    rescuer = world.start_pool(workers=1)

    async def is_there() -> bool:
        return (
            await world.sql.fetchval("SELECT count(*) FROM smithers.workers WHERE dead_at IS NULL")
            == 2
        )

    await until(is_there, "both pools live")
    kill(lost.pid)
    await world.until_event("r", "RunAutoResumed")
    assert rescuer.poll() is None
    assert (
        await world.sql.fetchval("SELECT death FROM smithers.workers WHERE boot_id = 'elsewhere'")
        == "disconnected"
    )
    await world.until_status("r", "finished")
    assert world.ledger() == {"before": 1, "gate": 2}


CRASHES = {
    "exit0": "os._exit(0)",
    "exit1": "os._exit(1)",
    "segfault": "ctypes.string_at(0)",
    "killed": "os.kill(os.getpid(), 9)",
}


async def test_poison_stops_after_three_deaths_and_innocents_finish(world: World) -> None:
    write_steps(world)
    for name, crash in CRASHES.items():
        world.write(
            f"{name}.py",
            f"""
            import ctypes, os
            from ledger import mark
            from smithers import Task, workflow

            def poison():
                mark("{name}")
                {crash}

            @workflow
            def poisoned(ctx):
                return Task("fine", 1), Task("poison", poison)
            """,
        )
    world.start_pool(workers=1)
    for number in range(10):
        await world.start(f"r{number}", "steps.py")
    await world.until_ledger("r9 starts 0")
    for name in CRASHES:
        await world.start(name, f"{name}.py")
    for name in CRASHES:
        await world.until_status(name, "failed")
        assert (await world.error(name))["code"] == "WORKER_CRASHED"
        assert (await world.lines(name))[-1] == "RunFailed"
        assert 1 <= world.ledger()[name] <= 3
    for number in range(10):
        await assert_each_ran_once(world, f"r{number}")


async def test_poison_that_kills_the_parent_of_its_child_is_stopped_as_well(world: World) -> None:
    world.write(
        "parricide.py",
        """
        import os, time
        from ledger import mark
        from smithers import Task, workflow

        def poison():
            mark("poison")
            os.kill(os.getppid(), 9)
            time.sleep(60)

        @workflow
        def poisoned(ctx):
            return Task("poison", poison)
        """,
    )
    await world.start("r", "parricide.py")
    for _ in range(3):  # the pool goes with its fork server
        pool = world.start_pool(workers=1)
        await asyncio.to_thread(pool.wait, PATIENCE_S)
    world.start_pool(workers=1)
    await world.until_status("r", "failed")
    assert (await world.error("r"))["code"] == "WORKER_CRASHED"
    assert world.ledger() == {"poison": 3}


async def test_poison_alone_is_claimed_three_times_and_never_again(world: World) -> None:
    world.write(
        "poison.py",
        """
        import os
        from ledger import mark
        from smithers import Task, workflow

        def poison():
            mark("poison")
            os._exit(0)

        @workflow
        def poisoned(ctx):
            return Task("poison", poison)
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "poison.py")
    await world.until_status("r", "failed")
    assert world.ledger()["poison"] == 3
    assert (await world.lines("r"))[-2:] == ["NodeFailed poison 3", "RunFailed"]
    assert await count_writers(world, "r") == 3 + 1  # each claim, and the last burial
    await world.until_logged("run_failed")
    said = world.log("child_ended", "worker_buried", "run_failed")
    assert [line["event"] for line in said] == [*["child_ended", "worker_buried"] * 3, "run_failed"]
    ends, burials, failure = said[:-1:2], said[1::2], said[-1]
    assert [line["worker_id"] for line in ends] == [line["worker_id"] for line in burials]
    assert [line["run_ids"] for line in burials] == [["r"], ["r"], []]
    assert (failure["run_id"], failure["code"]) == ("r", "WORKER_CRASHED")
    assert failure["level"] == "error"


GATED = """
    import asyncio
    from ledger import mark
    from pathlib import Path
    from smithers import Task, current_task, workflow

    async def wait():
        mark("starts")
        while current_task().attempt == 1 or not Path("GATE").exists():
            await asyncio.sleep(0.05)

    @workflow
    def gated(ctx):
        return Task("t", wait)
"""


async def start_in_flight(world: World, count: int) -> list[str]:
    """Start runs whose node waits for its child's death and a file; return when one child has all of them in flight."""
    world.write("gated.py", GATED.replace("GATE", str(world.root / "open")))
    world.start_pool(workers=1)
    run_ids = [f"r{number}" for number in range(count)]
    for run_id in run_ids:
        await world.start(run_id, "gated.py")
    await world.until_ledger("starts", count)
    return run_ids


@asynccontextmanager
async def away(world: World, postgres_server: str) -> AsyncIterator[None]:
    """Keep everybody out of the world's database until the block is left."""
    name = await world.sql.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(postgres_server)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    yield
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await admin.close()
    await world.sql.close()
    world.sql = await asyncpg.connect(world.dsn)


async def test_a_pool_whose_database_is_away_tells_of_a_death_at_once(
    world: World, postgres_server: str
) -> None:
    (held,) = await start_in_flight(world, 1)
    pid = await world.owner_pid(held)
    async with away(world, postgres_server):
        kill(pid)
        await world.until_logged("child_ended")
        await world.until_logged("bury_failed")
        assert world.log("child_ended")[0]["exit_code"] == -signal.SIGKILL
        assert world.log("worker_buried") == []
    await world.until_logged("worker_buried")
    (burial,) = world.log("worker_buried")
    assert burial["run_ids"] == [held]


async def test_a_pool_that_starts_while_its_database_is_away_waits_for_it(
    world: World, postgres_server: str
) -> None:
    write_steps(world)
    await world.start("r", "steps.py")
    async with away(world, postgres_server):
        pool = world.start_pool(workers=1)
        await world.until_logged("watch_failed")
        assert pool.poll() is None
        assert world.log("child_started") == []
    await world.until_status("r", "finished")
    assert len(world.log("watch_failed")) == 1


async def test_many_runs_of_a_killed_child_go_on_together(world: World) -> None:
    run_ids = await start_in_flight(world, 40)
    killed_at = time.time()
    kill(await world.owner_pid("r0"))
    for run_id in run_ids:
        await world.until_event(run_id, "RunAutoResumed")
        (resumed,) = (
            event for event in await world.events(run_id) if event["type"] == "RunAutoResumed"
        )
        assert resumed["timestampMs"] / 1000 - killed_at < SOON_S
    (world.root / "open").touch()
    for run_id in run_ids:
        await world.until_status(run_id, "finished")
        assert (await world.lines(run_id)).count("NodeFinished t 2") == 1


ISOLATED = """
    import asyncio
    from ledger import mark
    from pathlib import Path
    from smithers import Task, workflow

    async def wait():
        mark("isolated")
        while not Path("GATE").exists():
            await asyncio.sleep(0.05)

    @workflow(isolation="process")
    def isolated(ctx):
        return Task("t", wait)
"""


async def start_isolated(world: World, count: int, gate: str) -> None:
    """Start runs that each have a child to themselves, and wait there for a file; return when all of them do."""
    world.write("isolated.py", ISOLATED.replace("GATE", str(world.root / gate)))
    for number in range(count):
        await world.start(f"isolated{number}", "isolated.py", is_solo=True)
    await world.until_ledger("isolated", count)


async def test_an_isolated_run_does_not_wait_until_the_one_before_has_been_there_for_long(
    world: World,
) -> None:
    world.start_pool(workers=1)
    await start_isolated(world, 1, gate="isolated may end")
    before_at = time.monotonic()
    await world.start("second", "isolated.py", is_solo=True)
    await world.until_ledger("isolated", 2)
    assert time.monotonic() - before_at < APART_START_S / 2


async def test_isolated_runs_do_not_keep_suspects_from_going_on(world: World) -> None:
    (held,) = await start_in_flight(world, 1)
    await start_isolated(world, MAX_ISOLATED, gate="isolated may end")
    killed_at = time.monotonic()
    kill(await world.owner_pid(held))
    await world.until_event(held, "RunAutoResumed")
    assert time.monotonic() - killed_at < SOON_S
    assert world.ledger()["isolated"] == MAX_ISOLATED


async def test_suspects_that_go_on_for_long_do_not_keep_isolated_runs_waiting(world: World) -> None:
    run_ids = await start_in_flight(world, MAX_TRYING * MAX_SUSPECTS)
    kill(await world.owner_pid(run_ids[0]))
    await world.until_ledger("starts", 2 * len(run_ids))

    async def are_acquitted() -> bool:
        return await world.sql.fetchval("SELECT max(crash_count) FROM smithers.runs") == 0

    await until(are_acquitted, "no run is suspected")
    (world.root / "isolated may end").touch()
    await start_isolated(world, 1, gate="isolated may end")
    await world.until_status("isolated0", "finished")
    assert await world.sql.fetchval("SELECT count(*) FROM smithers.runs WHERE status = 'running'")


async def test_a_run_that_is_cleared_while_the_database_is_away_is_passed_on_when_it_is_back(
    world: World,
) -> None:
    write_steps(world)
    world.start_pool(workers=1, module="tests.support.unreleased")
    with holding(world, 2):
        await world.start("r", "steps.py")
        await world.until_ledger("r starts 2")
        kill(await world.owner_pid("r"))
    await assert_each_ran_once(world, "r")
    assert len(world.log("release_lost")) == 1
    assert world.log("run_broke") == []


async def count_writers(world: World, run_id: str) -> int:
    """Count the claims that wrote to a run's history, and the burials that did."""
    count: int = await world.sql.fetchval(
        "SELECT count(DISTINCT epoch) FROM smithers.events WHERE run_id = $1 AND seq > 0", run_id
    )
    return count


async def test_poison_among_others_is_claimed_three_times_and_fails_no_other(world: World) -> None:
    world.write(
        "poison.py",
        """
        import ctypes
        from ledger import mark
        from smithers import Task, workflow

        def poison():
            mark("poison")
            ctypes.string_at(0)

        @workflow
        def poisoned(ctx):
            return Task("poison", poison)
        """,
    )
    run_ids = await start_in_flight(world, 10)
    (world.root / "open").touch()
    await world.start("poison", "poison.py")
    await world.until_status("poison", "failed")
    assert (await world.error("poison"))["code"] == "WORKER_CRASHED"
    assert world.ledger()["poison"] == 3
    assert await count_writers(world, "poison") == 3 + 1  # each claim, and the last burial
    for run_id in run_ids:
        await world.until_status(run_id, "finished")


async def test_a_drain_lets_runs_end_and_gives_back_what_takes_too_long(world: World) -> None:
    write_steps(world)
    world.write(
        "long.py",
        """
        import asyncio
        from ledger import mark
        from smithers import Task, workflow

        async def long():
            mark("long")
            await asyncio.sleep(100)

        @workflow
        def long_workflow(ctx):
            return Task("t", long)
        """,
    )
    pool = world.start_pool(workers=1)
    await world.start("short", "steps.py")
    await world.until_ledger("short starts 4")
    pool.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(pool.wait, PATIENCE_S) == 0
    await assert_each_ran_once(world, "short")
    assert world.log("drain_timeout") == []
    pool = world.start_pool(workers=1, drain_timeout_s=0.1)
    await world.start("long", "long.py")
    await world.until_ledger("long")
    pool.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(pool.wait, PATIENCE_S) == 0
    owners = await world.sql.fetchval(
        "SELECT count(*) FROM smithers.runs WHERE owner_id IS NOT NULL"
    )
    assert owners == 0
    assert [line["run_ids"] for line in world.log("drain_timeout")] == [["long"]]
    world.start_pool(workers=1)
    await world.until_ledger("long", 2)


async def test_a_frozen_worker_that_was_displaced_writes_nothing(world: World) -> None:
    write_steps(world)
    frozen = world.start_pool(workers=1)
    with holding(world, 1):
        await world.start("r", "steps.py")
        await world.until_ledger("r starts 1")
        child = await world.owner_pid("r")
        for pid in (frozen.pid, child):
            os.kill(pid, signal.SIGSTOP)
    await world.sql.execute(
        "UPDATE smithers.workers SET heartbeat_at = smithers.clock() - interval '31 s', boot_id = 'another host'"
    )
    world.start_pool(workers=1)
    await assert_each_ran_once(world, "r")
    before = await world.events("r")
    for pid in (frozen.pid, child):
        os.kill(pid, signal.SIGCONT)
    gone = Path(f"/proc/{child}")

    async def is_gone() -> bool:
        return not gone.exists() or "State:\tZ" in (gone / "status").read_text()

    await until(is_gone, "the displaced worker has ended")
    assert await world.events("r") == before


async def test_a_child_whose_loop_is_blocked_is_killed_and_its_runs_go_on(world: World) -> None:
    write_steps(world)
    world.write(
        "block.py",
        """
        import time
        from ledger import mark
        from smithers import Task, current_task, workflow

        async def block():
            mark("block")
            if current_task().attempt == 1:
                time.sleep(1000)

        @workflow
        def blocking(ctx):
            return Task("t", block)
        """,
    )
    world.start_pool(workers=1, module="tests.support.impatient")
    await world.start("r", "steps.py")
    await world.until_ledger("r starts 0")
    await world.start("block", "block.py")
    await world.until_status("block", "finished")
    await assert_each_ran_once(world, "r")
