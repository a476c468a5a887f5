"""Workflow code that harms its process ends its own run by name, and the runs beside it finish as if nothing had been."""

import asyncio
from pathlib import Path

import pytest

from bench.loads.harms import FINISHED, HARMS, Harm
from tests.support.world import World, kill

INNOCENT_COUNT = 10
MEMORY_MIB = 1024
# Its last task finds what belongs to the process in the order that others have to leave it in.
INNOCENT = """
    import asyncio, os, signal, sys, time
    from smithers import Sequence, Task, current_task, workflow

    async def step():
        await asyncio.sleep(0.1)

    def find_disorder():
        status = os.open("/proc/thread-self/status", os.O_RDONLY)
        umask = os.read(status, 4096).partition(b"Umask:")[2].split()[0].decode()
        os.close(status)
        for descriptor in (0, 1, 2):
            os.fstat(descriptor)
        found = {
            "directory": os.readlink("/proc/thread-self/cwd") == str(current_task().root_dir),
            "umask": umask == "UMASK",
            "recursion limit": sys.getrecursionlimit() == 1000,
            "SIGTERM": signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL),
        }
        return [name for name, is_in_order in found.items() if not is_in_order]

    def look():
        give_up_at = time.monotonic() + 60
        while (disorder := find_disorder()) and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert not disorder, disorder

    @workflow
    def innocent(ctx):
        return Sequence(*(Task(f"s{number}", step) for number in range(5)), Task("look", look))
"""
# One of each way in which runs beside it were once lost or held up, and that others in the same batch do not hide.
SHORT = (
    "an exception whose text raises",
    "sys.exit in a task of its own",
    "returns 100 GB of one text",
    "returns an endless iterator",
    "a serializer that never returns",
    "os.fork that returns into the loop",
    "os.fork that returns in a thread",
    "daemonises",
    "sets off alarms",
    "changes the directory",
    "changes the umask",
    "closes descriptors 0, 1, 2",
    "lowers the recursion limit",
    "stops the event loop",
    "cancels all tasks",
    "a segfault",
    "import: sys.exit",
    "import: prints 20 MB",
    "builder: an endless loop",
    "builder: os.fork",
    "builder: a tree with a cycle",
)


def read_umask() -> str:
    status = Path("/proc/self/status").read_text()
    return status.partition("Umask:")[2].split()[0]


async def harm_beside_innocents(world: World, chosen: list[Harm], patience_s: float) -> None:
    """Run these harms at once among ten innocent runs; check how each ends, and that the pool goes on."""
    world.write("innocent.py", INNOCENT.replace("UMASK", read_umask()))
    pool = world.start_pool(workers=2, worker_memory_mib=MEMORY_MIB)
    innocents = [f"innocent-{number}" for number in range(INNOCENT_COUNT)]
    half = INNOCENT_COUNT // 2
    for name in innocents[:half]:
        await world.start(name, "innocent.py")
    for number, harm in enumerate(chosen):
        world.write(f"harm{number}.py", harm.source)
        await world.start(f"harm-{number}", f"harm{number}.py")
    for name in innocents[half:]:
        await world.start(name, "innocent.py")
    for name in innocents:
        await world.until_status(name, "finished", "failed", patience_s=patience_s)
        assert await world.status(name) == "finished", await world.error(name)
        assert (await world.lines(name)).count("RunFinished") == 1
    ends = {}
    for number, harm in enumerate(chosen):
        await world.until_status(f"harm-{number}", "finished", "failed", patience_s=patience_s)
        ends[harm.name] = await end_of(world, f"harm-{number}")
    assert ends == {harm.name: harm.end for harm in chosen}
    await world.start("after", "innocent.py")
    await world.until_status("after", "finished")
    assert pool.poll() is None


async def end_of(world: World, run_id: str) -> str:
    if await world.status(run_id) == "finished":
        return FINISHED
    error = await world.error(run_id)
    return error.get("code") or error["name"]


async def test_ten_innocent_runs_finish_beside_many_that_harm(world: World) -> None:
    by_name = {harm.name: harm for harm in HARMS}
    await harm_beside_innocents(world, [by_name[name] for name in SHORT], patience_s=60)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
async def test_ten_innocent_runs_finish_beside_each_that_harms(world: World, harm: Harm) -> None:
    async with asyncio.timeout(300):
        await harm_beside_innocents(world, [harm], patience_s=200)


async def test_a_fork_that_a_dead_worker_has_left_is_dead_before_its_run_goes_on(
    world: World,
) -> None:
    world.write(
        "fork.py",
        """
        import os, time
        from ledger import mark
        from smithers import Task, current_task, workflow

        def is_alive(pid):
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
            except OSError:
                return False

        def fork():
            if current_task().attempt > 1:
                return is_alive(int(open("fork.pid").read()))
            fork = os.fork()
            if fork == 0:
                os.setsid()
                time.sleep(3600)
            with open("fork.pid", "w") as file:
                file.write(str(fork))
            mark("forked")
            time.sleep(3600)

        @workflow
        def forking(ctx):
            return Task("t", fork)
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "fork.py")
    await world.until_ledger("forked")
    kill(await world.owner_pid("r"))
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": False}
