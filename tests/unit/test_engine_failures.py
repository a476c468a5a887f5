"""What a failure does: to its node, to its siblings, to its run; and what is wrong with the tree itself."""

import asyncio
from typing import Any

import pytest

from smithers import (
    Branch,
    ContinueAsNew,
    Loop,
    Parallel,
    Retry,
    Sequence,
    Subflow,
    Task,
    Timer,
    Try,
    workflow,
)
from smithers.engine import reports
from smithers.engine.facts import Problem
from smithers.engine.retrying import LONGEST_S, backoff_ms
from smithers.errors import InvalidTree
from smithers.states import AttemptState, NodeState, RunStatus
from tests.support.engine import BOOM, World


def wrong(value: Any) -> Any:
    """A value that no type checker would let pass."""
    return value


def code_of(world: World) -> str | None:
    assert world.rows.status is RunStatus.FAILED
    return world.error.code


class TestRetries:
    def test_a_task_is_not_tried_again_unless_asked(self):
        world = World(lambda _: Task("a", 1)).begin().fail("a")
        assert world.events[-2:] == ["NodeFailed a 1", "RunFailed"]
        assert world.rows.error == BOOM

    def test_retries_count_the_attempts_after_the_first(self):
        world = World(lambda _: Task("a", 1, retries=2, retry=Retry(initial=0))).begin()
        world.fail("a").fail("a").fail("a")
        assert world.fact("a").attempt == 3
        assert world.rows.status is RunStatus.FAILED
        states = [state for _, _, state in world.rows.attempts]
        assert states == [AttemptState.FAILED] * 3

    def test_a_back_off_is_waited_out(self):
        retry = Retry(initial=2, jitter=False)
        world = World(lambda _: Task("a", 1, retries=1, retry=retry)).begin().fail("a")
        assert world.pass_s(1.9).under_way == []
        assert world.pass_s(0.1).under_way == ["a"]

    def test_a_long_back_off_parks_the_run_and_a_short_one_does_not(self):
        for initial, status in ((5, RunStatus.RUNNING), (5.001, RunStatus.WAITING_TIMER)):
            retry = Retry(initial=initial, jitter=False)

            def build(_ctx: Any, retry: Retry = retry) -> Any:
                return Task("a", 1, retries=1, retry=retry)

            world = World(build).begin()
            assert world.fail("a").rows.status is status
        assert world.rows.due_ms == world.now_ms + 5001
        assert world.pass_s(5.001).events[-2:] == ["RunStarted", "NodeStarted a 2"]

    def test_a_death_is_no_failure(self):
        world = World(lambda _: Task("a", 1)).begin().die()
        assert world.events[-2:] == ["RunAutoResumed", "NodeStarted a 2"]
        assert world.rows.attempts == [("a", 1, AttemptState.LOST)]
        assert world.finish("a").rows.status is RunStatus.FINISHED

    def test_a_death_in_a_back_off_does_not_shorten_it(self):
        retry = Retry(initial=3, jitter=False)
        world = World(lambda _: Task("a", 1, retries=1, retry=retry)).begin().fail("a")
        assert world.pass_s(1).die().pass_s(1).under_way == []
        assert world.pass_s(1).under_way == ["a"]

    def test_the_pause_grows_to_its_maximum(self):
        retry = Retry(initial=1, factor=3, maximum=10, jitter=False)
        assert [backoff_ms(retry, n, "") for n in (1, 2, 3, 4)] == [1000, 3000, 9000, 10_000]

    def test_jitter_takes_at_most_half_and_is_the_same_everywhere(self):
        pauses = [backoff_ms(Retry(initial=1), 1, f"r/{n}") for n in range(500)]
        assert all(500 <= pause <= 1000 for pause in pauses)
        assert len(set(pauses)) > 200
        assert backoff_ms(Retry(), 3, "r/a") == backoff_ms(Retry(), 3, "r/a")

    @pytest.mark.parametrize("factor", [0.5, 2, 1e300])
    def test_no_number_of_failures_is_too_many(self, factor):
        retry = Retry(initial=1, factor=factor, maximum=1e300, jitter=False)
        assert 0 <= backoff_ms(retry, 100_000, "") <= LONGEST_S * 1000


