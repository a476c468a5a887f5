"""Agents in real runs: what was answered before a process died is not asked again, and what a retry is told."""

import hashlib
import json
import os
import signal
from collections import Counter

from tests.support.world import REPOSITORY, World

# A model that follows a script: what it says depends on how often it has spoken, and each time is marked in the ledger.
SCRIPTED = """
import os
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import FunctionModel
from ledger import mark
from smithers import Task, current_task, workflow
from smithers.tools import ToolError, grep, read, tool

class Verdict(BaseModel):
    score: int

def die_once(name):
    try:
        open(name, "x").close()
    except FileExistsError:
        return
    os.kill(os.getpid(), 9)

def count_answers(messages):
    return sum(isinstance(message, ModelResponse) for message in messages)

def call(name, **arguments):
    return ModelResponse(parts=[ToolCallPart(name, arguments)])

def say(info, **output):
    return call(info.output_tools[0].name, **output)
"""

THINKS = "await asyncio.sleep(pause_s)"
THINKS_UNTIL_IT_IS_KILLED = (
    "await asyncio.sleep(3600 if (number, current_task().attempt) == (2, 1) else 0)"
)


def write_flow(world: World, script: str) -> None:
    world.write("scripted.py", SCRIPTED)
    source = "from scripted import *\n" + "".join(
        line.removeprefix("        ") for line in script.splitlines(keepends=True)
    )
    (world.root / "flow.py").write_text(source)


async def rows(world: World) -> list[tuple[int, int, str, str, str]]:
    found = await world.sql.fetch(
        "SELECT attempt, call_no, kind, tool_name, state FROM smithers.tool_calls ORDER BY 1, 2"
    )
    return [tuple(row) for row in found]


async def test_answered_calls_are_not_made_again_after_two_deaths(world: World) -> None:
    write_flow(
        world,
        """
        def model(messages, info):
            step = count_answers(messages)
            mark(f"model {step}")
            if step == 2:
                die_once("first")
            if step == 4:
                die_once("second")
            return [
                lambda: call("read", path="notes.txt"),
                lambda: call("count"),
                lambda: call("look", word="b"),
                lambda: call("read", path="absent.txt"),
                lambda: say(info, score=7),
            ][step]()

        reviewer = Agent(FunctionModel(model, model_name="scripted"), name="reviewer")

        @reviewer.tool_plain
        async def count() -> int:
            mark("count")
            return 3

        @tool(side_effect=False)
        async def look(word: str) -> str:
            "Look."
            mark("look")
            return word

        @workflow
        def flow(ctx):
            return Task("t", agent=reviewer, prompt="Review it.", output=Verdict, tools=[read, look])
        """,
    )
    world.write("notes.txt", "a note")
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": {"score": 7}}
    # The process died in the third question and in the fifth: those two alone were asked twice.
    assert world.ledger() == {
        "model 0": 1,
        "model 1": 1,
        "model 2": 2,
        "model 3": 1,
        "model 4": 2,
        "count": 1,
        "look": 1,
    }
    # Whether an open question's start was kept before the death is a matter of milliseconds.
    assert [row for row in await rows(world) if row[4] != "started"] == [
        (1, 1, "model", "scripted", "finished"),
        (1, 2, "tool", "read", "finished"),
        (1, 3, "model", "scripted", "finished"),
        (1, 4, "tool", "count", "finished"),
        (2, 5, "model", "scripted", "finished"),
        (2, 6, "tool", "look", "finished"),
        (2, 7, "model", "scripted", "finished"),
        (2, 8, "tool", "read", "failed"),
        (3, 9, "model", "scripted", "finished"),
    ]
    # What a recalled call is known by must not change while attempts are under way.
    known_by = await world.sql.fetch(
        "SELECT DISTINCT call_no, input FROM smithers.tool_calls WHERE kind = 'model' ORDER BY 1"
    )
    digest = hashlib.sha256(b"Review it.").hexdigest()
    assert [json.loads(row["input"]) for row in known_by] == [
        {"operation": "reviewer__model.request", "prompt": digest, "turn": turn}
        for turn in range(1, 6)
    ]
    used = [event for event in await world.events("r") if event["type"] == "TokenUsageReported"]
    assert len(used) == 5
    assert {event["agent"] for event in used} == {"reviewer"}
    assert all(event["inputTokens"] > 0 and event["outputTokens"] > 0 for event in used)


