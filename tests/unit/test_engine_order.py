"""Who goes when: sequences, parallels and their limits, dependencies; and what an event stream shows of it."""

from typing import Any

import pytest

from smithers import Approval, Branch, Parallel, Sequence, Task, Timer
from smithers.states import NodeState, RunStatus
from tests.support.engine import World


def test_two_tasks_in_sequence_tell_their_story_in_the_order_of_the_wire():
    world = World(lambda _: [Task("a", 1), Task("b", 2)]).begin().finish("a").finish("b")
    assert world.events == [
        "RunStarted",
        "NodePending a",
        "NodePending b",
        "FrameCommitted 1",
        "NodeStarted a 1",
        "NodeFinished a 1",
        "NodeStarted b 1",
        "NodeFinished b 1",
        "RunFinished",
    ]


def test_a_retry_tells_its_story_in_the_order_of_the_wire():
    world = World(lambda _: Task("a", 1, retries=1)).begin()
    world.fail("a").try_next()
    world.finish("a")
    assert world.events_of("a")[1:] == [
        "NodeStarted a 1",
        "NodeFailed a 1",
        "NodeRetrying a 2",
        "NodeStarted a 2",
        "NodeFinished a 2",
    ]


def test_an_approval_tells_its_story_in_the_order_of_the_wire():
    world = World(lambda _: Task("a", 1, needs_approval=True)).begin().approve("a")
    assert world.events[3:] == [
        "ApprovalRequested a",
        "NodeWaitingApproval a",
        "RunStatusChanged waiting-approval",
        "ApprovalGranted a",
        "RunStarted",
        "NodeStarted a 1",
    ]


def test_a_result_and_what_follows_from_it_are_one_commit():
    world = World(lambda _: [Task("a", 1), Task("b", 2)]).begin()
    world.finish("a")
    assert world.commit_count == 2


def test_an_empty_tree_is_done_at_once():
    world = World(lambda _: []).begin()
    assert world.events == ["RunStarted", "FrameCommitted 1", "RunFinished"]


def test_none_and_booleans_and_nested_lists_are_no_obstacle():
    world = World(lambda _: [None, [True, [Task("a", 1)], (False,)], (Task(x, 1) for x in "bc")])
    world.begin().finish("a").finish("b").finish("c")
    assert world.is_over


def test_a_parallel_starts_all_and_ends_with_the_last():
    world = World(lambda _: [Parallel(Task("a", 1), Task("b", 1)), Task("c", 1)]).begin()
    assert world.under_way == ["a", "b"]
    assert world.finish("b").under_way == ["a"]
    assert world.finish("a").under_way == ["c"]


def test_results_that_come_together_stand_in_one_commit():
    world = World(lambda _: Parallel(Task("a", 1), Task("b", 1))).begin()
    assert world.finish("b", "a").commit_count == 2


def test_no_more_start_than_the_run_may_and_in_tree_order():
    world = World(lambda _: Parallel(Task(x, 1) for x in "cabd"), max_concurrency=2).begin()
    assert world.under_way == ["a", "c"]
    assert world.finish("a").under_way == ["b", "c"]


def test_a_parallel_has_a_limit_of_its_own():
    world = World(lambda _: Parallel(*(Task(x, 1) for x in "abc"), max_concurrency=2)).begin()
    assert world.under_way == ["a", "b"]
    assert world.finish("a").under_way == ["b", "c"]


def test_a_limit_counts_sequences_not_their_tasks():
    def build(_: Any) -> Parallel:
        pairs = [Sequence(Task(f"{x}1", 1), Task(f"{x}2", 1)) for x in "abc"]
        return Parallel(*pairs, max_concurrency=2)

    world = World(build).begin()
    assert world.under_way == ["a1", "b1"]
    assert world.finish("b1").under_way == ["a1", "b2"]
    assert world.finish("b2").under_way == ["a1", "c1"]


def test_a_limit_holds_in_an_outer_parallel_for_all_that_is_inside_one_child():
    def build(_: Any) -> Parallel:
        return Parallel(
            Task("a", 1), Parallel(Task("b", 1), Task("c", 1)), Task("d", 1), max_concurrency=1
        )

    world = World(build).begin()
    assert world.under_way == ["a"]
    assert world.finish("a").under_way == ["b", "c"]
    assert world.finish("b").under_way == ["c"]
    assert world.finish("c").under_way == ["d"]


def test_who_waits_for_others_takes_no_room_in_a_limited_parallel():
    def build(_: Any) -> Parallel:
        return Parallel(Task("last", 1, depends_on=["first"]), Task("first", 1), max_concurrency=1)

    world = World(build).begin()
    assert world.under_way == ["first"]
    assert world.finish("first").under_way == ["last"]


def test_what_is_under_way_keeps_its_room_when_something_is_put_before_it():
    def build(ctx: Any) -> Any:
        late = ctx.output_maybe("go") and Task("z", 1)
        return Parallel(
            Task("go", 1), Parallel(late, Task("a", 1), Task("b", 1), max_concurrency=1)
        )

    world = World(build).begin()
    assert world.finish("go", value=1).under_way == ["a"]
    assert world.finish("a").under_way == ["z"]


def test_a_wait_holds_its_place_in_a_limited_parallel():
    world = World(
        lambda _: Parallel(Approval("ok", title="?"), Task("a", 1), max_concurrency=1)
    ).begin()
    assert world.under_way == []
    assert world.approve("ok").under_way == ["a"]