class TestEndings:
    def test_a_failure_stops_the_siblings_and_then_the_run(self):
        world = World(lambda _: Parallel(Task("a", 1), Task("b", 1)), aborts_at_once=False).begin()
        world.fail("a")
        assert not world.is_over
        assert world.aborting == {world.key("b"): "run-failed"}
        world.stop("b")
        assert world.events[-3:] == ["NodeFailed a 1", "NodeCancelled b 1 run-failed", "RunFailed"]

    def test_a_sibling_that_finishes_meanwhile_is_kept(self):
        world = World(lambda _: Parallel(Task("a", 1), Task("b", 1)), aborts_at_once=False).begin()
        world.fail("a").finish("b", value=7)
        assert world.output("b") == 7
        assert world.rows.status is RunStatus.FAILED

    def test_the_first_failure_is_the_runs(self):
        world = World(lambda _: Parallel(Task("a", 1), Task("b", 1)), aborts_at_once=False).begin()
        world.fail("b").fail("a", Problem("Second", "later"))
        assert world.rows.error == BOOM

    def test_the_first_failure_is_the_runs_also_after_a_death(self):
        tree = Parallel(Task("a", 1), Task("b", 1), Task("c", 1))
        world = World(lambda _: tree, aborts_at_once=False).begin()
        world.fail("b").fail("a", Problem("Second", "later")).die()
        assert world.rows.error == BOOM

    @pytest.mark.parametrize("is_caught", [False, True])
    def test_the_first_failure_is_the_runs_also_if_trys_raised_both(self, is_caught):
        def make_try(n: str) -> Try:
            failing, last = Task(f"a{n}", 1), Task(f"in{n}", 1)
            if not is_caught:
                return Try(f"t{n}", failing, finally_=last)
            endless = Loop(f"l{n}", last, max_iterations=1, on_max_reached="fail")
            return Try(f"t{n}", failing, catch=endless)

        tree = Parallel(make_try("1"), make_try("2"), Task("z", 1))
        world = World(lambda _: tree, aborts_at_once=False).begin()
        world.fail("a1", Problem("Boom", "1")).fail("a2", Problem("Boom", "2"))
        world.finish("in1", "in2")
        assert world.run.failure is not None
        first = world.run.failure
        world.rows.tries = dict(reversed(world.rows.tries.items()))  # a database has no order
        assert world.die().rows.error == first

    def test_nothing_is_retried_in_a_run_that_fails(self):
        world = World(
            lambda _: Parallel(Task("a", 1), Task("b", 1, retries=5)), aborts_at_once=False
        ).begin()
        world.fail("a").fail("b")
        assert not [event for event in world.events if event.startswith("NodeRetrying")]
        assert world.rows.status is RunStatus.FAILED

    @pytest.mark.parametrize("with_sibling", [False, True])
    def test_a_death_between_a_failure_and_the_runs_end_changes_nothing(self, with_sibling):
        tree = Parallel(Task("a", 1), Task("b", 1), with_sibling and Task("c", 1))
        world = World(lambda _: [tree, Task("after", 1)], aborts_at_once=False).begin()
        if with_sibling:
            world.finish("c")
        world.fail("a").die()
        assert world.rows.error == BOOM
        assert world.events[-3:] == ["RunAutoResumed", "NodeCancelled b 1 run-failed", "RunFailed"]

    def test_a_tolerated_failure_lets_the_tree_move_on_also_after_a_death(self):
        world = World(lambda _: [Task("a", 1, continue_on_fail=True), Task("b", 1)]).begin()
        world.fail("a").die().finish("b")
        assert world.states() == {"a": "failed", "b": "finished"}
        assert world.rows.status is RunStatus.FINISHED

    def test_waits_are_withdrawn_when_their_run_fails(self):
        world = World(lambda _: Parallel(Task("a", 1), Timer("t", duration=9))).begin().fail("a")
        assert world.events[-3:] == ["TimerCancelled t", "NodeCancelled t run-failed", "RunFailed"]

    def test_a_resumed_run_gives_what_failed_fresh_attempts_and_keeps_the_rest(self):
        world = World(lambda _: [Task("a", 1), Task("b", 1, retries=1)]).begin().finish("a")
        world.fail("b").try_next()
        world.fail("b").resume()
        assert world.under_way == ["b"]
        world.fail("b").try_next()
        world.finish("b")
        assert world.fact("b").attempt == 4
        assert world.rows.status is RunStatus.FINISHED


