"""Questions to agents: answers that fit, agents in their order, and calls that are recalled instead of made."""

import re
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, field_validator
from pydantic_ai import Agent
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from smithers.agents import AgentAnswer, TokenUsage, ask_model
from smithers.agents.answers import MAX_TOLD_CALLS, answer
from smithers.errors import InvalidOutput, InvalidTree
from smithers.ids import RunId
from smithers.store.tool_calls import ToolCallRow
from smithers.telemetry.spans import Span
from smithers.telemetry.tracing import RunTrace, Tracer
from smithers.tools import ToolError, tool
from smithers.tree import Ask, Task
from tests.support.openai_wire import Question, Say, serving_openai
from tests.support.tools import Records, lending_tools, row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "agents.md"


class Verdict(BaseModel):
    score: int


class Scripted:
    """An agent of one's own: says one thing after another, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *values: Any) -> None:
        self._values = list(values)
        self.prompts: list[str] = []

    async def run(self, prompt: str, *, output: Any, tools: Any) -> AgentAnswer:
        self.prompts.append(prompt)
        value = self._values.pop(0)
        if isinstance(value, Exception):
            raise value
        if callable(value):
            value = await value({tool.name: tool for tool in tools})
        usage = TokenUsage(agent=self.name, model="none", input_tokens=2, output_tokens=1)
        return AgentAnswer(value, [usage])


@tool
async def charge(amount: int) -> str:
    """Take money."""
    if amount > 9:
        raise ToolError("too much")
    return f"{amount} taken"


def ask(*agents: Any, repairs: int = 2) -> Ask:
    return Ask.of(
        agents, "How good?", tools=[charge], repairs=repairs, is_streamed=False, where="Task('t')"
    )


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    with lending_tools(tmp_path) as (_, records):
        yield records


async def test_an_answer_that_does_not_fit_is_given_back(records: Records) -> None:
    agent = Scripted({"score": "high"}, {"score": 4})
    assert await answer(ask(agent), "How good?", Verdict) == {"score": 4}
    first, second = agent.prompts
    assert first == "How good?"
    assert second.startswith(first)
    assert '"score":"high"' in second
    assert "valid integer" in second
    assert len(records.usage) == 2


async def test_repairs_are_bounded(records: Records) -> None:
    agent = Scripted({"score": "a"}, {"score": "b"}, {"score": "c"})
    with pytest.raises(InvalidOutput, match="does not fit Verdict"):
        await answer(ask(agent, repairs=1), "How good?", Verdict)
    assert len(agent.prompts) == 2


async def test_the_next_agent_is_asked_when_one_raises(records: Records) -> None:
    broken, sound = Scripted(ConnectionError("away")), Scripted({"score": 1})
    assert await answer(ask(broken, sound), "How good?", Verdict) == {"score": 1}
    with pytest.raises(OSError, match="last"):
        await answer(ask(Scripted(KeyError()), Scripted(OSError("last"))), "How good?", Verdict)


async def test_a_tool_of_an_agent_is_recorded_and_its_failure_told(records: Records) -> None:
    async def use(tools: Any) -> Any:
        assert tools["charge"].parameters["properties"] == {
            "amount": {"title": "Amount", "type": "integer"}
        }
        with pytest.raises(ToolError, match="too much"):
            await tools["charge"].call({"amount": 10})
        return [await tools["charge"].call({"amount": 5})]

    assert await answer(ask(Scripted(use)), "How good?", None) == ["5 taken"]
    assert records.lines == [
        "1 charge started",
        "1 charge failed",
        "2 charge started",
        "2 charge finished",
    ]


async def test_what_a_tool_has_called_is_passed_over_when_the_tool_is_recalled(
    tmp_path: Path,
) -> None:
    asked = []

    async def ask_again() -> str:
        asked.append(1)
        return "new"

    made = (
        row(1, "outer", '{"amount":1}', output='"done"'),
        row(2, "inner", "{}", output='"within"', parent_call_no=1),
        row(3, "m", '{"no":1}', kind="model", output='"old"', is_side_effect=False),
        row(4, "m", '{"no":2}', kind="model", output='"older"', is_side_effect=False),
    )

    @tool(name="outer")
    async def outer(amount: int) -> str:
        """Call another."""
        raise AssertionError("was done")

    with lending_tools(tmp_path, made) as (_, records):
        assert await outer.perform_once(outer(1)) == "done"
        assert await ask_model("m", {"no": 1}, ask_again) == "old"
        assert asked == []
        assert await ask_model("m", {"no": 3}, ask_again) == "new"
        assert await ask_model("m", {"no": 2}, ask_again) == "new"
        assert records.lines == ["4 m started", "4 m finished", "5 m started", "5 m finished"]


async def test_what_a_later_attempt_did_another_way_stands(tmp_path: Path) -> None:
    async def ask_again() -> str:
        return "new"

    model = {"kind": "model", "is_side_effect": False}
    made = (
        row(1, "m", '{"no":1}', output='"one"', **model),
        row(2, "m", '{"no":2}', output='"two"', **model),
        row(3, "m", '{"no":3}', output='"three"', **model),
        row(2, "m", '{"no":8}', output='"eight"', attempt=2, **model),
    )
    with lending_tools(tmp_path, made):
        found = [await ask_model("m", {"no": number}, ask_again) for number in (1, 8, 3)]
    assert found == ["one", "eight", "new"]


async def test_a_question_that_failed_before_the_death_is_asked_again(tmp_path: Path) -> None:
    async def ask_again() -> str:
        return "now"

    error = '{"name":"ConnectionError","message":"away"}'
    made = (row(1, "m", "{}", kind="model", state="failed", error=error),)
    with lending_tools(tmp_path, made) as (_, records):
        assert await ask_model("m", {}, ask_again) == "now"
        assert records.lines == ["1 m started", "1 m finished"]


class Unpriced(FunctionModel):
    """A model whose answers have another name than it has, or none."""

    def __init__(self, name: str | None) -> None:
        super().__init__(lambda _messages, _info: ModelResponse(parts=[TextPart("fine")]))
        self._answers_as = name

    async def request(self, *given: Any, **more: Any) -> ModelResponse:
        return replace(await super().request(*given, **more), model_name=self._answers_as)


@pytest.mark.parametrize("name", [None, "", "nobody-s-model"])
async def test_an_answer_whose_price_nobody_knows_is_an_answer(
    records: Records, name: str | None
) -> None:
    agent: Agent[None, str] = Agent(Unpriced(name))
    assert await answer(ask(agent), "How good?", str) == "fine"
    assert [usage.cost for usage in records.usage] == [None]


async def test_an_answer_is_not_lost_where_the_table_of_prices_breaks(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_response: ModelResponse) -> None:
        raise TypeError("no table")

    monkeypatch.setattr(ModelResponse, "cost", break_down)
    agent: Agent[None, str] = Agent(Unpriced("gpt-5"))
    assert await answer(ask(agent), "How good?", str) == "fine"
    assert [usage.cost for usage in records.usage] == [None]


async def test_a_tools_parameters_may_have_any_name(records: Records) -> None:
    @tool
    async def pick(tool: str, arguments: int) -> str:
        """Take a tool."""
        return f"{tool} {arguments}"

    def ask_for_it(messages: list[Any], _info: object) -> ModelResponse:
        match messages[-1]:
            case ModelRequest(parts=[ToolReturnPart(content=content)]):
                return ModelResponse([TextPart(f"a {content}")])
            case _:
                return ModelResponse([ToolCallPart("pick", {"tool": "hammer", "arguments": 1})])

    agent = Agent(FunctionModel(ask_for_it))
    asked = Ask.of((agent,), "Which?", tools=[pick], repairs=0, is_streamed=False, where="t")
    assert await answer(asked, "Which?", str) == "a hammer 1"


def died_with_a_charge_of_the_stand_in() -> tuple[ToolCallRow, ...]:
    """The calls of an attempt whose first agent's question failed, and whose second charged, before the process died."""
    model = {"kind": "model", "is_side_effect": False}
    away = '{"name":"ConnectionError","message":"away"}'
    return (
        row(1, "first", "{}", state="failed", error=away, **model),
        row(2, "second", "{}", output='"charge them"', **model),
        row(3, "charge", '{"amount":5}', output='"5 taken"'),
    )


