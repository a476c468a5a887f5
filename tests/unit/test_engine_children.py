"""Other runs that a run starts, as the engine sees them: children, and what it goes on as."""

import orjson
import pytest
from pydantic import BaseModel

from smithers import ContinueAsNew, Loop, Parallel, Subflow, Task, Try, workflow
from smithers.engine.children import child_run_id, next_run_id
from smithers.engine.facts import Problem
from smithers.errors import InvalidTree
from smithers.ids import RunId
from smithers.states import NodeState, RunStatus
from tests.support.engine import World


class Given(BaseModel):
    amount: int


@workflow(input=Given, queue="heavy")
def small(_ctx):
    return Task("x", 1)


class TestSubflow:
    def test_a_child_is_started_with_its_parents_turn_and_nobody_holds_the_parent(self):
        world = World(lambda _ctx: [Subflow("s", small, {"amount": 3}), Task("t", 1)]).begin()
        (child,) = world.rows.children
        assert child.run_id == child_run_id(RunId("r1"), world.key("s"))
        assert (child.workflow_name, child.queue) == ("small", "heavy")
        assert child.workflow_export == "small"
        assert child.input is not None
        assert orjson.loads(child.input) == {"amount": 3}
        assert world.rows.status is RunStatus.WAITING_EVENT
        assert world.progress is None

    def test_a_run_that_keeps_its_queue_starts_everything_in_it(self):
        @workflow(queue="own")
        def going_on(_ctx):
            return Subflow("s", small, {"amount": 3}), ContinueAsNew()

        world = World(going_on)
        world.renderer = world.renderer._replace(keeps_queue=True)
        world.begin().end_child("s")
        assert [child.queue for child in world.rows.children] == [None, None]

    def test_a_workflow_that_no_module_has_under_a_name_fails_the_node_by_name(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3}))
        world.renderer = world.renderer._replace(find_export=lambda _workflow: None)
        world.begin()
        assert world.error.code == "SOURCE_BROKEN"
        assert "'small'" in world.error.message
        assert not world.rows.children

    def test_its_output_is_the_nodes_output(self):
        world = World(lambda _ctx: [Subflow("s", small, Given(amount=3)), Task("t", 1)]).begin()
        world.end_child("s", value={"y": 2})
        assert world.output("s") == {"y": 2}
        assert world.under_way == ["t"]

    def test_an_input_that_does_not_fit_fails_the_node_by_name(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": "much"})).begin()
        assert (world.error.name, world.error.code) == ("InvalidInput", "INVALID_INPUT")
        assert world.error.message.startswith(
            "the input does not fit Given: amount: Input should be a valid integer"
        )

    def test_an_output_that_does_not_fit_fails_the_node(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3}, output=Given)).begin()
        assert world.end_child("s", value={"amount": "much"}).error.code == "INVALID_OUTPUT"

    @pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.CANCELLED])
    def test_its_failure_fails_the_node_and_names_it(self, status):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3})).begin()
        world.end_child("s", status=status, error=Problem("Boom", "it broke"))
        assert world.error.code == f"SUBFLOW_{status.upper()}"
        assert "it broke" in world.error.message
        assert world.error.details is not None
        assert world.error.details["childRunId"] == world.rows.children[0].run_id

    def test_its_failure_may_be_tolerated_or_caught(self):
        world = World(
            lambda _ctx: [
                Subflow("s", small, {"amount": 3}, continue_on_fail=True),
                Try("t", Subflow("u", small, {"amount": 3}), catch=Task("c", 1)),
            ]
        ).begin()
        world.end_child("s", status=RunStatus.FAILED)
        world.end_child("u", status=RunStatus.FAILED)
        assert world.under_way == ["c"]

    def test_an_input_that_does_not_fit_starts_nothing(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": "much"})).begin()
        assert world.error.code == "INVALID_INPUT"
        assert world.rows.children == []

    def test_each_iteration_has_a_child_of_its_own(self):
        world = World(
            lambda _ctx: Loop("l", Subflow("s", small, {"amount": 3}), max_iterations=2)
        ).begin()
        world.end_child("s").end_child("s#1")
        assert len({child.run_id for child in world.rows.children}) == 2
        assert world.rows.status is RunStatus.FINISHED

    def test_a_death_starts_no_second_child(self):
        world = World(lambda _ctx: Parallel(Subflow("s", small, {"amount": 3}), Task("t", 1)))
        world.begin().die()
        assert len(world.rows.children) == 1
        world.finish("t").end_child("s")
        assert world.rows.status is RunStatus.FINISHED

    def test_a_death_before_the_commit_starts_the_same_child(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3}), die_before=[1]).begin()
        assert len(world.rows.children) == 1

    def test_a_cancel_lets_go_of_it(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3})).begin().cancel()
        assert world.rows.abandoned == [world.key("s")]
        assert world.state("s") is NodeState.CANCELLED

    def test_one_that_is_let_go_of_in_the_turn_that_starts_it_never_begins(self):
        def build(_ctx):
            return Parallel(Subflow("s", small, {"amount": 3}), Subflow("u", small, {"amount": ""}))

        world = World(build).begin()
        assert world.error.code == "INVALID_INPUT"
        assert world.state("s") is NodeState.CANCELLED
        assert not world.rows.children
        assert not world.rows.abandoned
        assert not any(event.startswith("SubflowStarted") for event in world.events)

    def test_a_resume_takes_the_same_child_up_again(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3})).begin()
        world.end_child("s", status=RunStatus.FAILED).resume()
        first, second = world.rows.children
        assert first.run_id == second.run_id
        assert world.state("s") is NodeState.WAITING_EVENT
        assert world.end_child("s").rows.status is RunStatus.FINISHED

    def test_a_resume_does_not_take_the_end_that_the_cancel_before_it_brings(self):
        world = World(lambda _ctx: Parallel(Subflow("s", small, {"amount": 3}), Task("t", 1)))
        world.begin().cancel()
        asked_ms = world.now_ms
        world.pass_s(1).resume()
        world.end_child("s", status=RunStatus.CANCELLED, cancel_asked_ms=asked_ms)
        assert world.state("s") is NodeState.WAITING_EVENT
        assert world.events.count("SubflowStarted s") == 3
        assert world.finish("t").end_child("s").rows.status is RunStatus.FINISHED

    def test_a_cancel_of_the_child_after_that_fails_the_node(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3})).begin().cancel()
        world.pass_s(1).resume().pass_s(1)
        world.end_child("s", status=RunStatus.CANCELLED, cancel_asked_ms=world.now_ms)
        assert world.error.code == "SUBFLOW_CANCELLED"

    def test_subflows_that_are_nested_without_end_fail_by_name(self):
        world = World(lambda _ctx: Subflow("s", small, {"amount": 3}))
        world.renderer = world.renderer._replace(run_id=RunId("r" * 250))
        assert world.begin().error.code == "SUBFLOW_TOO_DEEP"

    def test_what_is_no_workflow_is_refused_where_it_is_written(self):
        with pytest.raises(InvalidTree):
            Subflow("s", lambda _ctx: None)

    def test_a_child_comes_after_its_parent_in_the_order_of_ids(self):
        parent = RunId("nightly")
        assert child_run_id(parent, World(small).key("s")) > parent


