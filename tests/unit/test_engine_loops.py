"""Loops: iterations, their ends, the ids of what is inside, and what a builder reads there."""

from typing import Any

from smithers import Branch, Loop, Parallel, Sequence, Signal, Task
from smithers.engine.facts import LoopFact
from smithers.states import NodeState, RunStatus
from tests.support.engine import World


def test_a_loop_runs_its_children_until_its_condition_holds():
    def build(ctx: Any) -> Any:
        return [Loop("l", Task("a", 1), until=ctx.output_maybe("a") == "good"), Task("b", 1)]

    world = World(build).begin().finish("a", value="bad").finish("a#1", value="good")
    assert world.under_way == ["b"]
    assert world.rows.loops == {"l": LoopFact(1, is_done=True)}


def test_a_condition_may_be_a_callable():
    def build(ctx: Any) -> Any:
        return Loop("l", Task("a", 1), until=lambda: ctx.output_maybe("a"))

    assert World(build).begin().finish("a", value=1).is_over


def test_a_condition_counts_only_after_an_iteration():
    assert World(lambda _: Loop("l", Task("a", 1), until=True)).begin().under_way == ["a"]


def test_a_condition_sees_all_that_the_iteration_brought():
    def build(ctx: Any) -> Any:
        return Loop("l", Parallel(Task("a", 1), Task("b", 1)), until=ctx.output_maybe("b"))

    assert World(build).begin().finish("a", "b", value=1).is_over


def test_a_condition_sees_what_came_in_the_moment_in_which_the_iteration_ended():
    def build(ctx: Any) -> Any:
        return [Task("a", 1), Loop("l", Signal("go"), until=ctx.output_maybe("go") == "stop")]

    world = World(build).begin().signal("go", "stop").signal("go", "more").finish("a")
    assert world.states() == {"a": "finished", "go": "finished"}


def test_a_node_that_moves_into_a_loop_is_read_as_that_loop_has_it():
    seen: list[Any] = []

    def build(ctx: Any) -> Any:
        seen.append(ctx.output_maybe("x"))
        moved = ctx.output_maybe("b")
        loop = Loop("l", Task("c", 1), moved and Task("x", 1), max_iterations=2)
        return [not moved and Task("x", 1), loop, Task("b", 1)]

    world = World(build).begin()
    for node in ("x", "c", "c#1", "b"):
        world.finish(node, value="old")
    assert world.under_way == ["x#1"]
    assert seen[-1] is None


def test_a_loop_that_used_up_its_iterations_is_done_with_its_last():
    world = World(lambda _: Loop("l", Task("a", 1), max_iterations=2)).begin()
    assert world.finish("a").finish("a#1").rows.status is RunStatus.FINISHED


def test_a_loop_that_used_up_its_iterations_may_fail_its_run():
    world = World(lambda _: Loop("l", Task("a", 1), max_iterations=1, on_max_reached="fail"))
    world.begin().finish("a")
    assert world.rows.error is not None
    assert world.error.code == "LOOP_EXHAUSTED"


def test_an_exhausted_loop_fails_its_run_also_when_its_owner_dies_before_the_end():
    def build(_: Any) -> Any:
        return Parallel(
            Loop("l", Task("a", 1), max_iterations=1, on_max_reached="fail"), Task("b", 1)
        )

    world = World(build, aborts_at_once=False).begin().finish("a").die()
    assert world.rows.status is RunStatus.FAILED


def test_an_exhausted_loop_goes_on_where_a_resume_gives_it_more_iterations():
    def build(limit: int) -> Any:
        return lambda _: Loop("l", Task("a", 1), max_iterations=limit, on_max_reached="fail")

    world = World(build(1)).begin().finish("a").resume(build(2))
    assert world.under_way == ["a#1"]


def test_each_iteration_is_a_node_of_its_own_with_attempts_of_its_own():
    world = World(lambda _: Loop("l", Task("a", 1, retries=1), max_iterations=2)).begin()
    world.fail("a").try_next()
    world.finish("a").fail("a#1").try_next()
    world.finish("a#1")
    assert [world.fact(node).attempt for node in ("a", "a#1")] == [2, 2]


