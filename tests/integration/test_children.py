"""Child runs and continued runs on a real pool and database: started, awaited and ended with their parents."""

import json

from tests.support.world import World, kill, until

FAMILY = """
    import asyncio
    from ledger import mark
    from pydantic import BaseModel
    from smithers import Approval, Parallel, Sequence, Subflow, Task, workflow
    import flows

    class Number(BaseModel):
        n: int
        waits: bool = False

    @workflow(input=Number)
    def parent(ctx):
        return Sequence(
            Parallel(
                *(Subflow(f"s{n}", flows.child, {"n": n, "waits": ctx.input.waits})
                  for n in range(ctx.input.n)),
            ),
            Task("sum", lambda: sum(ctx.output(f"s{n}") for n in range(ctx.input.n))),
        )

    workflow = parent
"""

CHILD = """
    import asyncio
    from ledger import mark
    from pydantic import BaseModel
    from smithers import Approval, Task, workflow

    class Given(BaseModel):
        n: int
        waits: bool

    async def work(run_id, n):
        mark(f"work {n}")
        await asyncio.sleep(0.3)
        if n < 0:
            raise ValueError("negative")
        return n * 10

    @workflow(input=Given)
    def child(ctx):
        return [
            ctx.input.waits and Approval("ok", title="?"),
            Task("x", lambda: work(ctx.run_id, ctx.input.n)),
        ]
"""

PAGES = """
    from smithers import ContinueAsNew, Task, workflow

    @workflow
    def pages(ctx):
        page = ctx.carried["page"] if ctx.carried else 0
        return [
            Task("read", lambda: f"{ctx.input['name']} {page}"),
            ContinueAsNew({"page": page + 1}) if page < 2 else Task("end", page),
        ]
"""

CHAIN = """
    from smithers import Subflow, workflow
    import pages

    @workflow
    def chain(ctx):
        return Subflow("s", pages.pages, {"name": "book"})
"""

TRACED = """
    from smithers import Subflow, Task, workflow
    from tracing import traced

    @workflow
    @traced
    def child(ctx):
        return Task("x", "done")

    @workflow
    def parent(ctx):
        return Subflow("s", child)

    workflow = parent
"""

SLOW_TO_END = """
    import asyncio
    import os
    from pathlib import Path
    from ledger import mark
    from smithers import Subflow, Task, Timer, Try, workflow

    async def work(amount):
        mark(f"work {amount}")
        while not Path(os.environ["LEDGER"]).with_name("may-work").exists():
            await asyncio.sleep(0.02)
        return amount

    async def tidy():
        mark("tidy")
        while not Path(os.environ["LEDGER"]).with_name("may-end").exists():
            await asyncio.sleep(0.02)

    @workflow
    def child(ctx):
        return Try("t", Task("x", lambda: work(ctx.input["amount"])), finally_=Task("tidy", tidy))

    @workflow
    def parent(ctx):
        is_resumed = Path(os.environ["LEDGER"]).with_name("may-end").exists()
        return Subflow("s", child, {"amount": 2 if is_resumed else 1})

    workflow = parent
"""

TRACING = """
    from functools import wraps

    def traced(function):
        @wraps(function)
        def trace(ctx):
            return function(ctx)
        return trace
"""


def write_family(world: World) -> None:
    world.write("family.py", FAMILY)
    world.write("flows.py", CHILD)


async def children(world: World, run_id: str) -> list[str]:
    rows = await world.sql.fetch(
        "SELECT run_id FROM smithers.run_requests WHERE parent_run_id = $1 ORDER BY run_id", run_id
    )
    return [row["run_id"] for row in rows]


async def cancel(world: World, run_id: str) -> None:
    await world.sql.fetchval("SELECT outcome FROM smithers.cancel_run_v3($1)", run_id)


async def test_children_put_out_what_their_parents_nodes_put_out(world: World) -> None:
    write_family(world)
    world.start_pool()
    await world.start("r", "family.py", {"n": 5})
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["sum"] == 100
    born = await children(world, "r")
    assert len(born) == 5
    for child in born:
        assert await world.status(child) == "finished"
        assert (await world.events(child))[0]["correlation"]["workflowName"] == "child"
    lines = await world.lines("r")
    assert sum(line.startswith("SubflowStarted") for line in lines) == 5
    assert sum(line.startswith("SubflowEnded") for line in lines) == 5


