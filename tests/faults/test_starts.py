"""A start is one run or none: whatever dies beside its commit, and however many ask for it at once."""

import asyncio
import itertools
from collections import Counter

import aiohttp
import pytest

from chaos.checker import History, check
from chaos.dump import read_runs
from chaos.recorder import Recorder
from tests.support.crashing import CODE
from tests.support.world import World, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CRASHES = 200
LANES = 4
RIVALS = 20
ROUNDS = 50
ONCE = """
from ledger import mark
from smithers import Task, current_task, workflow

async def work():
    mark(current_task().run_id)

@workflow
def once(ctx):
    return Task("t", work)
"""
OPEN = "SELECT count(*) = 0 FROM smithers.runs WHERE finished_at IS NULL"


async def start(http: aiohttp.ClientSession, port: int, run_id: str) -> int | None:
    """Ask for a run; return the status, None where no answer came."""
    body = {"workflowPath": "once.py", "runId": run_id}
    try:
        async with http.post(f"http://127.0.0.1:{port}/v1/runs", json=body) as response:
            return response.status
    except aiohttp.ClientError:
        return None


async def until_all_have_ended(world: World) -> None:
    async def have_ended() -> bool:
        return await world.sql.fetchval(OPEN)

    await until(have_ended, "all runs have ended")


async def test_after_a_gateway_died_beside_a_start_the_same_start_tells_which(world: World) -> None:
    world.write("once.py", ONCE)
    world.start_pool()
    _, port = await world.start_gateway()
    numbers = itertools.count()
    history_path = world.root / "history.jsonl"
    answers: Counter[tuple[str, int | None]] = Counter()

    async def crash_again_and_again(recorder: Recorder, http: aiohttp.ClientSession) -> None:
        while (number := next(numbers)) < CRASHES:
            run_id, side = f"k{number}", ("before", "after")[number % 2]
            crash = {"CRASH_POINT": f"gateway start {side}", "CRASH_AT": "1"}
            dying, its_port = await world.start_gateway(
                module="tests.support.crashing",
                environment=crash | {"CRASH_HITS": str(world.root / f"hits-{number}")},
            )
            with recorder.operation("client", "start", run=run_id):
                assert await start(http, its_port, run_id) is None
            assert await asyncio.to_thread(dying.wait) == CODE
            with recorder.operation("client", "start", run=run_id) as end:
                answer = await start(http, port, run_id)
                end["phase"] = "ok" if answer == 200 else "refused"
            answers[side, answer] += 1

    with Recorder(history_path) as recorder:
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            for _ in range(LANES):
                group.create_task(crash_again_and_again(recorder, http))
    assert answers == {("before", 200): CRASHES / 2, ("after", 409): CRASHES / 2}
    await until_all_have_ended(world)
    runs = await read_runs(world.sql)
    assert [str(one) for one in check(History.read(history_path), runs, [])] == []
    assert world.ledger() == {f"k{number}": 1 for number in range(CRASHES)}


async def test_of_equal_starts_over_two_gateways_one_wins_and_runs_once(world: World) -> None:
    world.write("once.py", ONCE)
    world.start_pool()
    ports = [(await world.start_gateway())[1] for _ in range(2)]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        for number in range(ROUNDS):
            rivals = [start(http, ports[rival % 2], f"same-{number}") for rival in range(RIVALS)]
            assert Counter(await asyncio.gather(*rivals)) == {200: 1, 409: RIVALS - 1}
    await until_all_have_ended(world)
    assert world.ledger() == {f"same-{number}": 1 for number in range(ROUNDS)}
