"""Rehearsals: a workflow in a test of its author's, people and time played by the test."""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final

import pytest
from pydantic import BaseModel, ValidationError, field_validator
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from smithers import (
    Approval,
    ApprovalDecision,
    Budget,
    Context,
    ContinueAsNew,
    HumanTask,
    Parallel,
    Retry,
    Sequence,
    Signal,
    Subflow,
    Task,
    Timer,
    Try,
    Workflow,
    workflow,
)
from smithers.store.refusals import (
    FormMisfit,
    NodeNotWaiting,
    NotAllowed,
    RunExists,
    RunNotActive,
    RunNotFound,
)
from smithers.testing import Question, Rehearsal, RehearsalTimeout
from tests.support.waiting import until

DAY_S = 24 * 3600


class Brief(BaseModel):
    topic: str


class Stars(BaseModel):
    stars: int


def write(topic: str) -> str:
    return f"all about {topic}"


@workflow(input=Brief)
def publish(ctx: Context[Brief]):
    draft = ctx.output_maybe("write", str)
    decision = ctx.output_maybe("approve", ApprovalDecision)
    return Sequence(
        Task("write", lambda: write(ctx.input.topic)),
        Approval("approve", title="Publish?", summary=draft, on_deny="continue"),
        decision and decision.approved and Task("publish", lambda: draft and draft.upper()),
    )


@workflow
def patient(_ctx):
    return Sequence(
        Timer("night", duration=DAY_S),
        Signal("paid", timeout=DAY_S, on_timeout="continue"),
        Task("end", lambda: "over"),
    )


@workflow
def rated(ctx):
    return Sequence(
        HumanTask("rate", prompt="How many?", output=Stars),
        Task("tell", lambda: ctx.output("rate", Stars).stars),
    )


@workflow
def breaks(_ctx):
    return Task("cross", lambda: 1 / 0, retries=1, retry=Retry(initial=3600, maximum=3600))


@workflow
def stuck(_ctx):
    return Task("wait", Never())


class Never:
    async def __call__(self) -> None:
        import asyncio

        await asyncio.Event().wait()


@pytest.fixture
def _no_thread_outlives_its_test() -> None:
    """In place of what holds elsewhere: bodies run in the rehearsal's threads, and it is that of all tests here."""


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Rehearsal]:
    with Rehearsal() as opened:
        yield opened


def test_a_run_stops_at_its_question_and_goes_on_with_the_answer(rehearsal: Rehearsal) -> None:
    run = rehearsal.start(publish, {"topic": "ferrets"}).wait()
    assert run.status == "waiting-approval"
    (question,) = run.questions
    assert (question.node_id, question.title) == ("approve", "Publish?")
    assert question.summary == "all about ferrets"
    run.say("approve", True, by="ada")
    assert run.wait().status == "finished"
    assert run.output == "ALL ABOUT FERRETS"
    assert run.states() == dict.fromkeys(["write", "approve", "publish"], "finished")
    told = [event["type"] for event in run.events]
    assert (told[0], told[-1]) == ("RunStarted", "RunFinished")
    with pytest.raises(NodeNotWaiting):
        run.say("approve", False)


def test_a_child_that_a_workflow_starts_is_rehearsed_with_it(rehearsal: Rehearsal) -> None:
    @workflow
    def child(_ctx: Context[object]) -> Task:
        return Task("x", "done")

    @workflow(output="s")
    def parent(_ctx: Context[object]) -> Subflow:
        return Subflow("s", child)

    run = rehearsal.start(parent).wait()
    assert (run.status, run.output) == ("finished", "done")


@workflow
def asked(_ctx: Context[object]) -> Sequence:
    return Sequence(Approval("ok", title="?"), Task("end", lambda: "over"))


def test_a_child_is_played_as_its_parent_is(rehearsal: Rehearsal) -> None:
    @workflow(output="s")
    def parent(_ctx: Context[object]) -> Subflow:
        return Subflow("s", asked)

    run = rehearsal.start(parent).wait()
    assert run.status == "waiting-event"
    child = run.child("s")
    assert [question.node_id for question in child.questions] == ["ok"]
    child.say("ok", True)
    assert (run.wait().status, run.output) == ("finished", "over")
    assert child.status == "finished"


