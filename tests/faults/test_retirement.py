"""A body that does not stop costs nobody else anything: its child goes when it has finished what else it has."""

import asyncio
import resource
import signal
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.world import PATIENCE_S, World, kill, until
from worker.settings import MAX_RETIRED
from worker.threads import MAX_THREADS

HELD = """
    import asyncio
    from pathlib import Path
    from ledger import mark
    from smithers import Task, current_task, workflow

    async def held():
        name = current_task().run_id
        mark(f"{name} begins")
        while not Path("go").exists():
            await asyncio.sleep(0.02)
        await asyncio.to_thread(mark, f"{name} ends")

    @workflow
    def held_up(ctx):
        return Task("t", held)
"""
STUCK = """
    import threading
    from smithers import Task, workflow

    @workflow
    def stuck(ctx):
        return Task("t", lambda: threading.Event().wait(), timeout=0.1)
"""
STUCK_IN_LOOP = """
    import asyncio, threading
    from smithers import Task, workflow

    async def wait():
        await asyncio.to_thread(threading.Event().wait)

    @workflow
    def stuck_in_loop(ctx):
        return Task("t", wait, timeout=0.1)
"""
TO_THREAD = """
    import asyncio, time
    from pathlib import Path
    from ledger import mark
    from smithers import Task, current_task, workflow

    def work(attempt):
        while not Path("go").exists():
            mark(f"{attempt}")
            time.sleep(0.01)

    async def begin():
        await asyncio.to_thread(work, current_task().attempt)

    @workflow
    def to_thread(ctx):
        return Task("t", begin)
"""
FULL = """
    import time
    from pathlib import Path
    from smithers import Parallel, Task, workflow

    def work():
        while not Path("go").exists():
            time.sleep(0.2)

    @workflow
    def full(ctx):
        return Parallel(*(Task(f"t{number}", work) for number in range(COUNT)))
"""
ONE = """
    from smithers import Task, workflow

    @workflow
    def one(ctx):
        return Task("a", lambda: 1)
"""


@pytest.fixture(autouse=True)
def _flows(world: World) -> None:
    sources = {
        "held": HELD,
        "stuck": STUCK,
        "stuck_in_loop": STUCK_IN_LOOP,
        "to_thread": TO_THREAD,
        "full": FULL.replace("COUNT", str(MAX_THREADS)),
        "one": ONE,
    }
    for name, source in sources.items():
        world.write(f"{name}.py", source)


async def retire_beside(world: World, name: str) -> int:
    """Have a child retire that has a run under way; return its pid."""
    await world.start(name, "held.py")
    await world.until_ledger(f"{name} begins")
    pid = await world.owner_pid(name)
    await world.start(f"stuck-{name}", "stuck.py")
    await world.until_status(f"stuck-{name}", "failed")
    assert (await world.error(f"stuck-{name}"))["code"] == "TASK_TIMEOUT"
    await world.start(f"after-{name}", "one.py")
    await world.until_status(f"after-{name}", "finished")
    return pid


async def until_buried(world: World, pid: int) -> None:
    async def is_dead() -> bool:
        return not await world.sql.fetchval(
            "SELECT count(*) FROM smithers.workers WHERE pid = $1 AND dead_at IS NULL", pid
        )

    await until(is_dead, f"the worker {pid} is buried")


async def test_others_beside_a_body_that_does_not_stop_are_left_alone(world: World) -> None:
    world.start_pool(workers=1, drain_timeout_s=0.1)
    pid = await retire_beside(world, "r")
    assert await world.owner_pid("r") == pid
    (world.root / "go").touch()
    await world.until_status("r", "finished")
    assert world.ledger() == {"r begins": 1, "r ends": 1}
    await until_buried(world, pid)
    assert "child_killed" not in (world.root / "pool.log").read_text()


async def test_calls_in_the_loops_threads_that_do_not_stop_cost_nobody_else_theirs(
    world: World,
) -> None:
    world.start_pool(workers=1)
    await world.start("r", "held.py")
    await world.until_ledger("r begins")
    pid = await world.owner_pid("r")
    stuck = [f"stuck-{number}" for number in range(8)]
    for name in stuck:
        await world.start(name, "stuck_in_loop.py")
    for name in stuck:
        await world.until_status(name, "failed")
    assert await world.owner_pid("r") == pid
    (world.root / "go").touch()
    await world.until_status("r", "finished")
    assert world.ledger() == {"r begins": 1, "r ends": 1}
    await until_buried(world, pid)
    assert "child_killed" not in (world.root / "pool.log").read_text()


@pytest.mark.slow
async def test_a_drain_that_a_body_does_not_let_end_counts_as_no_crash(world: World) -> None:
    world.write(
        "block.py",
        """
        import time
        from ledger import mark
        from smithers import Task, workflow

        async def block():
            mark("block")
            time.sleep(1000)

        @workflow
        def blocks(ctx):
            return Task("t", block)
        """,
    )
    pool = world.start_pool(workers=1, drain_timeout_s=0.1)
    await world.start("r", "block.py")
    await world.until_ledger("block")
    pool.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(pool.wait, PATIENCE_S) == 0
    row = await world.sql.fetchrow("SELECT owner_id, crash_count FROM smithers.runs")
    assert row is not None
    assert tuple(row) == (None, 0)