async def test_a_child_may_be_a_workflow_whose_builder_is_decorated(world: World) -> None:
    world.write("traced.py", TRACED)
    world.write("tracing.py", TRACING)
    world.start_pool()
    await world.start("r", "traced.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"s": "done"}


async def test_a_parent_that_waits_for_its_child_is_held_by_no_worker(world: World) -> None:
    write_family(world)
    world.start_pool()
    await world.start("r", "family.py", {"n": 1, "waits": True})
    (child,) = await until(lambda: children(world, "r"), "there is a child")
    await world.until_status(child, "waiting-approval")
    await world.until_status("r", "waiting-event")
    held = "SELECT count(*) FROM smithers.runs WHERE owner_id IS NOT NULL"
    assert await world.sql.fetchval(held) == 0


async def test_a_child_that_fails_fails_its_parent_and_a_resume_takes_it_up_again(
    world: World,
) -> None:
    write_family(world)
    world.start_pool()
    (world.root / "flows.py").write_text(
        (world.root / "flows.py").read_text().replace("n < 0", "n == 1")
    )
    await world.start("r", "family.py", {"n": 2})
    await world.until_status("r", "failed")
    error = await world.error("r")
    assert (error["code"], error["details"]["error"]["message"]) == ("SUBFLOW_FAILED", "negative")
    resumed = "SELECT outcome FROM smithers.resume_run_v3('r', NULL, NULL, NULL, NULL, NULL)"
    assert await world.sql.fetchval(resumed) == "resumed"
    world.wake()

    async def has_failed_twice() -> bool:
        return (await world.lines("r")).count("RunFailed") == 2

    await until(has_failed_twice, "it failed again")
    assert len(await children(world, "r")) == 2
    assert world.ledger()["work 1"] == 2
    assert world.ledger()["work 0"] == 1


async def test_a_cancel_of_a_parked_parent_reaches_its_parked_children(world: World) -> None:
    write_family(world)
    world.start_pool()
    await world.start("r", "family.py", {"n": 3, "waits": True})
    await world.until_status("r", "waiting-event")
    born = await children(world, "r")
    for child in born:
        await world.until_status(child, "waiting-approval")
    await cancel(world, "r")
    for run_id in ("r", *born):
        await world.until_status(run_id, "cancelled")
    assert (await world.lines("r"))[-1] == "RunCancelled"


async def test_a_parent_resumed_while_its_child_still_ends_takes_it_up_again_with_its_first_input(
    world: World,
) -> None:
    world.write("slow.py", SLOW_TO_END)
    world.start_pool()
    await world.start("r", "slow.py")
    await world.until_ledger("work 1")
    await cancel(world, "r")
    await world.until_status("r", "cancelled")
    await world.until_ledger("tidy")
    resumed = "SELECT outcome FROM smithers.resume_run_v3('r', NULL, NULL, NULL, NULL, NULL)"
    assert await world.sql.fetchval(resumed) == "resumed"
    world.wake()
    await world.until_status("r", "waiting-event")
    (world.root / "may-end").touch()
    await world.until_ledger("work 1", 2)
    (world.root / "may-work").touch()
    await world.until_status("r", "finished")
    assert (await world.lines("r")).count("SubflowStarted s") == 3
    assert len(await children(world, "r")) == 1


async def test_children_whose_worker_is_killed_are_not_made_twice(world: World) -> None:
    write_family(world)
    world.start_pool(workers=2)
    await world.start("r", "family.py", {"n": 4})
    await world.until_ledger("work 3")
    for pid in {
        row["pid"]
        for row in await world.sql.fetch("SELECT pid FROM smithers.workers WHERE dead_at IS NULL")
    }:
        kill(pid)
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["sum"] == 60
    assert len(await children(world, "r")) == 4


async def test_many_parents_that_end_beside_their_children_never_block_each_other(
    world: World,
) -> None:
    write_family(world)
    world.start_pool(workers=2)
    ids = [f"r{number}" for number in range(12)]
    for run_id in ids:
        await world.start(run_id, "family.py", {"n": 4})
    await world.until_ledger("work 3")
    for run_id in ids[::2]:
        await cancel(world, run_id)
    for number, run_id in enumerate(ids):
        await world.until_status(
            run_id, *(["cancelled", "finished"] if number % 2 == 0 else ["finished"])
        )
    unfinished = (
        "SELECT count(*) FROM smithers.runs WHERE status NOT IN ('finished', 'cancelled', 'failed')"
    )

    async def is_quiet() -> bool:
        return await world.sql.fetchval(unfinished) == 0

    await until(is_quiet, "no child is left over")


async def test_a_run_goes_on_as_another_with_the_same_input_and_the_carried_state(
    world: World,
) -> None:
    world.write("pages.py", PAGES)
    world.start_pool()
    await world.start("r", "pages.py", {"name": "book"})
    await world.until_status("r+2", "finished")
    assert [await world.status(name) for name in ("r", "r+1")] == ["continued", "continued"]
    assert (await world.outputs("r+2"))["read"] == "book 2"
    last = (await world.events("r"))[-1]
    assert (last["type"], last["newRunId"]) == ("RunContinuedAsNew", "r+1")
    parents = await world.sql.fetch("SELECT run_id, parent_run_id FROM smithers.run_requests")
    assert {row["run_id"]: row["parent_run_id"] for row in parents}["r+2"] == "r+1"


async def test_a_parent_waits_for_what_its_child_goes_on_as(world: World) -> None:
    world.write("pages.py", PAGES)
    world.write("chain.py", CHAIN)
    world.start_pool()
    await world.start("r", "chain.py")
    await world.until_status("r", "finished")
    assert json.dumps(await world.outputs("r")) == '{"s": 2}'


async def test_a_name_that_another_run_has_fails_the_run_that_would_go_on_under_it(
    world: World,
) -> None:
    world.write("pages.py", PAGES)
    world.write(
        "other.py",
        "from smithers import Task, workflow\nother = workflow(lambda ctx: Task('t', 1))\n",
    )
    world.start_pool(workers=1)
    await world.start("r+1", "other.py")
    await world.until_status("r+1", "finished")
    await world.start("r", "pages.py", {"name": "book"})
    await world.until_status("r", "failed")
    error = await world.error("r")
    assert (error["name"], error["code"]) == ("RunExists", "RUN_ALREADY_EXISTS")
    assert error["message"] == "one of these run ids is already taken: r+1"
    assert await world.outputs("r+1") == {"t": 1}
    resumed = "SELECT outcome FROM smithers.resume_run_v3('r', NULL, NULL, NULL, NULL, NULL)"
    assert await world.sql.fetchval(resumed) == "resumed"
    await world.until_status("r", "failed")
    began = [line for line in await world.lines("r") if line.startswith("NodeStarted read")]
    assert began == ["NodeStarted read 1"]
