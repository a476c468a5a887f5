"""Questions to people as the engine sees them: choices, forms, and what becomes of an answer that does not fit."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from smithers import Approval, HumanTask, Parallel, Sequence, Task
from smithers.errors import InvalidTree
from smithers.states import NodeState, RunStatus
from smithers.tree import OnTimeout
from tests.support.engine import World


class Answer(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def is_short(cls, text: str) -> str:
        if len(text) > 3:
            raise ValueError("too long")
        return text


def choosing(mode: Any, **options: Any) -> World:
    return World(lambda _ctx: Approval("a", title="?", mode=mode, options=["x", "y"], **options))


@pytest.mark.parametrize(
    ("mode", "decision", "field"),
    [("select", {"selected": "y"}, "selected"), ("rank", {"ranked": ["y", "x"]}, "ranked")],
)
def test_a_choice_stands_in_the_output(mode, decision, field):
    world = choosing(mode).begin()
    assert world.rows.requests[world.key("a")]["options"] == ["x", "y"]
    world.approve("a", decision=decision)
    assert world.output("a")[field] == decision[field]
    assert world.output("a")["approved"] is True


@pytest.mark.parametrize(
    ("mode", "decision", "field"),
    [("select", {"selected": "y"}, "selected"), ("rank", {"ranked": ["y", "x"]}, "ranked")],
)
def test_a_choice_counts_as_it_was_asked_for_whatever_the_tree_offers_by_now(mode, decision, field):
    def build(ctx: Any) -> Any:
        options = ctx.output_maybe("options") or ["x", "y"]
        asking = Approval("a", title="?", mode=mode, options=options)
        return Parallel(asking, Task("options", lambda: ["z"]))

    world = World(build).begin().finish("options", value=["z"])
    world.approve("a", decision=decision)
    assert world.output("a")[field] == decision[field]
    assert world.rows.status is RunStatus.FINISHED


def test_a_choice_that_nobody_asked_for_is_none():
    world = World(lambda _ctx: Approval("a", title="?")).begin()
    world.approve("a", decision={"selected": "x"})
    assert world.output("a")["selected"] is None


@pytest.mark.parametrize(
    ("waiting", "answer"),
    [
        (Approval("review", title="Really?"), None),
        (HumanTask("review", prompt="Say", output=Answer), {"text": "yes"}),
    ],
    ids=["approval", "form"],
)
def test_an_answer_counts_where_its_node_was_of_another_kind_before_it_asked(waiting, answer):
    def build(ctx: Any) -> Any:
        return [Task("a", 1), waiting if ctx.output_maybe("a") else Task("review", 2)]

    world = World(build).begin().finish("a", value=1)
    world.approve("review", decision=answer)
    assert world.events.count("ApprovalRequested review") == 1
    assert world.state("review") is NodeState.FINISHED


def test_who_denies_a_choice_need_not_choose():
    world = choosing("select", on_deny="continue").begin().deny("a")
    assert world.output("a")["approved"] is False
    assert world.output("a")["selected"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "select"},
        {"options": ["a"]},
        {"mode": "rank", "options": ["a", "a"]},
        {"mode": "select", "options": "abc"},
    ],
)
def test_options_go_with_a_mode_that_has_them(wrong):
    with pytest.raises(InvalidTree):
        Approval("a", title="?", **wrong)


def test_a_form_may_bound_a_number_beyond_64_bits():
    class Wide(BaseModel):
        n: int = Field(le=2**70)

    world = World(lambda _ctx: HumanTask("f", prompt="Say", output=Wide)).begin()
    request = world.rows.requests[world.key("f")]
    assert request["schema"]["properties"]["n"]["maximum"] == 2**70


def test_a_form_is_asked_by_its_schema_and_its_answer_is_the_output():
    world = World(lambda _ctx: HumanTask("f", prompt="Say", output=Answer)).begin()
    request = world.rows.requests[world.key("f")]
    assert (request["title"], request["mode"]) == ("Say", "form")
    assert request["schema"]["required"] == ["text"]
    assert world.fact("f").kind == "human-task"
    world.approve("f", decision={"text": "yes"})
    assert world.output("f") == {"text": "yes"}
    assert world.events[-2:] == ["NodeFinished f 1", "RunFinished"]


def test_an_answer_that_only_the_model_refuses_is_asked_for_again_and_the_time_runs_on():
    world = World(lambda _ctx: HumanTask("f", prompt="Say", output=Answer, timeout=60)).begin()
    due_ms = world.fact("f").due_ms
    world.pass_s(10).approve("f", decision={"text": "much too long"})
    assert "too long" in str(world.rows.requests[world.key("f")]["errors"])
    assert world.fact("f").due_ms == due_ms
    world.approve("f", decision={"text": "ok"})
    assert world.output("f") == {"text": "ok"}


def test_a_form_that_is_asked_again_when_its_time_is_over_times_out():
    """Its time-out was refused, as an answer had come first; that answer does not fit the model."""
    form = HumanTask("f", prompt="Say", output=Answer, timeout=5)
    world = World(lambda _ctx: Parallel(Task("t", 1), form)).begin()
    due_ms = world.fact("f").due_ms
    assert due_ms is not None
    world.run.pass_time(due_ms)
    assert world.run.turn.timeouts
    world.run.turn.timeouts.clear()
    world.approve("f", decision={"text": "much too long"}).finish("t").pass_s(6)
    assert world.error.code == "WAIT_TIMED_OUT"


@pytest.mark.parametrize(
    ("on_timeout", "end"),
    [("fail", "RunFailed"), ("continue", "RunFinished"), ("skip", "RunFinished")],
)
def test_a_form_that_nobody_fills_in(on_timeout, end):
    world = World(
        lambda _ctx: HumanTask("f", prompt="?", output=Answer, timeout=5, on_timeout=on_timeout)
    ).begin()
    world.pass_s(6)
    assert world.events[-1] == end
    expected = {"fail": "failed", "continue": "finished", "skip": "skipped"}[on_timeout]
    assert world.state("f") == expected
    if on_timeout == OnTimeout.FAIL:
        assert world.error.code == "WAIT_TIMED_OUT"


class Leaving(BaseModel):
    @classmethod
    def __get_pydantic_json_schema__(cls, *_how: Any) -> Any:
        raise SystemExit(3)


NO_JSON: Any = object()


class Unwritable(BaseModel):
    model_config = ConfigDict(json_schema_extra={"x": NO_JSON})


@pytest.mark.parametrize("model", [World, Leaving, Unwritable, "Answer", []])
def test_what_is_no_form_fails_the_run_by_name(model):
    world = World(lambda _ctx: HumanTask("f", prompt="?", output=model)).begin()
    assert world.error.code == "RENDER_FAILED"
    assert "HumanTask('f'" in world.error.message


def test_a_form_has_a_renders_time_for_its_schema():
    world = World(lambda _ctx: HumanTask("f", prompt="Say", output=Answer)).begin()
    assert world.render_count == 2  # what was called within its time: the builder, and this


def test_a_no_that_is_heard_at_take_up_asks_nothing_more():
    world = World(
        lambda _ctx: Sequence(Approval("a", title="?"), Approval("b", title="?"), Task("c", 1))
    ).begin()
    world.deny("a")
    assert "ApprovalRequested b" not in world.events
    assert world.state("b") == "pending"