@pytest.mark.slow
async def test_bodies_that_have_every_thread_hold_up_no_import(world: World) -> None:
    world.start_pool(workers=1)
    await world.start("full", "full.py", config=f'{{"maxConcurrency": {MAX_THREADS}}}')

    async def is_full() -> bool:
        query = "SELECT count(*) FROM smithers.nodes WHERE state = 'in-progress'"
        return await world.sql.fetchval(query) == MAX_THREADS

    await until(is_full, "every thread has a body")
    await world.start("r", "held.py")
    await world.until_ledger("r begins")
    assert await world.owner_pid("r") == await world.owner_pid("full")
    (world.root / "go").touch()
    for name in ("r", "full"):
        await world.until_status(name, "finished")


async def test_a_drain_gives_nothing_back_of_which_something_still_runs(world: World) -> None:
    drained = world.start_pool(workers=1, drain_timeout_s=0.1)
    await world.start("r", "to_thread.py")
    await world.until_ledger("1", 10)
    world.start_pool(workers=1)
    drained.send_signal(signal.SIGTERM)
    await world.until_ledger("2", 10)
    assert await asyncio.to_thread(drained.wait, PATIENCE_S) == 0
    (world.root / "go").touch()
    await world.until_status("r", "finished")
    attempts = world.ledger_path.read_text().split()
    assert "1" not in attempts[attempts.index("2") :]
    crashes = await world.sql.fetchval("SELECT crash_count FROM smithers.runs WHERE run_id = 'r'")
    assert crashes == 0
    assert "child_killed" not in (world.root / "pool.log").read_text()


@pytest.mark.slow
async def test_a_child_that_has_retired_drains_with_its_pool(world: World) -> None:
    pool = world.start_pool(workers=1, drain_timeout_s=0.3)
    pid = await retire_beside(world, "r")
    pool.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(pool.wait, PATIENCE_S) == 0
    await until_buried(world, pid)
    assert await world.sql.fetchval("SELECT owner_id IS NULL FROM smithers.runs WHERE run_id = 'r'")
    assert "child_killed" not in (world.root / "pool.log").read_text()


@pytest.mark.slow
async def test_the_oldest_of_too_many_that_have_retired_is_drained(world: World) -> None:
    world.start_pool(workers=1, drain_timeout_s=0.3)
    names = [f"r{number}" for number in range(MAX_RETIRED)]
    pids = [await retire_beside(world, name) for name in names]
    assert len(set(pids)) == len(pids)
    await world.until_ledger("r0 begins", 2)
    await until_buried(world, pids[0])
    (world.root / "go").touch()
    for name in names:
        await world.until_status(name, "finished")
    assert world.ledger() == {
        **{f"{name} begins": 1 for name in names},
        **{f"{name} ends": 1 for name in names},
        "r0 begins": 2,
    }


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


async def first_child(world: World, pool: Popen[bytes]) -> int:
    """Wait until a pool's only child is at work."""
    await world.start("before", "one.py")
    await world.until_status("before", "finished")
    (pid,) = [child for server in children_of(pool.pid) for child in children_of(server)]
    return pid


async def test_a_pool_that_has_no_descriptors_for_a_moment_goes_on_after_it(world: World) -> None:
    pool = world.start_pool(workers=1)
    child = await first_child(world, pool)
    before = resource.prlimit(pool.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    kill(child)

    async def has_none() -> bool:
        return "Too many open files" in (world.root / "pool.log").read_text()

    await until(has_none, "the pool has no descriptor")
    resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, before)
    await world.start("after", "one.py")
    await world.until_status("after", "finished")


@pytest.mark.slow
async def test_a_pool_goes_on_after_a_birth_and_a_burial_that_went_wrong(world: World) -> None:
    pool = world.start_pool(workers=1, module="tests.support.unlucky")
    child = await first_child(world, pool)
    (world.root / "go").touch()
    await world.start("r", "held.py")
    await world.until_status("r", "finished")
    kill(child)
    await world.start("after", "one.py")
    await world.until_status("after", "finished")
    await until_buried(world, child)
    log = (world.root / "pool.log").read_text()
    assert "nobody foresaw this" in log
    assert "EOFError" in log


@pytest.mark.slow
async def test_children_that_the_database_does_not_take_leave_nothing_behind(world: World) -> None:
    await world.sql.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'full'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON smithers.workers FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )
    pool = world.start_pool(workers=1)
    open_files = Path(f"/proc/{pool.pid}/fd")
    # After the second: what the pool opens for itself is open. More children follow than one of them has files.
    await world.until_logged("child_ended", 2)
    before = len(list(open_files.iterdir()))
    await world.until_logged("child_ended", 12)

    async def are_closed() -> bool:
        return len(list(open_files.iterdir())) <= before

    await until(are_closed, "all that is left of them is closed")
    await world.sql.execute("DROP TRIGGER refuse ON smithers.workers")
    await world.start("r", "one.py")
    await world.until_status("r", "finished")