async def test_a_question_that_failed_fails_again_where_the_agents_went_on_from_that(
    tmp_path: Path,
) -> None:
    async def ask_nobody() -> str:
        raise AssertionError("asked again")

    async def ask_first(_tools: Any) -> Any:
        return await ask_model("first", {}, ask_nobody)

    async def ask_second(tools: Any) -> Any:
        await ask_model("second", {}, ask_nobody)
        return await tools["charge"].call({"amount": 5})

    with lending_tools(tmp_path, died_with_a_charge_of_the_stand_in()) as (_, records):
        first, second = Scripted(ask_first), Scripted(ask_second)
        assert await answer(ask(first, second), "How good?", None) == "5 taken"
    assert records.lines == []


async def test_a_question_that_was_cancelled_is_asked_again(tmp_path: Path) -> None:
    async def ask_again() -> str:
        return "now"

    first, second, charged = died_with_a_charge_of_the_stand_in()
    cancelled = replace(first, error='{"name":"CancelledError","message":"CancelledError"}')
    with lending_tools(tmp_path, (cancelled, second, charged)):
        assert await ask_model("first", {}, ask_again) == "now"


@pytest.mark.parametrize("amount", [5, 6])
async def test_effects_of_an_attempt_that_went_another_way_are_told_before_they_are_had_again(
    tmp_path: Path, amount: int
) -> None:
    async def ask_another() -> str:
        return "charge them"

    told: list[str] = []

    async def charge_them(tools: Any) -> Any:
        await ask_model("another", {}, ask_another)
        try:
            return await tools["charge"].call({"amount": amount})
        except ToolError as error:
            told.append(str(error))
        return await tools["charge"].call({"amount": amount})

    died = died_with_a_charge_of_the_stand_in()
    with lending_tools(tmp_path, died) as (_, records):
        found = await answer(ask(Scripted(charge_them)), "How good?", None)
        assert found == f"{amount} taken"
    assert '- {"amount":5}: finished, "5 taken"' in told[0]
    assert records.lines == [
        *("1 another started", "1 another finished"),
        "2 charge failed",
        *("3 charge started", "3 charge finished"),
    ]
    # And so it is where that attempt dies in its turn: it is told what it was told, and then of what is not known.
    model = {"kind": "model", "is_side_effect": False, "attempt": 2}
    lost = '{"name":"CallLost","message":"told","code":"TOOL_CALL_LOST"}'
    given = f'{{"amount":{amount}}}'
    died_again = (
        *died,
        row(1, "another", "{}", output='"charge them"', **model),
        row(2, "charge", given, state="failed", error=lost, attempt=2),
        row(3, "charge", given, state="started", attempt=2),
    )
    with lending_tools(tmp_path, died_again), pytest.raises(ToolError, match="nobody knows"):
        await answer(ask(Scripted(charge_them)), "How good?", None)
    assert told[1] == "told"


