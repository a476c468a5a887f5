"""Try and Saga on real pools: what is to be done in the end is done, also after a cancel and in spite of a death."""

from tests.support.world import World, kill

SAGA = """
    import asyncio
    from ledger import mark
    from smithers import Saga, Step, Task, current_task, workflow

    async def act(name):
        mark(f"{name} begins")
        while name == "un-hotel" and current_task().attempt == 1:
            await asyncio.sleep(0.02)
        mark(f"{name} ends")
        if name == "pay":
            raise ValueError("no money")

    @workflow
    def saga(ctx):
        return Saga(
            "trip",
            Step(Task("flight", lambda: act("flight")), Task("un-flight", lambda: act("un-flight"))),
            Step(Task("hotel", lambda: act("hotel")), Task("un-hotel", lambda: act("un-hotel"))),
            Step(Task("pay", lambda: act("pay")), Task("un-pay", lambda: act("un-pay"))),
        )
"""

GUARDED = """
    import asyncio
    from ledger import mark
    from smithers import Approval, Task, Try, workflow

    async def work():
        mark("work")
        await asyncio.sleep(60)

    @workflow
    def guarded(ctx):
        return Try(
            "t",
            Task("work", work) if ctx.input.get("works") else Approval("ok", title="?"),
            finally_=Task("tidy", lambda: mark("tidy")),
        )
"""

CATCHING = """
    from smithers import Task, Try, workflow

    def divide():
        return 1 / 0

    @workflow
    def catching(ctx):
        return Try(
            "t",
            Task("divide", divide),
            catch=Task("tell", lambda: f"{ctx.error('t').name}: {ctx.error('t').message}"),
        )
"""


async def test_a_catch_sees_the_error_and_its_run_finishes(world: World) -> None:
    world.write("catching.py", CATCHING)
    world.start_pool()
    await world.start("r", "catching.py")
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["tell"] == "ZeroDivisionError: division by zero"


async def test_a_saga_whose_worker_is_killed_while_it_undoes_undoes_each_step(world: World) -> None:
    world.write("saga.py", SAGA)
    world.start_pool()
    await world.start("r", "saga.py")
    await world.until_ledger("un-hotel begins")
    kill(await world.owner_pid("r"))
    await world.until_status("r", "failed")
    assert (await world.error("r"))["message"] == "no money"
    lines = await world.lines("r")
    assert [line for line in lines if line.startswith("NodeFinished")] == [
        "NodeFinished flight 1",
        "NodeFinished hotel 1",
        "NodeFinished un-hotel 2",
        "NodeFinished un-flight 1",
    ]
    assert world.ledger()["un-flight ends"] == 1
    assert "un-pay begins" not in world.ledger()


async def test_a_finally_runs_when_a_busy_run_is_cancelled(world: World) -> None:
    world.write("guarded.py", GUARDED)
    world.start_pool()
    await world.start("r", "guarded.py", {"works": True})
    await world.until_ledger("work")
    await world.sql.fetchval("SELECT outcome FROM smithers.cancel_run_v3('r')")
    await world.until_status("r", "cancelled")
    assert world.ledger()["tidy"] == 1
    assert (await world.lines("r"))[-2:] == ["NodeFinished tidy 1", "RunCancelled"]


async def test_a_finally_runs_when_a_parked_run_is_cancelled(world: World) -> None:
    world.write("guarded.py", GUARDED)
    world.start_pool()
    await world.start("r", "guarded.py")
    await world.until_status("r", "waiting-approval")
    outcome = await world.sql.fetchval("SELECT outcome FROM smithers.cancel_run_v3('r')")
    assert outcome == "requested"
    await world.until_status("r", "cancelled")
    assert world.ledger()["tidy"] == 1