def test_inner_nodes_carry_the_path_of_their_outer_loops():
    def build(_: Any) -> Any:
        inner = Loop("inner", Task("x", 1), max_iterations=2)
        return Loop(
            "outer", Loop("middle", inner, Task("m", 1), max_iterations=1), max_iterations=2
        )

    world = World(build).begin()
    while not world.is_over:
        world.finish(*world.under_way)
    assert sorted(world.states()) == [
        "m@@outer=0",
        "m@@outer=1",
        *("x@@outer=0,middle=0", "x@@outer=0,middle=0#1"),
        *("x@@outer=1,middle=0", "x@@outer=1,middle=0#1"),
    ]
    assert set(world.rows.loops) == {
        *("outer", "middle@@outer=0", "middle@@outer=1"),
        *("inner@@outer=0,middle=0", "inner@@outer=1,middle=0"),
    }


def test_two_loops_of_one_name_may_stand_in_different_loops():
    def build(_: Any) -> Any:
        return [
            Loop("a", Loop("in", Task("x", 1), max_iterations=2), max_iterations=1),
            Loop("b", Loop("in", Task("y", 1), max_iterations=1), max_iterations=1),
        ]

    world = World(build).begin()
    while not world.is_over:
        world.finish(*world.under_way)
    assert [name for name in world.states() if name.startswith("x")] == ["x@@a=0", "x@@a=0#1"]
    assert '"iteration":"1"' in world.rows.frames[-1]


def test_a_read_is_of_the_current_iteration_and_latest_of_the_newest():
    seen: list[tuple[Any, ...]] = []

    def build(ctx: Any) -> Any:
        a = ctx.output_maybe("a")
        seen.append((ctx.iteration, a, ctx.latest("a"), ctx.iteration_count("a"), ctx.state("a")))
        return Loop("l", Task("a", 1), Task("b", 1), max_iterations=2)

    world = World(build).begin().finish("a", value="x").finish("b")
    assert seen[-1:] == [(1, None, "x", 1, NodeState.IN_PROGRESS)]
    world.finish("a#1", value="y")
    assert seen[-1:] == [(1, "y", "y", 2, NodeState.FINISHED)]


def test_reads_inside_nested_loops_are_of_the_current_iterations():
    seen: list[Any] = []

    def build(ctx: Any) -> Any:
        seen.append((ctx.iteration, ctx.output_maybe("x")))
        return Loop(
            "outer", Loop("inner", Task("x", 1), max_iterations=2), Task("y", 1), max_iterations=2
        )

    world = World(build).begin()
    world.finish("x@@outer=0", value=1)
    assert seen[-1] == (0, None)
    world.finish("x@@outer=0#1", value=2)
    assert seen[-1] == (0, 2)
    world.finish("y")
    assert seen[-1] == (1, None)


def test_a_node_that_an_iteration_mounts_late_is_read_the_same_after_a_death():
    """The output of the iteration before must not stand for it, although nothing in the tree tells of its loop."""

    def build(ctx: Any) -> Any:
        review = ctx.output_maybe("review")
        return Loop(
            "l",
            Task("draft", 1),
            ctx.output_maybe("draft") and Task("review", 1),
            review and Task("apply", 1),
            max_iterations=2,
        )

    for nodes in (["draft"], ["draft", "review"], ["draft", "review", "apply"]):
        plain, other = World(build).begin(), World(build).begin()
        for world in (plain, other):
            for node in ("draft", "review", "apply"):
                world.finish(node, value=1)
        other.die()
        for node in nodes:
            plain.finish(f"{node}#1", value=1)
            other.finish(f"{node}#1", value=1)
            if not other.is_over:
                other.die()
        assert other.states() == plain.states()


def test_a_node_that_is_mounted_only_without_its_output_is_found_after_a_death():
    def build(ctx: Any) -> Any:
        return Loop("l", Task("a", 1), not ctx.output_maybe("b") and Task("b", 1), max_iterations=3)

    plain, other = World(build).begin(), World(build).begin()
    for world in (plain, other):
        world.finish("a", value=1).finish("b", value=1)
    other.die()
    for world in (plain, other):
        world.finish("a#1", value=1)
    assert other.under_way == plain.under_way == ["b#1"]