async def test_effects_of_earlier_attempts_are_told_with_the_prompt(tmp_path: Path) -> None:
    made = (row(1, "charge", '{"amount":5}', output='"5 taken"', is_recallable=False),)
    agent = Scripted("fine")
    with lending_tools(tmp_path, made):
        await answer(ask(agent), "How good?", None)
    assert agent.prompts[0].endswith('- charge {"amount":5}: finished, "5 taken"')


async def test_calls_that_are_too_many_to_be_told_are_counted(tmp_path: Path) -> None:
    made = tuple(
        row(number, "charge", f'{{"amount":{number}}}', is_recallable=False)
        for number in range(1, MAX_TOLD_CALLS + 4)
    )
    agent = Scripted("fine")
    with lending_tools(tmp_path, made):
        await answer(ask(agent), "How good?", None)
    told = agent.prompts[0].splitlines()
    assert "- 3 earlier calls are not listed here." in told
    assert '{"amount":4}: ' in told[-MAX_TOLD_CALLS]
    assert '{"amount":3}: ' not in agent.prompts[0]


@pytest.mark.parametrize(
    "harmless",
    [{"is_idempotent": True}, {"is_side_effect": False}, {"kind": "model"}],
)
async def test_what_may_be_done_again_is_not_told(tmp_path: Path, harmless: Any) -> None:
    made = (row(1, "charge", '{"amount":5}', is_recallable=False, **harmless),)
    agent = Scripted("fine")
    with lending_tools(tmp_path, made):
        await answer(ask(agent), "How good?", None)
    assert agent.prompts == ["How good?"]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_openais_provider_is_asked_over_its_wire(records: Records, is_streamed: bool) -> None:
    async def script(question: Question) -> Say:
        if question.step == 0:
            return Say(text="I charge now.", calls=(("charge", {"amount": 5}),))
        assert question.last == "5 taken"
        return Say(text="charged", tokens=(30, 3))

    async with (
        serving_openai(script) as wire,
        AsyncOpenAI(base_url=wire.url, api_key="none") as client,
    ):
        provider = OpenAIProvider(openai_client=client)
        agent = Agent(OpenAIChatModel("gpt-4o-mini", provider=provider), name="payer")
        question = Ask.of(
            agent, "Pay.", tools=[charge], repairs=0, is_streamed=is_streamed, where="Task('t')"
        )
        assert await answer(question, "Pay.", None) == "charged"
    assert {question.is_streamed for question in wire.questions} == {is_streamed}
    assert [(each.input_tokens, each.output_tokens) for each in records.usage] == [
        (20, 10),
        (30, 3),
    ]
    assert records.usage[1].cost == Decimal("0.0000063")
    assert records.said == (["I charge now.", "charged"] if is_streamed else [])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"agent": object(), "prompt": "?"}, "object is no agent"),
        ({}, "nothing to do"),
        ({"agent": Scripted()}, "needs a prompt"),
        ({"prompt": "?"}, "NoneType is no agent"),
        ({"agent": [], "prompt": "?"}, "has no agent"),
        ({"agent": Scripted(), "prompt": "?", "do": 1}, "both something to do and an agent"),
        ({"agent": Scripted(), "prompt": "?", "needs": {"a": "b"}}, "use a function"),
        ({"agent": Scripted(), "prompt": "?", "tools": [print]}, "is no tool"),
        ({"agent": Scripted(), "prompt": "?", "repairs": -1}, "whole number from 0"),
    ],
)
def test_a_question_that_cannot_be_asked_is_no_task(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidTree, match=complaint):
        Task("t", **given)


