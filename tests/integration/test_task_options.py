"""Options of tasks that need a worker: cached outputs, and heartbeats that must come."""

from datetime import timedelta

import pytest

from tests.support.world import World

CACHED = """
    from ledger import mark
    from pydantic import BaseModel
    from smithers import Cache, Sequence, Task, workflow

    class Price(BaseModel):
        amount: int

    def price(item):
        mark(f"price {item}")
        return Price(amount=len(item))

    def plain(item):
        mark("plain")
        return item

    @workflow
    def cached(ctx):
        item = ctx.input["item"]
        return Sequence(
            Task("price", lambda: price(item), output=Price,
                 cache=Cache(by=item, version=ctx.input.get("version", 1), ttl=ctx.input.get("ttl"),
                             scope=ctx.input.get("scope", "workflow"))),
            Task("plain", lambda: plain(item)),
        )
"""

SILENT = """
    import asyncio
    from smithers import Retry, Task, current_task, workflow

    async def talk():
        for _ in range(8):
            await asyncio.sleep(0.1)
            current_task().heartbeat("here")
        return "talked"

    async def hang():
        if current_task().attempt == 1:
            await asyncio.sleep(60)
        return "second"

    @workflow
    def silent(ctx):
        again = {"retries": 9, "retry": Retry(initial=0.01)}  # on a busy machine a second may pass in between
        return [
            Task("talk", talk, heartbeat_timeout=0.5, **again),
            Task("hang", hang, heartbeat_timeout=0.3, **again),
        ]
"""


async def run(world: World, run_id: str, **given: object) -> dict[str, object]:
    await world.start(run_id, "cached.py", {"item": "tea", **given})
    await world.until_status(run_id, "finished")
    return await world.outputs(run_id)


async def test_an_output_is_made_once_for_what_it_is_made_from(world: World) -> None:
    world.write("cached.py", CACHED)
    world.start_pool()
    first = await run(world, "a")
    assert await run(world, "b") == first == {"price": {"amount": 3}, "plain": "tea"}
    assert world.ledger() == {"price tea": 1, "plain": 2}
    await run(world, "c", item="coffee")
    await run(world, "d", version=2)
    await run(world, "e", scope="run")
    await run(world, "f", scope="global")
    assert world.ledger()["price tea"] == 4
    assert world.ledger()["price coffee"] == 1


AGE = "UPDATE smithers.cached_outputs SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval"


@pytest.mark.parametrize("stored_with", [None, 0.5, 1e300])
async def test_the_task_that_looks_for_an_output_says_how_old_it_may_be(
    world: World, stored_with: float | None
) -> None:
    world.write("cached.py", CACHED)
    world.start_pool()
    await run(world, "a", ttl=stored_with)
    await world.sql.execute(AGE, timedelta(minutes=5))
    for run_id, ttl in (("b", 3600), ("c", None), ("d", 1e300)):
        await run(world, run_id, ttl=ttl)
        assert world.ledger()["price tea"] == 1
    await run(world, "e", ttl=300)
    assert world.ledger()["price tea"] == 2
    await run(world, "f", ttl=0)
    assert world.ledger()["price tea"] == 3


async def test_what_is_too_old_or_does_not_fit_is_made_again(world: World) -> None:
    world.write("cached.py", CACHED)
    world.start_pool()
    await run(world, "a", ttl=3600)
    kept_s = "SELECT extract(epoch FROM expires_at - created_at)::int FROM smithers.cached_outputs"
    assert await world.sql.fetchval(kept_s) == 3600
    await world.sql.execute(AGE, timedelta(hours=1))
    await run(world, "b", ttl=3600)
    assert world.ledger()["price tea"] == 2
    await world.sql.execute("""UPDATE smithers.cached_outputs SET output = '{"sum": 1}'""")
    assert (await run(world, "c", ttl=3600))["price"] == {"amount": 3}
    assert world.ledger()["price tea"] == 3
    await run(world, "d", ttl=3600)
    assert world.ledger()["price tea"] == 3


async def test_a_body_without_heartbeats_is_stopped_and_tried_again(world: World) -> None:
    world.write("silent.py", SILENT)
    world.start_pool()
    await world.start("r", "silent.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"talk": "talked", "hang": "second"}
    lines = [line for line in await world.lines("r") if " hang " in line]
    at = lines.index("TaskHeartbeatTimeout hang 1")
    assert lines[at : at + 3] == [
        "TaskHeartbeatTimeout hang 1",
        "NodeFailed hang 1",
        "NodeRetrying hang 2",
    ]
    failed = next(event for event in await world.events("r") if event["type"] == "NodeFailed")
    assert failed["error"]["code"] == "HEARTBEAT_TIMEOUT"