def test_a_child_that_has_not_been_started_is_not_found(rehearsal: Rehearsal) -> None:
    @workflow
    def parent(_ctx: Context[object]) -> Sequence:
        return Sequence(Approval("first", title="?"), Subflow("s", asked))

    child = rehearsal.start(parent).wait().child("s")
    with pytest.raises(RunNotFound):
        child.wait()
    with pytest.raises(RunNotFound):
        _ = child.status
    with pytest.raises(RunNotFound):
        _ = child.events


def test_a_run_goes_on_with_its_own_of_two_workflows_of_one_name(rehearsal: Rehearsal) -> None:
    def make(said: str) -> Workflow[Any]:
        @workflow
        def says(_ctx: Context[object]) -> Sequence:
            return Sequence(Approval("ok", title="?"), Task("say", said))

        return says

    first = rehearsal.start(make("one")).wait()
    rehearsal.start(make("two")).wait()
    first.say("ok", True)
    assert first.wait().output == "one"


def test_what_a_run_goes_on_as_is_followed(rehearsal: Rehearsal) -> None:
    @workflow
    def nightly(ctx: Context[object]) -> Any:
        nights = (ctx.carried or {"nights": 0})["nights"]
        return Task("end", nights) if nights else ContinueAsNew({"nights": 1})

    run = rehearsal.start(nightly).wait()
    assert run.status == "continued"
    assert run.next().wait().status == "finished"


def test_a_question_to_some_is_answered_by_none_but_them(rehearsal: Rehearsal) -> None:
    @workflow
    def guarded(_ctx: Context[object]) -> Approval:
        return Approval("ok", title="?", allowed_users=["ann"], allowed_scopes=["releases"])

    run = rehearsal.start(guarded).wait()
    for by, scopes in (("bob", ["releases"]), ("ann", []), ("ann", ["runs:read"])):
        with pytest.raises(NotAllowed):
            run.say("ok", True, by=by, scopes=scopes)
    run.say("ok", True, by="ann", scopes=["releases"])
    assert run.wait().status == "finished"


def test_people_of_a_script_answer_by_themselves(rehearsal: Rehearsal) -> None:
    asked: list[Question] = []

    def think(question: Question) -> bool:
        asked.append(question)
        return False

    run = rehearsal.start(publish, {"topic": "foxes"}, people={"approve": think}).wait()
    assert (run.status, run.states().get("publish")) == ("finished", None)
    assert [question.node_id for question in asked] == ["approve"]
    run = rehearsal.start(rated, people={"rate": {"stars": 4}}).wait()
    assert (run.status, run.output) == ("finished", 4)


def test_an_answer_that_does_not_fit_its_form_is_refused(rehearsal: Rehearsal) -> None:
    misfit = {"stars": "many"}
    run = rehearsal.start(rated).wait()
    with pytest.raises(FormMisfit) as caught:
        run.say("rate", misfit)
    assert [error["path"] for error in caught.value.details["errors"]] == [["stars"]]
    run.say("rate", {"stars": 4})
    assert (run.wait().status, run.output) == ("finished", 4)
    with pytest.raises(FormMisfit):
        rehearsal.start(rated, people={"rate": misfit}).wait()


def test_people_of_a_script_answer_while_a_body_runs(rehearsal: Rehearsal) -> None:
    @workflow
    def until_told(ctx: Context[object]) -> Parallel:
        is_told = ctx.output_maybe("stop") is not None
        return Parallel(not is_told and Task("wait", Never()), Approval("stop", title="?"))

    run = rehearsal.start(until_told, people={"stop": True}).wait()
    assert run.status == "finished"
    assert run.states()["wait"] == "cancelled"


def test_what_the_test_puts_in_place_of_a_function_is_called(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "write", lambda topic: f"nothing about {topic}")
    run = rehearsal.start(publish, {"topic": "owls"}, people={"approve": True}).wait()
    assert run.output == "NOTHING ABOUT OWLS"