class TestContinueAsNew:
    def test_the_run_ends_and_another_goes_on_with_its_state(self):
        world = World(lambda _ctx: [Task("a", 1), ContinueAsNew({"page": 2})]).begin().finish("a")
        assert world.rows.status is RunStatus.CONTINUED
        (successor,) = world.rows.children
        assert successor.key is None
        assert (successor.run_id, successor.carried) == ("r1+1", '{"page":2}')
        kind, fields = world.rows.history[-1]
        assert kind == "RunContinuedAsNew"
        assert fields == {"newRunId": "r1+1", "iteration": 0, "carriedStateSize": 10}

    def test_what_else_is_under_way_is_stopped_first(self):
        world = World(
            lambda _ctx: Parallel(Task("a", 1), Task("b", 1), ContinueAsNew(depends_on=["a"])),
            aborts_at_once=False,
        ).begin()
        assert world.finish("a").under_way == ["b"]
        world.stop("b")
        assert world.rows.status is RunStatus.CONTINUED
        assert "NodeCancelled b 1 aborted" in world.events

    @pytest.mark.parametrize("retries", [0, 1])
    def test_what_raises_when_it_is_stopped_keeps_it_from_nothing(self, retries):
        world = World(
            lambda _ctx: Parallel(
                Task("a", 1), Task("b", 1, retries=retries), ContinueAsNew(depends_on=["a"])
            ),
            aborts_at_once=False,
        ).begin()
        world.finish("a").fail("b")
        assert world.rows.status is RunStatus.CONTINUED

    def test_what_is_to_be_done_in_the_end_is_done_before(self):
        world = World(
            lambda _ctx: Try("t", Task("a", 1), ContinueAsNew(), finally_=Task("f", 1))
        ).begin()
        assert world.finish("a").under_way == ["f"]
        assert world.finish("f").rows.status is RunStatus.CONTINUED

    def test_a_death_on_the_way_changes_nothing(self):
        world = World(
            lambda _ctx: Try("t", Task("a", 1), ContinueAsNew([1]), finally_=Task("f", 1))
        ).begin()
        world.finish("a").die()
        assert world.finish("f").rows.status is RunStatus.CONTINUED
        assert world.rows.children[-1].carried == "[1]"

    def test_a_cancel_on_the_way_wins(self):
        world = World(
            lambda _ctx: Parallel(Task("a", 1), Task("b", 1), ContinueAsNew(depends_on=["a"])),
            aborts_at_once=False,
        ).begin()
        assert world.finish("a").cancel().stop("b").rows.status is RunStatus.CANCELLED
        assert world.rows.children == []

    def test_a_state_that_is_too_large_fails_the_run(self):
        world = World(lambda _ctx: ContinueAsNew("x" * 2_000_000)).begin()
        assert world.error.code == "INVALID_OUTPUT"
        assert world.error.message.startswith("the state has ")

    def test_a_name_that_nobody_could_ask_for_is_not_given(self):
        world = World(lambda _ctx: ContinueAsNew())
        world.renderer = world.renderer._replace(run_id=RunId("r" * 254))
        assert world.begin().error.code == "RUN_ID_TOO_LONG"
        assert world.rows.children == []

    def test_names_count_up(self):
        assert next_run_id(RunId("a")) == "a+1"
        assert next_run_id(RunId("a+1")) == "a+2"
        assert next_run_id(RunId("a+b")) == "a+b+1"