def test_room_that_is_offered_to_a_settled_node_goes_to_the_next():
    def build(ctx: Any) -> Any:
        narrow = 1 if ctx.output_maybe("x") else 2
        waits = [Approval("a", title="?"), Approval("b", title="?")]
        inner = Parallel(waits, Task("c", 1), max_concurrency=narrow)
        return Parallel(Task("x", 1), Task("y", 1), inner)

    world = World(build).begin().finish("x", value=1).approve("b")
    assert world.under_way == ["y"]
    assert world.approve("a").under_way == ["c", "y"]


def test_a_dependency_reaches_across_groups():
    def build(_: Any) -> Parallel:
        return Parallel(
            Sequence(Task("a1", 1), Task("a2", 1)), Sequence(Task("b1", 1, depends_on=["a1"]))
        )

    world = World(build).begin()
    assert world.under_way == ["a1"]
    assert world.finish("a1").under_way == ["a2", "b1"]


def test_a_dependency_on_what_was_skipped_is_met_and_a_need_of_it_is_not():
    def build(_: Any) -> list[Task[Any]]:
        return [
            Task("a", 1, skip_if=True),
            Task("b", 1, depends_on=["a"]),
            Task("c", 1, needs={"a": "a"}),
        ]

    world = World(build).begin().finish("b")
    assert world.states() == {"a": "skipped", "b": "finished", "c": "skipped"}


def test_a_need_of_what_failed_and_was_tolerated_skips():
    world = World(
        lambda _: [Task("a", 1, continue_on_fail=True), Task("b", 1, needs={"x": "a"})]
    ).begin()
    world.fail("a")
    assert world.states() == {"a": "failed", "b": "skipped"}
    assert world.rows.status is RunStatus.FINISHED


def test_skips_follow_one_another():
    def build(_: Any) -> list[Task[Any]]:
        return [Task("a", 1, skip_if=True), *(Task(y, 1, needs={"x": x}) for x, y in ("ab", "bc"))]

    assert World(build).begin().states() == {"a": "skipped", "b": "skipped", "c": "skipped"}


@pytest.mark.parametrize(
    "tree",
    [
        lambda: Task("a", 1, depends_on=["nobody"]),
        lambda: Task("a", 1, needs={"x": "nobody"}),
        lambda: Task("a", 1, depends_on=["a"]),
        lambda: Sequence(Task("a", 1, depends_on=["b"]), Task("b", 1)),
        lambda: Parallel(Task("a", 1, depends_on=["b"]), Task("b", 1, depends_on=["a"])),
    ],
)
def test_what_can_never_be_met_fails_the_run_and_says_who_waits_for_whom(tree):
    world = World(lambda _: tree()).begin()
    assert world.rows.status is RunStatus.FAILED
    assert world.rows.error is not None
    assert world.error.code == "DEPENDENCY_UNMET"
    assert "a waits for " in world.error.message


def test_an_unmet_dependency_waits_for_as_long_as_something_else_goes_on():
    world = World(lambda _: Parallel(Task("a", 1, depends_on=["x"]), Task("b", 1))).begin()
    assert not world.is_over
    assert world.finish("b").rows.status is RunStatus.FAILED


def test_a_dependency_on_a_node_that_is_mounted_later_is_met():
    def build(ctx: Any) -> Any:
        return Parallel(
            Task("a", 1), Task("b", 1, depends_on=["c"]), ctx.output_maybe("a") and Task("c", 1)
        )

    world = World(build).begin().finish("a", value=1)
    assert world.under_way == ["c"]
    assert world.finish("c").under_way == ["b"]


def test_a_finished_node_counts_after_it_has_left_the_tree():
    def build(ctx: Any) -> Any:
        done = ctx.output_maybe("a")
        return Parallel(None if done else Task("a", 1), Task("b", 1, depends_on=["a"]))

    world = World(build).begin().finish("a", value=1)
    assert world.under_way == ["b"]


def test_the_last_finished_tasks_output_is_the_runs():
    world = World(lambda _: [Task("a", 1), Task("b", 1), Timer("t", duration=0)]).begin()
    world.finish("a").finish("b")
    assert world.rows.output == world.key("b")


class TestBranches:
    def test_the_other_side_is_recorded_as_skipped(self):
        world = World(lambda _: Branch(1, Task("yes", 1), Task("no", 1))).begin().finish("yes")
        assert world.states() == {"no": "skipped", "yes": "finished"}
        assert world.events_of("no") == ["NodeSkipped no"]

    def test_the_chosen_side_may_be_empty(self):
        assert World(lambda _: Branch(False, Task("yes", 1))).begin().is_over

    def test_a_side_that_is_chosen_after_all_becomes_pending_and_runs(self):
        def build(ctx: Any) -> Any:
            return [Task("a", 1), Branch(ctx.output_maybe("a"), Task("yes", 1), Task("no", 1))]

        world = World(build).begin()
        assert world.state("yes") is NodeState.SKIPPED
        world.finish("a", value=True)
        assert world.under_way == ["yes"]
        assert world.finish("yes").state("no") is NodeState.SKIPPED
        assert world.events_of("yes")[:2] == ["NodeSkipped yes", "NodePending yes"]

    def test_a_finished_side_that_is_not_chosen_any_more_stays_finished(self):
        def build(ctx: Any) -> Any:
            return [Branch(not ctx.output_maybe("yes"), Task("yes", 1), Task("no", 1))]

        world = World(build).begin().finish("yes", value=1).finish("no")
        assert world.states() == {"no": "finished", "yes": "finished"}
        assert world.rows.status is RunStatus.FINISHED