# Nobody listens there: a question that reaches it fails.
NOWHERE: Final = OpenAIProvider(base_url="http://127.0.0.1:1/v1", api_key="none")
critic = Agent(OpenAIChatModel("gpt-5", provider=NOWHERE), name="critic", retries=0)


class Verdict(BaseModel):
    is_good: bool


@workflow
def judged(_ctx: Context[object]) -> Task[Verdict]:
    return Task("judge", agent=critic, prompt="Is it good?", output=Verdict)


def test_a_model_that_the_test_overrides_is_asked_in_place_of_the_agents_own(
    rehearsal: Rehearsal,
) -> None:
    with critic.override(model=TestModel(custom_output_args={"is_good": True})):
        run = rehearsal.start(judged)
    assert run.wait().output == {"is_good": True}, run.error


def test_a_model_that_the_test_gives_an_agent_is_asked(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic, "model", TestModel(custom_output_args={"is_good": False}))
    assert rehearsal.start(judged).wait().output == {"is_good": False}


def test_no_model_is_asked_where_the_test_forbids_it(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pydantic_ai.models.ALLOW_MODEL_REQUESTS", False)
    error = rehearsal.start(judged).wait().error
    assert error is not None
    assert "ALLOW_MODEL_REQUESTS" in error["message"]


def test_a_budget_that_is_spent_is_granted_by_people_of_the_script(rehearsal: Rehearsal) -> None:
    @workflow(budget=Budget(tokens=1))
    def frugal(_ctx: Context[object]) -> Sequence:
        return Sequence(
            Task("judge", agent=critic, prompt="Is it good?", output=Verdict),
            Task("again", agent=critic, prompt="Really?", output=Verdict, stream=True),
        )

    with critic.override(model=TestModel()):
        run = rehearsal.start(frugal, people={"budget": True}).wait()
    assert run.status == "finished", run.error
    granted = [event["nodeId"] for event in run.events if event["type"] == "ApprovalGranted"]
    assert granted == ["budget"]


mood: ContextVar[str] = ContextVar("mood", default="none")


async def feel() -> str:
    return mood.get()


def test_a_variable_of_the_test_has_the_value_in_bodies_that_it_had_at_the_start(
    rehearsal: Rehearsal,
) -> None:
    @workflow(output="sum")
    def moody(ctx: Context[object]) -> Any:
        if not ctx.carried:
            return ContinueAsNew({"again": True})
        feelings = {"plain": "plain", "awaited": "awaited", "child": "child"}
        return [
            Task("plain", mood.get),
            Approval("ok", title="?"),
            Task("awaited", feel),
            Subflow("child", moody_child),
            Task("sum", lambda plain, awaited, child: [plain, awaited, child], needs=feelings),
        ]

    @workflow
    def moody_child(_ctx: Context[object]) -> Task[str]:
        return Task("feel", mood.get)

    token = mood.set("glad")
    run = rehearsal.start(moody)
    mood.reset(token)
    other = rehearsal.start(moody)
    for each, felt in ((run, "glad"), (other, "none")):
        goes_on = each.wait().next(people={"ok": True}).wait()
        assert goes_on.output == [felt] * 3


def test_a_run_that_is_resumed_has_the_variables_of_whoever_resumes_it(
    rehearsal: Rehearsal,
) -> None:
    @workflow
    def touchy(_ctx: Context[object]) -> Task[float]:
        return Task("feel", lambda: 1 / len(mood.get()))

    token = mood.set("")
    run = rehearsal.start(touchy).wait()
    mood.reset(token)
    assert run.status == "failed"
    run.resume()
    assert run.wait().output == 0.25


def test_days_pass_in_a_moment(rehearsal: Rehearsal) -> None:
    run, paying = rehearsal.start(patient).wait(), rehearsal.start(patient).wait()
    assert run.status == "waiting-timer"
    rehearsal.advance(DAY_S - 60)
    assert run.wait().status == "waiting-timer"
    rehearsal.advance(61)
    assert run.wait().status == "waiting-event"
    paying.wait().signal("paid", {"amount": 12})
    assert paying.wait().status == "finished"
    assert run.status == "waiting-event"
    rehearsal.advance(DAY_S)
    assert run.wait().status == "finished"


def test_a_failure_is_told_and_a_back_off_passes_with_the_time(rehearsal: Rehearsal) -> None:
    run = rehearsal.start(breaks).wait()
    assert (run.status, run.attempts("cross")) == ("waiting-timer", 1)
    rehearsal.advance(2 * 3600)
    assert run.wait().status == "failed"
    assert run.attempts("cross") == 2
    assert run.error is not None
    assert run.error["name"] == "ZeroDivisionError"
    run.resume()
    assert run.wait().attempts("cross") == 3
    run.cancel()
    assert run.wait().status == "cancelled"


def test_what_cannot_be_started_or_never_rests_is_said(rehearsal: Rehearsal) -> None:
    with pytest.raises(ValidationError):
        rehearsal.start(publish, {"subject": "ferrets"})
    run = rehearsal.start(stuck, run_id="stuck")
    with pytest.raises(RunExists):
        rehearsal.start(stuck, run_id="stuck")
    with pytest.raises(RehearsalTimeout, match="still running"):
        run.wait(limit_s=0.3)
    run.cancel()
    assert run.wait().status == "cancelled"


class Checked(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def check(cls, n: int) -> int:
        if forbidden:
            raise KeyError(f"secret {n}")
        return n


forbidden: list[int] = []


@workflow
def edited(_ctx):
    return Sequence(
        Task("make", lambda: {"n": 7}, output=Checked),
        Task("edit", lambda: forbidden.append(7)),
        Task("use", lambda made: made.n, needs={"made": "make"}, continue_on_fail=True),
        Task("end", lambda: "over"),
    )


def test_an_output_that_its_model_takes_no_more_fails_who_needs_it(rehearsal: Rehearsal) -> None:
    run = rehearsal.start(edited).wait()
    assert run.status == "finished"
    (failed,) = [event["error"] for event in run.events if event["type"] == "NodeFailed"]
    assert failed["code"] == "INVALID_OUTPUT"
    assert failed["message"] == "the output of make does not fit Checked: KeyError"


def test_a_run_that_cannot_even_be_taken_up_fails_and_the_others_go_on(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("worker.executor.build_renderer", lambda _workflow, **_how: 1 / 0)
        run = rehearsal.start(breaks).wait()
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["code"] == "SERVER_ERROR"
    after = rehearsal.start(publish, {"topic": "ferrets"}).wait()
    assert after.status == "waiting-approval"


@workflow
def asks_in_the_end(_ctx):
    return Try(
        "t",
        Approval("begin", title="Begin?"),
        finally_=[
            Approval("keep", title="Keep it?", on_deny="continue"),
            Signal("paid", timeout=DAY_S),
            Task("tidy", "tidied"),
        ],
    )


def test_what_a_cancelled_run_asks_while_it_cleans_up_is_answered(rehearsal: Rehearsal) -> None:
    run = rehearsal.start(asks_in_the_end).wait()
    run.cancel()
    until(lambda: run.states().get("keep") == "waiting-approval", "it asks in the end")
    with pytest.raises(NodeNotWaiting):
        run.say("begin", True)
    run.say("keep", False)
    until(lambda: run.states().get("paid") == "waiting-event", "it waits for the signal")
    run.signal("paid")
    assert run.wait().status == "cancelled"
    states = run.states()
    assert states.pop("begin") == "cancelled"
    assert states == dict.fromkeys(["keep", "paid", "tidy"], "finished")
    with pytest.raises(RunNotActive):
        run.signal("paid")


@workflow
def asks_for_a_moment(_ctx):
    return Try(
        "t",
        Approval("begin", title="Begin?"),
        finally_=[
            Approval("keep", title="Keep it?", timeout=5, on_deny="continue"),
            Task("tidy", "tidied"),
        ],
    )


def test_what_a_cancelled_run_asks_times_out_as_any_question(rehearsal: Rehearsal) -> None:
    run = rehearsal.start(asks_for_a_moment).wait()
    run.cancel()
    run.wait()
    rehearsal.advance(6)
    assert run.wait().status == "cancelled"
    assert run.states()["tidy"] == "finished"