class TestCancels:
    def test_a_running_task_is_stopped_first(self):
        world = World(lambda _: [Task("a", 1), Task("b", 1)], aborts_at_once=False).begin()
        assert world.cancel().aborting == {world.key("a"): "run-cancelled"}
        world.stop("a")
        assert world.events[-2:] == ["NodeCancelled a 1 run-cancelled", "RunCancelled"]
        assert world.state("b") is NodeState.PENDING

    def test_a_finish_beside_a_cancel_is_kept_and_nothing_follows_from_it(self):
        world = World(lambda _: [Task("a", 1), Task("b", 1)], aborts_at_once=False).begin()
        world.cancel().finish("a")
        assert world.events[-2:] == ["NodeFinished a 1", "RunCancelled"]

    def test_a_failure_beside_a_cancel_does_not_fail_the_run(self):
        world = World(lambda _: Task("a", 1), aborts_at_once=False).begin().cancel().fail("a")
        assert world.rows.status is RunStatus.CANCELLED

    def test_a_run_in_a_back_off_is_cancelled_at_once(self):
        world = World(lambda _: Task("a", 1, retries=3)).begin().fail("a").cancel()
        assert world.events[-1] == "RunCancelled"

    def test_the_successor_of_a_dead_owner_does_nothing_but_cancel(self):
        world = World(lambda _: [Task("a", 1), Task("b", 1)], aborts_at_once=False).begin()
        world.cancel().die()
        assert world.events[-3:] == [
            "RunAutoResumed",
            "NodeCancelled a 1 run-cancelled",
            "RunCancelled",
        ]
        assert world.render_count == 1

    def test_a_cancelled_run_that_is_resumed_goes_on(self):
        world = World(lambda _: [Task("a", 1), Task("b", 1)]).begin().cancel().resume()
        assert world.finish("a").finish("b").rows.status is RunStatus.FINISHED


