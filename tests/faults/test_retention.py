"""Pruning beside workers that move runs: whole runs go, no node runs twice, and nothing is left of what went."""

import asyncio
from datetime import timedelta

from smithers.store.retention import prune
from smithers.store.tables import metadata
from tests.support.world import World, until

AT_ONCE = timedelta(0)
RUNS = 30
FLOW = """
from smithers import Sequence, Task, workflow
from ledger import mark

@workflow
def flow(ctx):
    return Sequence(*(Task(f"t{n}", lambda n=n: mark(f"{ctx.run_id} {n}")) for n in range(3)))
"""
OUTLIVE = {"cached_outputs", "tombstones"}


async def test_runs_are_pruned_whole_while_others_run(world: World) -> None:
    world.write("flow.py", FLOW)
    world.start_pool(workers=2)
    pruning = asyncio.create_task(prune_until_cancelled(world.dsn))
    try:
        for number in range(RUNS):
            await world.start(f"r{number}", "flow.py")

        async def all_gone() -> bool:
            return await world.sql.fetchval("SELECT count(*) FROM smithers.tombstones") == RUNS

        await until(all_gone, "every run has ended and was pruned")
    finally:
        pruning.cancel()
        await asyncio.wait([pruning])
    assert pruning.cancelled(), "pruning met with no error"
    ledger = world.ledger()
    assert {ledger[f"r{number} {node}"] for number in range(RUNS) for node in range(3)} == {1}
    for table in metadata.sorted_tables:
        if "run_id" in table.columns and table.name not in OUTLIVE:
            left = await world.sql.fetchval(f"SELECT count(*) FROM {table.fullname}")
            assert left == 0, table.name


async def prune_until_cancelled(dsn: str) -> None:
    while True:
        await prune(dsn, AT_ONCE)
        await asyncio.sleep(0)