async def test_a_call_with_effects_that_was_not_answered_is_told_and_not_repeated(
    world: World,
) -> None:
    write_flow(
        world,
        """
        def model(messages, info):
            step = count_answers(messages)
            if step == 0:
                return call("charge", amount=5)
            if step == 1:
                told = messages[-1].parts[0].content
                mark("told" if "nobody knows whether it was done" in str(told) else f"not told: {told}")
                die_once("later")
                return say(info, score=1)

        @tool
        async def charge(amount: int) -> str:
            "Take money."
            mark("charged")
            die_once("charging")
            return "charged"

        @workflow
        def flow(ctx):
            agent = Agent(FunctionModel(model))
            return Task("t", agent=agent, prompt="Charge.", output=Verdict, tools=[charge])
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert world.ledger() == {"charged": 1, "told": 2}
    assert [row for row in await rows(world) if row[3] == "charge"] == [
        (1, 2, "tool", "charge", "started"),
        (2, 2, "tool", "charge", "failed"),
    ]


async def test_what_a_tool_called_before_the_death_is_not_taken_for_the_agents_own_call(
    world: World,
) -> None:
    write_flow(
        world,
        """
        import asyncio
        from smithers.agents import AgentAnswer
        from smithers.tools import bash, write

        @tool
        def mend() -> str:
            "Look, and mend what is broken."
            found = bash("cat", ["state.txt"]).result().stdout
            write("state.txt", "tests pass").result()
            return found

        class Fixer:
            name = "fixer"

            async def run(self, prompt, *, output, tools):
                tools = {each.name: each for each in tools}
                async def post(*names):
                    for name in names:
                        await tools["mail"].call({"to": name})
                found = await tools["mend"].call({})
                await asyncio.gather(post("a1", "a2"), post("b1"))
                die_once("dead")
                seen = await tools["bash"].call({"cmd": "cat", "args": ["state.txt"]})
                return AgentAnswer([found, seen["stdout"]])

        @tool
        async def mail(to: str) -> None:
            "Send a letter."
            mark(f"mail {to}")

        @workflow
        def flow(ctx):
            return Task("t", agent=Fixer(), prompt="Fix.", tools=[mend, mail, bash])
        """,
    )
    world.write("state.txt", "tests FAIL")
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": ["tests FAIL", "tests pass"]}
    assert world.ledger() == {"mail a1": 1, "mail a2": 1, "mail b1": 1}
    assert [row[:2] + row[3:] for row in await rows(world)] == [
        (1, 1, "mend", "finished"),
        (1, 2, "bash", "finished"),
        (1, 3, "write", "finished"),
        *[(1, number, "mail", "finished") for number in (4, 5, 6)],
        (2, 7, "bash", "finished"),
    ]


async def test_a_retry_asks_anew_and_is_told_what_was_done(world: World) -> None:
    write_flow(
        world,
        """
        def model(messages, info):
            step = count_answers(messages)
            mark(f"model {step}")
            if step == 0:
                prompt = str(messages[0].parts[0].content)
                mark("told" if 'charge {"amount":5}: finished, "charged"' in prompt else "not told")
                return say(info, score=2) if "charge" in prompt else call("charge", amount=5)
            raise ConnectionError("no model")

        @tool
        async def charge(amount: int) -> str:
            "Take money."
            mark("charged")
            return "charged"

        @workflow
        def flow(ctx):
            agent = Agent(FunctionModel(model))
            return Task("t", agent=agent, prompt="Pay.", output=Verdict, tools=[charge], retries=1)
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": {"score": 2}}
    assert world.ledger() == {"model 0": 2, "model 1": 1, "not told": 1, "told": 1, "charged": 1}


async def test_a_retry_after_a_death_does_not_recall_what_led_to_the_failure(world: World) -> None:
    write_flow(
        world,
        """
        def model(messages, info):
            step = count_answers(messages)
            mark(f"model {step}")
            if step == 0:
                return call("read", path="absent.txt")
            die_once("dead")
            return say(info, score="none" if current_task().attempt == 2 else 3)

        @workflow
        def flow(ctx):
            agent = Agent(FunctionModel(model))
            return Task(
                "t", agent=agent, prompt="?", output=Verdict, tools=[read], repairs=0, retries=1
            )
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": {"score": 3}}
    assert world.ledger() == {"model 0": 2, "model 1": 3}


async def test_an_answer_that_never_fits_fails_the_node_and_says_where(world: World) -> None:
    write_flow(
        world,
        """
        def model(messages, info):
            mark("asked")
            return say(info, score="none")

        @workflow
        def flow(ctx):
            return Task("t", agent=Agent(FunctionModel(model)), prompt="?", output=Verdict)
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "failed")
    assert world.ledger() == {"asked": 3}
    (failed,) = [event for event in await world.events("r") if event["type"] == "NodeFailed"]
    assert failed["error"]["code"] == "INVALID_OUTPUT"
    assert "score" in failed["error"]["message"]
    frame = json.loads(await world.sql.fetchval("SELECT body FROM smithers.frames"))
    assert '"agent": "Agent"' in json.dumps(frame)
    assert '"promptLength": "1"' in json.dumps(frame)


async def test_a_review_that_is_killed_in_the_middle_asks_only_the_open_question_again(
    world: World,
) -> None:
    review = (REPOSITORY / "examples" / "code_review.py").read_text(encoding="utf-8")
    assert THINKS in review
    world.write("code_review.py", review.replace(THINKS, THINKS_UNTIL_IT_IS_KILLED))
    code = world.root / "code"
    code.mkdir()
    for name in "abc":
        (code / f"{name}.py").write_text("try:\n    go()\nexcept Exception:\n    pass\n")
    world.start_pool(workers=1)
    await world.start("r", "code_review.py", {"path": "code", "ledger": "ledger.txt"})
    await world.until_ledger("asked 2")
    os.kill(await world.owner_pid("r"), signal.SIGKILL)
    await world.until_status("r", "finished")
    outputs = await world.outputs("r")
    assert sorted(outputs["report"].splitlines()[1:]) == [
        f"code/{name}.py:3: does not say why" for name in "abc"
    ]
    assert world.ledger() == {
        **{f"asked {number}": 1 + (number == 2) for number in range(5)},
        **{f"answered {number}": 1 for number in range(5)},
    }
    finished = Counter(name for _, _, _, name, state in await rows(world) if state == "finished")
    assert finished == {"script": 5, "grep": 1, "read": 3}
    ends = [event["nodeId"] for event in await world.events("r") if event["type"] == "NodeFinished"]
    assert ends == ["review", "report"]