def test_a_body_reads_the_current_iteration_also_after_a_death():
    world = World(lambda _: Loop("l", Task("a", 1), Task("b", 1), max_iterations=2)).begin()
    world.finish("a", value="old").finish("b")
    for _ in range(2):
        rendered = world.run.rendered
        assert rendered is not None
        assert rendered.context.output_maybe("a") is None
        assert rendered.context.latest("a") == "old"
        for key, fact in world.rows.nodes.items():
            world.rows.nodes[key] = fact._replace(loop=None)  # as if nobody had kept it
        world.die()


def test_a_body_reads_what_is_committed_and_its_reads_cause_no_render():
    world = World(lambda _: Parallel(Task("a", 1), Task("b", 1), Task("c", 1))).begin()
    rendered = world.run.rendered
    assert rendered is not None
    assert rendered.context.output_maybe("a") is None
    world.finish("a", value=1)
    assert rendered.context.output_maybe("a") == 1
    world.finish("b")
    assert world.render_count == 1


def test_a_loop_whose_children_are_all_skipped_comes_to_its_end():
    world = World(lambda _: Loop("l", Task("a", 1, skip_if=True), max_iterations=3)).begin()
    assert world.states() == {"a": "skipped", "a#1": "skipped", "a#2": "skipped"}
    assert world.is_over


def test_an_empty_loop_comes_to_its_end():
    assert World(lambda _: Loop("l", max_iterations=3)).begin().is_over


def test_a_long_loop_that_does_nothing_leaves_the_others_their_turn():
    world = World(lambda _: Loop("l", max_iterations=1000)).begin()
    assert world.is_over
    assert world.commit_count >= 10


def test_a_run_that_is_cancelled_in_the_midst_of_a_long_loop_waits_for_what_is_to_stop():
    idle = Loop("l", Task("b", 1, skip_if=True), max_iterations=500)
    tree = Parallel(Task("x", 1), Sequence(Task("a", 1), idle))
    world = World(lambda _ctx: tree, aborts_at_once=False).begin()
    turns: list[bool] = []

    def cancel(world: World) -> None:
        turns.append(world.run.is_cut_short)
        assert len(turns) < 5, "it plans again and again, and nothing is to be done"
        if world.run.is_cut_short:
            world.run.cancel()

    world.on_turn = cancel
    world.finish("a")
    assert turns == [True, False]
    assert world.stop("x").rows.status is RunStatus.CANCELLED


def test_a_branch_in_a_loop_is_chosen_anew_in_each_iteration():
    def build(ctx: Any) -> Any:
        branch = Branch(ctx.output_maybe("a") == "left", Task("left", 1), Task("right", 1))
        return Loop("l", Task("a", 1), branch, max_iterations=2)

    world = World(build).begin().finish("a", value="left").finish("left")
    world.finish("a#1", value="right").finish("right#1")
    assert world.states() == {
        "a": "finished",
        "a#1": "finished",
        "left": "finished",
        "left#1": "skipped",
        "right": "skipped",
        "right#1": "finished",
    }


def test_a_loop_turns_while_another_child_of_its_parallel_is_under_way():
    def build(_: Any) -> Any:
        return Parallel(Loop("l", Task("a", 1), Task("b", 1), max_iterations=2), Task("slow", 1))

    world = World(build).begin().finish("a").finish("b")
    assert world.under_way == ["a#1", "slow"]
    assert world.finish("a#1").finish("b#1").finish("slow").is_over


def test_a_dependency_inside_a_loop_is_on_the_same_iteration():
    def build(_: Any) -> Any:
        tasks = Parallel(Task("a", 1), Task("b", 1, needs={"a": "a"}))
        return Loop("l", tasks, max_iterations=2)

    world = World(build).begin().finish("a").finish("b")
    assert world.under_way == ["a#1"]


def test_what_stands_after_a_loop_sees_its_last_output():
    seen: list[Any] = []

    def build(ctx: Any) -> Any:
        seen.append(ctx.output_maybe("a"))
        return Sequence(Loop("l", Task("a", 1), max_iterations=2), Task("b", 1))

    World(build).begin().finish("a", value=1).finish("a#1", value=2)
    assert seen[-1] == 2