def test_a_task_may_still_record_nothing() -> None:
    assert Task("t", None).do is None


async def test_what_the_page_shows_answers(records: Records) -> None:
    examples = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    judge: dict[str, Any] = {"__name__": "example"}
    echo: dict[str, Any] = {"__name__": "example"}
    for example, names in zip(examples, (judge, echo), strict=True):
        keyless = re.sub(r'Agent\("[^"]+"', 'Agent("test"', example)
        exec(compile(keyless, "agents.md", "exec", dont_inherit=True), names)
    task = judge["judge"].builder(None)
    verdict = await answer(task.ask, task.ask.prompt, task.output)
    assert isinstance(verdict, judge["Verdict"])
    assert {call.tool_name for call in records.calls if call.kind == "tool"} == {"read", "grep"}
    assert await answer(ask(echo["Echo"]()), "word", None) == {"text": "WORD"}


async def test_spans_name_the_agent_and_what_its_models_used(records: Records) -> None:
    def read_usage(_answer: Any) -> TokenUsage:
        return TokenUsage(agent="a", model="m", input_tokens=5, output_tokens=2)

    async def think(_tools: Any) -> Any:
        async def say() -> str:
            return "hm"

        return await ask_model("m", {}, say, read_usage=read_usage)

    told: list[Span] = []
    sender: Any = SimpleNamespace(
        put=told.append, attach=lambda _span: None, is_sampled=lambda *_: True
    )
    run = RunTrace(Tracer(sender), RunId("r"), "w", 1, None)
    run.make_current(run.span)
    await answer(ask(Scripted(think)), "How good?", None)
    model, agent = told
    assert model.name == "smithers.model"
    assert model.attributes["gen_ai.usage.input_tokens"] == 5
    assert agent.name == "smithers.agent"
    assert agent.attributes["gen_ai.agent.name"] == "scripted"
    assert "How good?" not in repr(model) + repr(agent)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"input_tokens": None}, TypeError),
        ({"output_tokens": True}, TypeError),
        ({"model": None}, TypeError),
        ({"cost": 0.1}, TypeError),
        ({"input_tokens": -1}, ValueError),
        ({"output_tokens": 2**63}, ValueError),
        ({"cost": Decimal("NaN")}, ValueError),
    ],
)
def test_what_was_used_up_is_checked_where_it_is_said(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    right: dict[str, Any] = {"agent": "a", "model": "m", "input_tokens": 0, "output_tokens": 1}
    TokenUsage(**right, cost=Decimal("0.1"))
    with pytest.raises(error, match="TokenUsage"):
        TokenUsage(**(right | wrong))


async def test_what_is_no_usage_is_its_agents_mistake(records: Records) -> None:
    class Vague:
        async def run(self, prompt: str, *, output: Any, tools: Any) -> AgentAnswer:
            return AgentAnswer("hi", [{"input_tokens": 1}])  # type: ignore[list-item]  # the mistake

    with pytest.raises(TypeError, match="is a TokenUsage, not dict"):
        await answer(ask(Vague()), "How good?", None)
    assert records.usage == []


async def test_a_model_that_looks_at_an_answer_does_so_in_a_thread(records: Records) -> None:
    class Judged(BaseModel):
        score: int

        @field_validator("score")
        @classmethod
        def think(cls, score: int) -> int:
            assert threading.current_thread() is not threading.main_thread()
            return score

    assert await answer(ask(Scripted({"score": 4})), "How good?", Judged) == {"score": 4}
