"""Budgets in real runs: what is spent outlives processes, and a grant lets a run go on without repeating an answer."""

from tests.support.world import World

COUNTING = """
import os
from ledger import mark
from smithers import Budget, ContinueAsNew, Sequence, Task, workflow
from smithers.agents import AgentAnswer, TokenUsage, ask_model, say

def die_once(name):
    try:
        open(name, "x").close()
    except FileExistsError:
        return
    os.kill(os.getpid(), 9)

def read_usage(answer):
    return TokenUsage(agent="counting", model="m", input_tokens=40, output_tokens=10)

class Counting:
    name = "counting"

    def __init__(self, count, dies_at=None):
        self.count, self.dies_at = count, dies_at

    async def run(self, prompt, *, output, tools):
        for number in range(self.count):
            async def ask():
                mark(f"asked {number}")
                if number == self.dies_at:
                    die_once("dead")
                for word in ("one ", "two ", "three"):
                    say(word)
                return number
            await ask_model("m", {"number": number}, ask, read_usage=read_usage)
        return AgentAnswer(self.count)
"""


async def start(world: World, script: str, **fields: str) -> None:
    world.write("counting.py", COUNTING)
    (world.root / "flow.py").write_text("from counting import *\n" + script)
    world.start_pool(workers=1)
    await world.start("r", "flow.py", **fields)


async def test_what_is_spent_is_counted_once_over_a_death_and_a_grant_repeats_no_answer(
    world: World,
) -> None:
    await start(
        world,
        """
@workflow(budget=Budget(tokens=100))
def flow(ctx):
    return Task("t", agent=Counting(4, dies_at=1), prompt="Count.")
""",
    )
    await world.until_status("r", "waiting-approval")
    assert world.ledger() == {"asked 0": 1, "asked 1": 2}
    assert await world.decide("r", "budget", is_approved=True) == "decided"
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": 4, "budget": (await world.outputs("r"))["budget"]}
    assert world.ledger() == {"asked 0": 1, "asked 1": 2, "asked 2": 1, "asked 3": 1}
    attempts = await world.sql.fetch(
        "SELECT attempt, state FROM smithers.attempts ORDER BY attempt"
    )
    assert [tuple(row) for row in attempts] == [(1, "lost"), (2, "parked"), (3, "finished")]
    kept = await world.sql.fetch(
        "SELECT iteration, state, heartbeat::json ->> 'tokens' FROM smithers.nodes WHERE node_id = 'budget' ORDER BY 1"
    )
    assert [tuple(row) for row in kept] == [(0, "finished", "100"), (1, "skipped", "100")]
    events = await world.events("r")
    said = [event["text"] for event in events if event["type"] == "NodeOutput"]
    assert said == ["one two three"] * 4  # each answer once, though two of them were recalled


async def test_a_call_that_is_under_way_where_its_attempt_stops_is_made_again_after_the_grant(
    world: World,
) -> None:
    await start(
        world,
        """
import asyncio
from smithers.tools import tool

@tool(idempotent=True)
async def look():
    \"\"\"Look, for as long as it takes to be stopped the first time.\"\"\"
    mark("looked")
    if not os.path.exists("looked"):
        open("looked", "x").close()
        await asyncio.Event().wait()
    return "seen"

class Busy(Counting):
    async def run(self, prompt, *, output, tools):
        count, found = await asyncio.gather(
            super().run(prompt, output=output, tools=tools), tools[0].call({})
        )
        return AgentAnswer([count.value, found])

@workflow(budget=Budget(tokens=60))
def flow(ctx):
    return Task("t", agent=Busy(3), prompt="Count.", tools=[look])
""",
    )
    await world.until_status("r", "waiting-approval")
    assert await world.decide("r", "budget", is_approved=True) == "decided"
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["t"] == [3, "seen"]
    assert world.ledger() == {"asked 0": 1, "asked 1": 1, "asked 2": 1, "looked": 2}


async def test_a_denial_fails_the_run_by_name(world: World) -> None:
    await start(
        world,
        """
@workflow
def flow(ctx):
    return Task("t", agent=Counting(4), prompt="Count.", retries=3)
""",
        config='{"budget":{"tokens":50}}',
    )
    await world.until_status("r", "waiting-approval")
    assert await world.decide("r", "budget", is_approved=False) == "decided"
    await world.until_status("r", "failed")
    assert (await world.error("r"))["code"] == "BUDGET_SPENT"
    assert world.ledger() == {"asked 0": 1}


async def test_a_run_that_goes_on_as_another_does_not_begin_with_a_full_purse(world: World) -> None:
    await start(
        world,
        """
@workflow(budget=Budget(tokens=120))
def flow(ctx):
    task = Task("t", agent=Counting(2), prompt="Count.")
    return task if ctx.carried else Sequence(task, ContinueAsNew({"page": 2}))
""",
    )
    await world.until_status("r", "continued")
    await world.until_status("r+1", "waiting-approval")
    assert world.ledger() == {"asked 0": 2, "asked 1": 1}  # 100 of 120, and one more
    config = await world.sql.fetchval(
        "SELECT config::json -> 'spent' ->> 'tokens' FROM smithers.run_requests WHERE run_id = 'r+1'"
    )
    assert config == "100"
