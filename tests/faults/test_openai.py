"""Runs whose agents ask over OpenAI's wire, by pydantic-ai's own provider: tools, repairs, stand-ins, deaths, budgets."""

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from tests.support.openai_wire import Question, Refuse, Say, serving_openai
from tests.support.world import World

# Each loads the library of openai in a process of its own; the gate asks over the wire in tests/unit/test_agents.py.
pytestmark = pytest.mark.slow

FLOW = """
import os
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from ledger import mark
from smithers import Budget, Task, workflow
from smithers.tools import read, tool

class Verdict(BaseModel):
    score: int

@tool
async def charge(amount: int) -> str:
    "Take money."
    mark("charged")
    return "charged"

provider = OpenAIProvider(base_url=os.environ["WIRE_URL"], api_key="none")
broken, sound, payer = (
    Agent(OpenAIChatModel(model, provider=provider), name=model)
    for model in ("broken", "sound", "gpt-4o-mini")
)
"""


async def start(world: World, url: str, script: str) -> None:
    world.write("wired.py", FLOW)
    (world.root / "flow.py").write_text("from wired import *\n" + script)
    world.start_pool(workers=1, environment={"WIRE_URL": url})
    await world.start("r", "flow.py")


async def usage(world: World) -> list[dict[str, Any]]:
    return [event for event in await world.events("r") if event["type"] == "TokenUsageReported"]


async def test_a_run_that_is_killed_asks_only_the_open_question_again(world: World) -> None:
    arrived = asyncio.Event()

    async def script(question: Question) -> Say | Refuse:
        match question.step:
            case 0:
                calls = (("read", {"path": "notes.txt"}), ("charge", {"amount": 5}))
                return Say(text="Let me look at the notes first.", calls=calls)
            case 1:
                assert "a note" in json.dumps(question.messages)
                return Say(calls=(("final_result", {"score": "none"}),))
            case _:
                assert "score" in question.last
                if not arrived.is_set():
                    arrived.set()
                    await asyncio.Event().wait()  # until whoever asks is dead
                return Say(calls=(("final_result", {"score": 7}),), tokens=(40, 5))

    async with serving_openai(script) as wire:
        world.write("notes.txt", "a note")
        await start(
            world,
            wire.url,
            """
@workflow
def flow(ctx):
    return Task("t", agent=payer, prompt="Judge.", output=Verdict, tools=[read, charge], stream=True)
""",
        )
        await arrived.wait()
        os.kill(await world.owner_pid("r"), signal.SIGKILL)
        await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": {"score": 7}}
    assert wire.asked == {"gpt-4o-mini 0": 1, "gpt-4o-mini 1": 1, "gpt-4o-mini 2": 2}
    assert all(question.is_streamed for question in wire.questions)
    assert wire.questions[0].tools == ["read", "charge", "final_result"]
    assert world.ledger() == {"charged": 1}
    used = [
        (each["attempt"], each["inputTokens"], each["outputTokens"]) for each in await usage(world)
    ]
    assert used == [(1, 20, 10), (1, 20, 10), (2, 40, 5)]
    assert (await usage(world))[0]["cost"] == pytest.approx(20 * 0.15e-6 + 10 * 0.6e-6)
    said = [event for event in await world.events("r") if event["type"] == "NodeOutput"]
    assert "".join(event["text"] for event in said) == "Let me look at the notes first."
    assert len(said) <= 2  # gathered, though it came in pieces of four letters
    assert {(event["stream"], event["attempt"]) for event in said} == {("stdout", 1)}


async def test_a_stand_in_is_asked_where_the_first_is_broken_and_a_busy_one_is_asked_again(
    world: World,
) -> None:
    busy = iter([Refuse(429)])

    async def script(question: Question) -> Say | Refuse:
        if question.model == "broken":
            return Refuse(500)
        return next(busy, Say(text="done"))

    async with serving_openai(script) as wire:
        await start(
            world,
            wire.url,
            """
@workflow
def flow(ctx):
    return Task("t", agent=[broken, sound], prompt="Do it.")
""",
        )
        await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": "done"}
    # The client of openai asks twice more by itself.
    assert wire.asked == {"broken 0": 3, "sound 0": 2}
    assert [(each["agent"], each["model"]) for each in await usage(world)] == [("sound", "sound")]
    rows = await world.sql.fetch(
        "SELECT tool_name, state FROM smithers.tool_calls ORDER BY call_no"
    )
    assert [tuple(row) for row in rows] == [("broken", "failed"), ("sound", "finished")]


async def test_a_spent_budget_parks_the_run_and_a_grant_lets_it_go_on_where_it_stopped(
    world: World,
) -> None:
    async def script(question: Question) -> Say | Refuse:
        if question.step < 3:
            return Say(calls=(("charge", {"amount": question.step}),), tokens=(400, 100))
        return Say(text="paid", tokens=(400, 100))

    async with serving_openai(script) as wire:
        await start(
            world,
            wire.url,
            """
@workflow(budget=Budget(tokens=1000))
def flow(ctx):
    return Task("t", agent=payer, prompt="Pay.", tools=[charge])
""",
        )
        await world.until_status("r", "waiting-approval")
        assert (wire.asked.total(), world.ledger()["charged"]) == (2, 2)
        assert await world.states("r") == {"t": "pending", "budget": "waiting-approval"}
        request = json.loads(await world.sql.fetchval("SELECT request FROM smithers.approvals"))
        assert request["summary"] == "1,000 of 1,000 tokens"
        assert await world.decide("r", "budget", is_approved=True) == "decided"
        assert await world.decide("r", "budget", is_approved=True) == "repeated"
        await world.until_status("r", "finished")
    assert wire.asked == {f"gpt-4o-mini {step}": 1 for step in range(4)}
    assert world.ledger() == {"charged": 3}
    attempts = await world.sql.fetch(
        "SELECT attempt, state FROM smithers.attempts ORDER BY attempt"
    )
    assert [tuple(row) for row in attempts] == [(1, "parked"), (2, "finished")]
    assert len(await usage(world)) == 4