class TestTreesThatAreNone:
    def test_a_builder_that_raises_fails_its_run_with_its_own_traceback(self):
        def build(_: Any) -> Any:
            raise LookupError("no such plan")

        world = World(build).begin()
        assert code_of(world) == "RENDER_FAILED"
        assert world.rows.error is not None
        assert "LookupError: no such plan" in world.error.message
        assert "raise LookupError" in (world.error.traceback or "")
        assert "smithers/engine" not in (world.error.traceback or "")
        assert "traceback" not in world.error.to_wire()

    @pytest.mark.parametrize(
        "wrong", ["raise LookupError('no such plan')", "return Task('a b', 1)"]
    )
    def test_what_a_builder_raises_is_told_with_its_file_and_line(self, wrong):
        names: dict[str, Any] = {"Task": Task}
        code = compile(f"def build(ctx):\n    {wrong}\n", "flows/plan.py@0a1b2c3d", "exec")
        exec(code, names)
        world = World(names["build"]).begin()
        assert world.rows.error is not None
        assert world.error.message.endswith(" (flows/plan.py, line 2)")

    def test_tasks_that_take_each_other_out_of_the_tree_fail_the_run(self):
        world = World(
            lambda ctx: Branch(ctx.state("a") == "in-progress", Task("b", 1), Task("a", 1))
        )
        world.on_turn = lambda world: pytest.fail("no end") if world.commit_count > 500 else None
        assert code_of(world.begin()) == "RENDER_FAILED"

    def test_a_builder_that_watches_a_task_fail_often_comes_to_rest_each_time(self):
        once_a_second = Retry(initial=1, factor=1)
        world = World(
            lambda ctx: [ctx.state("a") == "x", Task("a", 1, retries=60, retry=once_a_second)]
        ).begin()
        for _ in range(60):
            world.fail("a").try_next()
        assert world.finish("a").rows.status is RunStatus.FINISHED

    def test_a_builder_that_watches_many_attempts_stop_comes_to_rest_after_each(self):
        names = [f"a{number}" for number in range(60)]

        def build(ctx: Any) -> Any:
            is_over = "finished" in [ctx.state(name) for name in ("x", *names)]
            return [Parallel(Task("x", 1), not is_over and [Task(name, 1) for name in names])]

        world = World(build, max_concurrency=100, aborts_at_once=False).begin().finish("x")
        for name in names:
            world.stop(name)
        assert world.rows.status is RunStatus.FINISHED

    def test_a_builder_that_returns_nothing_is_told_to_return(self):
        def build(_: Any) -> Any:
            Task("a", 1)

        world = World(build).begin()
        assert code_of(world) == "RENDER_FAILED"
        assert world.rows.error is not None
        assert "returned None: is a return missing?" in world.error.message

    @pytest.mark.parametrize("nothing", [(), [], [None], False])
    def test_a_builder_may_say_that_nothing_is_to_be_done(self, nothing):
        assert World(lambda _: nothing).begin().rows.status is RunStatus.FINISHED

    @pytest.mark.parametrize(
        "error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError(), BaseException("x")]
    )
    def test_no_exception_of_a_builder_goes_further_than_its_run(self, error):
        def build(_: Any) -> Any:
            raise error

        assert code_of(World(build).begin()) == "RENDER_FAILED"

    def test_an_error_that_cannot_be_told_is_told_all_the_same(self):
        class Mute(Exception):
            def __str__(self) -> str:
                raise ValueError

        def build(_: Any) -> Any:
            raise Mute

        assert code_of(World(build).begin()) == "RENDER_FAILED"

    def test_text_that_is_no_unicode_can_be_sent(self):
        world = World(lambda _: Task("a", 1)).begin().fail("a", Problem("E", "no file \udcff"))
        assert world.rows.history[-1][1]["error"]["message"] == "no file ?"

    @pytest.mark.parametrize(
        "tree",
        ["text", 7, {"a": 1}, object(), [Task("a", 1), "b"], b"", Task, (x for x in [1])],
    )
    def test_what_is_no_tree_is_refused(self, tree):
        assert code_of(World(lambda _: tree).begin()) == "RENDER_FAILED"

    def test_a_list_that_holds_itself_is_refused(self):
        endless: list[Any] = []
        endless.append(endless)
        assert code_of(World(lambda _: endless).begin()) == "RENDER_FAILED"

    def test_a_tree_that_is_too_deep_is_refused(self):
        tree: Any = Task("a", 1)
        for _ in range(20_000):
            tree = Sequence(tree)
        assert code_of(World(lambda _: tree).begin()) == "RENDER_FAILED"

    @pytest.mark.parametrize(
        "tree",
        [
            lambda: [Task("a", 1), Task("a", 2)],
            lambda: [Task("a", 1), Timer("a", duration=1)],
            lambda: Parallel(Task("a", 1), Loop("l", Task("a", 1))),
            lambda: Branch(True, Task("a", 1), Task("a", 1)),
            lambda: [Loop("l", Task("a", 1)), Loop("l", Task("b", 1))],
        ],
    )
    def test_an_id_stands_once_in_a_tree(self, tree):
        assert code_of(World(lambda _: tree()).begin()) == "DUPLICATE_NODE_ID"

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Task("", 1),
            lambda: Task("a b", 1),
            lambda: Task("a/b", 1),
            lambda: Task("x" * 201, 1),
            lambda: Task("a@@b", 1),
            lambda: Task("a@", 1),
            lambda: Task("\ud800", 1),
            lambda: Task(wrong(7), 1),
            lambda: Loop("a,b"),
            lambda: Loop("a=b"),
            lambda: Loop("l", max_iterations=0),
            lambda: Task("a", 1, retries=-1),
            lambda: Task("a", 1, depends_on="write"),
            lambda: Task("a", 1, depends_on=[wrong(None)]),
            lambda: Task("a", 1, label="\x00"),
            lambda: Task("a", 1, label=wrong(5)),
            lambda: Parallel(max_concurrency=0),
            lambda: Timer("t"),
            lambda: Retry(factor=float("nan")),
        ],
    )
    def test_what_could_not_be_kept_is_refused_where_it_is_written(self, make):
        with pytest.raises(InvalidTree):
            make()

    @pytest.mark.parametrize("value", [object(), {1, 2}, 2**70, "\ud800"])
    def test_meta_that_is_no_json_fails_the_run_and_not_the_engine(self, value):
        world = World(lambda _: Task("a", 1, meta={"x": value})).begin()
        assert code_of(world) == "RENDER_FAILED"

    def test_a_tree_that_undoes_itself_at_each_render_is_refused(self):
        world = World(lambda ctx: ctx.state("a") != "pending" and Task("a", 1)).begin()
        assert code_of(world) == "RENDER_FAILED"
        assert world.render_count < 100

    def test_a_render_that_fails_later_stops_what_is_under_way(self):
        def build(ctx: Any) -> Any:
            if ctx.output_maybe("a"):
                raise ValueError
            return Parallel(Task("a", 1), Task("b", 1))

        world = World(build).begin().finish("a", value=1)
        assert world.events[-2:] == ["NodeCancelled b 1 run-failed", "RunFailed"]


class TestRefusedTurns:
    """The database did not take a turn's values."""

    def test_a_result_that_cannot_be_kept_fails_its_node_and_its_run(self):
        world = World(lambda _: [Parallel(Task("a", 1), Task("b", 1)), Task("c", 1)]).begin()
        run, key = world.run, world.key("a")
        del world.running[key]
        reports.finish_attempt(run, key, '"poison"')
        run.plan(world.now_ms)
        run.refuse_turn(Problem("InvalidOutput", "no", "INVALID_OUTPUT"))
        world._go()
        assert code_of(world) == "INVALID_OUTPUT"
        assert world.states() == {"a": "failed", "b": "cancelled", "c": "pending"}
        assert ("a", 1, AttemptState.FAILED) in world.rows.attempts

    def test_a_run_whose_next_id_is_taken_keeps_its_results(self):
        world = World(lambda _: [Task("a", 1), ContinueAsNew()]).begin()
        run, key = world.run, world.key("a")
        del world.running[key]
        reports.finish_attempt(run, key, "1")
        ending = run.plan(world.now_ms).ending
        assert ending is not None
        assert ending.successor is not None
        run.refuse_runs(Problem("RunExists", "taken", "RUN_ALREADY_EXISTS"))
        world._go()
        assert code_of(world) == "RUN_ALREADY_EXISTS"
        assert world.states() == {"a": "finished", "continue-as-new": "failed"}
        assert "NodeFinished continue-as-new 1" not in world.events
        assert not world.rows.children
        assert world.resume().rows.status is RunStatus.CONTINUED

    @pytest.mark.parametrize("is_tolerated", [False, True])
    def test_a_subflow_whose_id_is_taken_fails_by_itself(self, is_tolerated):
        child = Subflow(
            "s", workflow(name="small")(lambda _: Task("c", 1)), {}, continue_on_fail=is_tolerated
        )
        world = World(lambda _: [Task("a", 1), child]).begin()
        run, key = world.run, world.key("a")
        del world.running[key]
        reports.finish_attempt(run, key, "1")
        assert run.plan(world.now_ms).children
        run.refuse_runs(Problem("RunExists", "taken", "RUN_ALREADY_EXISTS"))
        world._go()
        assert world.states() == {"a": "finished", "s": "failed"}
        assert "SubflowStarted s" not in world.events
        assert world.rows.status is (RunStatus.FINISHED if is_tolerated else RunStatus.FAILED)

    def test_a_first_turn_that_is_refused_leaves_no_nodes(self):
        world = World(lambda _: Task("a", 1))
        world._go = lambda: None  # type: ignore[method-assign]  # nothing is committed yet
        world.begin()
        world.run.plan(world.now_ms)
        world.run.refuse_turn(Problem("InvalidOutput", "no", "INVALID_OUTPUT"))
        del world._go
        world._go()
        assert code_of(world) == "INVALID_OUTPUT"
        assert world.states() == {}
