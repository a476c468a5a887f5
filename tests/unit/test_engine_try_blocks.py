"""Try and Saga: who takes a failure, what is done in the end, and in which order, whatever happens in between."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smithers import Approval, Loop, Parallel, Saga, Sequence, Step, Task, Timer, Try
from smithers.engine import reports
from smithers.engine.progress import CLEAN_UP_MS
from smithers.ids import TryId
from smithers.states import NodeState, RunStatus
from tests.support.engine import BOOM, World
from tests.support.trees import Play, specs


def task(name: str, **options: Any) -> Task[Any]:
    return Task(name, None, **options)


def guarded(**parts: Any) -> World:
    return World(lambda _ctx: [Try("t", task("a"), task("b"), **parts), task("after")]).begin()


def types(world: World) -> list[str]:
    """Say what began and ended, in order."""
    wanted = ("NodeStarted", "NodeFinished", "NodeFailed", "Run", "NodeCancelled")
    return [line for line in world.events if line.startswith(wanted)]


class TestCatch:
    def test_a_failure_turns_to_the_catch_and_the_run_goes_on(self):
        world = guarded(catch=task("c"))
        assert "c" not in world.states()
        world.fail("a")
        assert world.under_way == ["c"]
        assert world.state("b") is NodeState.SKIPPED
        assert world.finish("c").under_way == ["after"]
        assert world.finish("after").rows.status is RunStatus.FINISHED

    def test_without_a_failure_the_catch_is_skipped(self):
        world = guarded(catch=task("c")).finish("a").finish("b")
        assert world.state("c") is NodeState.SKIPPED
        assert world.finish("after").rows.status is RunStatus.FINISHED

    def test_the_catch_sees_what_went_wrong(self):
        seen = []

        def build(ctx):
            seen.append(ctx.error("t"))
            return Try("t", task("a"), catch=Task("c", lambda: ctx.error("t")))

        world = World(build).begin().fail("a")
        assert seen[0] is None
        assert (seen[-1].name, seen[-1].message) == ("Boom", "it broke")
        problem = world.run.committed.tries[TryId("t")].problem
        assert problem is not None
        assert problem.name == "Boom"

    def test_a_body_that_a_render_makes_only_when_its_turn_comes_is_waited_for(self):
        def build(ctx):
            is_known = ctx.output_maybe("x") is not None
            return [task("x"), Try("t", is_known and task("a"), catch=task("c"))]

        world = World(build).begin().finish("x", value=1)
        assert world.under_way == ["a"]
        assert world.fail("a").under_way == ["c"]

    def test_retries_come_first(self):
        world = World(lambda _ctx: Try("t", task("a", retries=1), catch=task("c"))).begin()
        assert "NodeRetrying a 2" in world.fail("a").events
        world.try_next()
        assert world.fail("a").under_way == ["c"]

    def test_a_tolerated_failure_is_none(self):
        world = World(
            lambda _ctx: Try("t", task("a", continue_on_fail=True), task("b"), catch=task("c"))
        ).begin()
        assert world.fail("a").under_way == ["b"]

    def test_a_catch_that_fails_fails_the_run(self):
        world = guarded(catch=task("c")).fail("a").fail("c")
        assert world.rows.status is RunStatus.FAILED
        assert world.state("after") is NodeState.PENDING

    def test_what_runs_beside_a_failure_is_stopped_before_the_catch_begins(self):
        world = World(
            lambda _ctx: Try(
                "t", Parallel(task("a"), task("b"), Timer("w", duration=60)), catch=task("c")
            ),
            aborts_at_once=False,
        ).begin()
        world.fail("a")
        assert world.under_way == ["b"]
        assert world.state("w") is NodeState.CANCELLED
        assert world.stop("b").under_way == ["c"]
        assert "NodeCancelled b 1 aborted" in world.events

    def test_a_body_that_ends_by_itself_while_it_is_stopped_keeps_its_result(self):
        world = World(
            lambda _ctx: Try("t", Parallel(task("a"), task("b")), catch=task("c")),
            aborts_at_once=False,
        ).begin()
        world.fail("a").finish("b", value=1)
        assert world.output("b") == 1
        assert world.finish("c").rows.status is RunStatus.FINISHED

    def test_two_failures_in_one_turn_are_caught_once(self):
        world = World(lambda _ctx: Try("t", Parallel(task("a"), task("b")), catch=task("c")))
        world.begin()
        key = world.key("b")
        del world.running[key]
        reports.fail_attempt(world.run, key, BOOM, world.now_ms)
        world.fail("a")
        assert world.under_way == ["c"]
        assert world.finish("c").rows.status is RunStatus.FINISHED

    def test_a_wait_that_fails_is_caught(self):
        world = World(lambda _ctx: Try("t", Approval("ok", title="?"), catch=task("c"))).begin()
        assert world.deny("ok").under_way == ["c"]

    def test_a_loop_without_end_is_caught(self):
        world = World(
            lambda _ctx: Try(
                "t", Loop("l", task("a"), max_iterations=1, on_max_reached="fail"), catch=task("c")
            )
        ).begin()
        assert world.finish("a").under_way == ["c"]

    def test_a_try_in_a_loop_catches_in_each_iteration(self):
        world = World(
            lambda ctx: Loop(
                "l",
                Try("t", task("a"), catch=task("c")),
                until=ctx.iteration_count("c") >= 2,
            )
        ).begin()
        world.fail("a").finish("c").fail("a#1").finish("c#1")
        assert world.rows.status is RunStatus.FINISHED
        assert world.state("c#1") is NodeState.FINISHED

    def test_an_error_is_read_in_its_own_iteration(self):
        seen = []

        def build(ctx):
            seen.append(ctx.error("t"))
            return Loop("l", Try("t", task("a"), catch=task("c")), max_iterations=2)

        world = World(build).begin().fail("a")
        assert seen[-1] is not None
        world.finish("c")
        assert seen[-1] is None
        world.die()
        assert seen[-1] is None
        world.fail("a#1")
        assert seen[-1] is not None


class TestFinally:
    def test_it_runs_after_a_success(self):
        world = guarded(finally_=task("f")).finish("a").finish("b")
        assert world.under_way == ["f"]
        assert world.finish("f").under_way == ["after"]

    def test_it_runs_after_a_failure_which_then_fails_the_run(self):
        world = guarded(finally_=task("f")).fail("a")
        assert world.under_way == ["f"]
        world.finish("f")
        assert world.rows.status is RunStatus.FAILED
        assert world.error.name == "Boom"
        assert types(world)[-2:] == ["NodeFinished f 1", "RunFailed"]

    def test_it_runs_after_the_catch(self):
        world = guarded(catch=task("c"), finally_=task("f")).fail("a").finish("c")
        assert world.under_way == ["f"]
        assert world.finish("f").under_way == ["after"]

    def test_it_runs_after_a_catch_that_failed(self):
        world = guarded(catch=task("c"), finally_=task("f")).fail("a").fail("c")
        assert world.under_way == ["f"]
        assert world.finish("f").rows.status is RunStatus.FAILED

    def test_it_runs_when_the_run_is_cancelled_and_the_run_is_cancelled_after_it(self):
        world = guarded(finally_=task("f")).cancel()
        assert world.under_way == ["f"]
        world.finish("f")
        assert world.rows.status is RunStatus.CANCELLED
        assert types(world)[-3:] == ["NodeStarted f 1", "NodeFinished f 1", "RunCancelled"]

    def test_it_waits_until_the_body_has_been_stopped(self):
        world = World(
            lambda _ctx: Try("t", task("a"), finally_=task("f")), aborts_at_once=False
        ).begin()
        assert world.cancel().under_way == ["a"]
        assert world.stop("a").under_way == ["f"]
        assert "NodeCancelled a 1 run-cancelled" in world.events

    def test_it_runs_when_a_parked_run_is_cancelled(self):
        world = World(lambda _ctx: Try("t", Approval("ok", title="?"), finally_=task("f"))).begin()
        assert world.rows.has_cleanup
        assert world.cancel().under_way == ["f"]
        assert world.finish("f").rows.status is RunStatus.CANCELLED
        assert world.state("ok") is NodeState.CANCELLED

    def test_it_runs_when_something_beside_it_fails_the_run(self):
        world = World(
            lambda _ctx: Parallel(Try("t", task("a"), finally_=task("f")), task("b"))
        ).begin()
        assert world.fail("b").under_way == ["f"]
        assert world.finish("f").rows.status is RunStatus.FAILED

    def test_the_inner_one_runs_before_the_outer_one(self):
        world = World(
            lambda _ctx: Try(
                "outer",
                Parallel(Try("inner", task("a"), finally_=task("f1")), task("b")),
                catch=task("c"),
                finally_=task("f2"),
            )
        ).begin()
        assert world.fail("b").under_way == ["f1"]
        assert world.finish("f1").under_way == ["c"]
        assert world.finish("c").under_way == ["f2"]
        assert world.finish("f2").rows.status is RunStatus.FINISHED

    def test_the_inner_one_runs_before_the_outer_one_when_the_run_is_cancelled(self):
        world = World(
            lambda _ctx: Try(
                "outer", Try("inner", task("a"), finally_=task("f1")), finally_=task("f2")
            )
        ).begin()
        assert world.cancel().under_way == ["f1"]
        assert world.finish("f1").under_way == ["f2"]
        assert world.finish("f2").rows.status is RunStatus.CANCELLED

    def test_one_whose_turn_never_came_has_nothing_to_do(self):
        world = World(lambda _ctx: [task("x"), Try("t", task("a"), finally_=task("f"))]).begin()
        assert world.cancel().rows.status is RunStatus.CANCELLED
        assert "f" not in world.states()

    def test_one_behind_a_wait_that_failed_has_nothing_to_do(self):
        def build(_ctx):
            return [Approval("ok", title="?"), Try("t", task("a"), finally_=task("f"))]

        world = World(build).begin().deny("ok")
        assert world.rows.status is RunStatus.FAILED
        assert "f" not in world.states()
        world = World(lambda ctx: [Try("o", build(ctx), catch=task("c")), task("after")]).begin()
        assert world.deny("ok").finish("c").under_way == ["after"]
        assert "f" not in world.states()

    @pytest.mark.parametrize("is_dying", [False, True])
    @pytest.mark.parametrize("inner", [{"finally_": task("f")}, {"catch": task("c")}])
    def test_a_try_in_it_is_not_given_up_when_the_run_is_cancelled(self, is_dying, inner):
        world = World(lambda _ctx: Try("o", task("a"), finally_=Try("t", task("b"), **inner)))
        world.begin()
        if is_dying:
            world.cancel().die()
        else:
            world.finish("a").cancel()
        assert world.under_way == ["b"]
        if "catch" in inner:
            world.fail("b")
            assert world.under_way == ["c"]
            world.finish("c")
        else:
            world.finish("b")
            assert world.under_way == ["f"]
            world.finish("f")
        assert world.rows.status is RunStatus.CANCELLED
        assert not world.rows.has_cleanup

    def test_a_try_in_it_is_not_given_up_when_what_stands_around_it_fails(self):
        def build(_ctx):
            inner = Try("i", task("a"), finally_=Try("t", task("b"), task("c")))
            return Try("o", Parallel(task("x"), inner), catch=task("d"))

        world = World(build).begin().finish("a").fail("x")
        assert world.under_way == ["b"]
        assert world.finish("b").under_way == ["c"]
        assert world.finish("c").under_way == ["d"]
        assert world.finish("d").rows.status is RunStatus.FINISHED

    def test_one_that_has_ended_is_not_run_again(self):
        world = World(lambda _ctx: [Try("t", task("a"), finally_=task("f")), task("x")]).begin()
        world.finish("a").finish("f").cancel()
        assert world.rows.status is RunStatus.CANCELLED
        assert world.events.count("NodeStarted f 1") == 1

    def test_it_may_retry_while_the_run_is_being_cancelled(self):
        world = World(lambda _ctx: Try("t", task("a"), finally_=task("f", retries=1))).begin()
        world.cancel().fail("f")
        assert world.rows.status is RunStatus.RUNNING
        world.try_next()
        assert world.finish("f").rows.status is RunStatus.CANCELLED

    def test_one_that_fails_while_the_run_is_being_cancelled_does_not_keep_it(self):
        world = World(lambda _ctx: Try("t", task("a"), finally_=[task("f"), task("g")])).begin()
        assert world.cancel().fail("f").rows.status is RunStatus.CANCELLED
        assert world.state("g") is NodeState.PENDING

    def test_its_time_is_limited_when_the_run_is_ending(self):
        world = World(lambda _ctx: Try("t", task("a"), finally_=task("f"))).begin().cancel()
        world.pass_s(CLEAN_UP_MS / 1000 - 1)
        assert world.under_way == ["f"]
        world.pass_s(2)
        assert world.rows.status is RunStatus.CANCELLED
        assert world.state("f") is NodeState.CANCELLED

    def test_a_wait_in_it_has_the_same_time(self):
        world = (
            World(lambda _ctx: Try("t", task("a"), finally_=Approval("ok", title="?")))
            .begin()
            .cancel()
        )
        assert world.state("ok") is NodeState.WAITING_APPROVAL
        world.pass_s(CLEAN_UP_MS / 1000 + 1)
        assert world.rows.status is RunStatus.CANCELLED

    @pytest.mark.parametrize("dies_at", range(1, 7))
    def test_a_death_changes_nothing(self, dies_at):
        def build(_ctx):
            return Try(
                "o", Try("t", task("a"), catch=task("c"), finally_=task("f")), catch=task("d")
            )

        world = World(build, die_after=[dies_at]).begin()
        plan = {"a": "fail", "c": "fail", "f": "finish", "d": "finish"}
        for _ in range(20):
            if world.is_over:
                break
            for name in world.under_way:
                getattr(world, plan[name])(name)
                break
        assert world.rows.status is RunStatus.FINISHED
        finished = [line for line in world.events if line.startswith("NodeFinished")]
        assert [line.split()[1] for line in finished] == ["f", "d"]

    def test_what_died_with_its_process_is_cancelled_however_many_die_while_it_cleans_up(self):
        def build(_ctx):
            return Parallel(Try("t", task("a"), finally_=task("f")), task("x"), task("y"))

        world = World(build, aborts_at_once=False).begin().fail("y").stop("a").die().die()
        assert world.finish("f").rows.status is RunStatus.FAILED
        assert world.state("x") is NodeState.CANCELLED

    def test_a_death_while_it_cleans_up_after_a_cancel_goes_on_with_it(self):
        world = World(lambda _ctx: Try("t", task("a"), finally_=[task("f"), task("g")])).begin()
        world.cancel().finish("f").die()
        assert world.under_way == ["g"]
        assert world.finish("g").rows.status is RunStatus.CANCELLED
        assert world.events.count("NodeFinished f 1") == 1

    def test_a_resume_tries_the_body_again(self):
        world = guarded(catch=task("c"), finally_=task("f")).fail("a").fail("c").finish("f")
        assert world.rows.status is RunStatus.FAILED
        assert world.resume().under_way == ["a"]
        world.finish("a").finish("b")
        # Its finally has run: a finished node does not run again.
        assert world.under_way == ["after"]
        assert world.finish("after").rows.status is RunStatus.FINISHED

    @pytest.mark.parametrize("part", ["catch", "finally_"])
    def test_a_loop_without_end_in_its_last_part_fails_the_run_after_a_death_too(self, part):
        def build(_ctx):
            last = Loop("l", task("b"), max_iterations=1, on_max_reached="fail")
            return Parallel(task("x"), Try("t", task("a"), **{part: last}))

        world = World(build, aborts_at_once=False).begin().fail("a").finish("b").die()
        assert world.rows.status is RunStatus.FAILED
        assert world.error.code == "LOOP_EXHAUSTED"
        assert world.resume().under_way == ["a", "x"]

    def test_a_loop_without_end_that_comes_too_late_for_it_keeps_no_worker_busy(self):
        def build(ctx):
            late = ctx.output_maybe("b") is not None
            loop = Loop("l", task("f"), max_iterations=1, on_max_reached="fail")
            return [Try("t", task("a"), finally_=[task("tidy"), late and loop]), task("b")]

        world = World(build).begin().finish("a").finish("tidy").finish("b", value=1).finish("f")
        assert world.error.code == "RENDER_FAILED"

    def test_a_node_and_a_try_have_no_id_in_common(self):
        world = World(lambda _ctx: Try("t", task("t"))).begin()
        assert world.error.code == "DUPLICATE_NODE_ID"


def saga(**options: Any) -> World:
    steps = [Step(task(name), task(f"un-{name}")) for name in ("a", "b", "c")]
    return World(lambda _ctx: [Saga("s", *steps, **options), task("after")]).begin()


class TestSaga:
    def test_what_is_done_is_undone_in_reverse_and_the_run_fails(self):
        world = saga().finish("a").finish("b").fail("c")
        assert world.under_way == ["un-b"]
        assert world.finish("un-b").under_way == ["un-a"]
        world.finish("un-a")
        assert world.rows.status is RunStatus.FAILED
        assert world.error.name == "Boom"
        assert world.state("un-c") is NodeState.SKIPPED

    def test_nothing_is_undone_of_a_saga_that_went_well(self):
        world = saga().finish("a").finish("b").finish("c")
        assert world.under_way == ["after"]
        assert {world.state(f"un-{name}") for name in "abc"} == {NodeState.SKIPPED}

    def test_it_may_let_the_run_go_on(self):
        world = saga(on_failure="continue").finish("a").fail("b").finish("un-a")
        assert world.under_way == ["after"]
        assert world.finish("after").rows.status is RunStatus.FINISHED

    def test_a_failure_before_anything_was_done_undoes_nothing(self):
        assert saga().fail("a").rows.status is RunStatus.FAILED

    def test_a_cancel_undoes_as_well(self):
        world = saga().finish("a").cancel()
        assert world.under_way == ["un-a"]
        assert world.finish("un-a").rows.status is RunStatus.CANCELLED

    def test_a_death_in_the_middle_of_undoing_undoes_each_once(self):
        world = saga().finish("a").finish("b").fail("c").finish("un-b").die()
        assert world.under_way == ["un-a"]
        world.finish("un-a")
        assert world.events.count("NodeFinished un-b 1") == 1
        assert world.rows.status is RunStatus.FAILED

    def test_a_loop_that_fails_the_run_beside_it_does_so_after_a_death_before_anything_begins(self):
        def fail():
            loop = Loop("l", task("x"), max_iterations=1, on_max_reached="fail")
            steps = Saga("s", Step(task("a"), task("un-a")))
            tree = Parallel(steps, loop, Approval("ok", title="?"))
            return World(lambda _ctx: tree, aborts_at_once=False).begin().finish("x")

        plain, dead = fail().stop("a"), fail().die()
        assert dead.rows.error == plain.rows.error
        assert dead.rows.tries == plain.rows.tries
        assert dead.events_of("ok").count("ApprovalRequested ok") == 1

    def test_one_behind_an_approval_that_was_denied_is_done_after_a_resume(self):
        def build(_ctx):
            return [Approval("ok", title="?"), Saga("s", Step(task("a"), task("un-a")))]

        world = World(build).begin().deny("ok").resume().approve("ok")
        assert world.under_way == ["a"]
        assert world.finish("a").rows.status is RunStatus.FINISHED

    def test_what_has_been_undone_is_not_taken_for_done_by_a_resume(self):
        world = saga().finish("a").fail("b").finish("un-a")
        assert world.resume().rows.status is RunStatus.FAILED
        assert world.events.count("NodeStarted b 1") == 1

    def test_one_that_a_cancel_has_undone_fails_the_run_again_when_it_is_resumed(self):
        world = saga().finish("a").cancel().finish("un-a")
        assert world.resume().rows.status is RunStatus.FAILED
        assert world.error.message == (
            "saga 's' was undone, because the run was cancelled; start a new run"
        )
        assert world.state("after") is NodeState.PENDING
        assert world.resume().rows.status is RunStatus.FAILED

    def test_one_that_a_cancel_has_undone_lets_the_run_go_on_where_it_may_fail(self):
        world = saga(on_failure="continue").finish("a").cancel().finish("un-a")
        assert world.resume().under_way == ["after"]
        assert world.state("b") is NodeState.SKIPPED

    def test_one_that_a_failure_beside_it_has_undone_fails_the_run_again(self):
        world = World(
            lambda _ctx: Parallel(
                Saga("s", Step(task("a"), task("un-a")), Step(task("b"))), task("x")
            )
        ).begin()
        world.finish("a").fail("x").finish("un-a").resume()
        assert world.rows.status is RunStatus.FAILED
        assert world.events.count("NodeStarted x 2") == 0

    def test_one_that_was_undone_in_a_try_turns_to_the_catch_when_the_run_is_resumed(self):
        world = World(
            lambda _ctx: Try(
                "t",
                Loop("l", Saga("s", Step(task("a"), task("un-a")), Step(task("b")))),
                catch=task("c"),
            )
        ).begin()
        assert world.finish("a").cancel().finish("un-a").resume().under_way == ["c"]
        assert not world.rows.loops
        assert world.finish("c").rows.status is RunStatus.FINISHED

    def test_one_that_was_undone_beside_a_failure_turns_to_the_catch_again(self):
        world = World(
            lambda _ctx: Try(
                "t",
                Parallel(Saga("s", Step(task("a"), task("un-a")), Step(task("b"))), task("x")),
                catch=task("c"),
            )
        ).begin()
        world.finish("a").fail("x").finish("un-a").fail("c")
        assert world.rows.status is RunStatus.FAILED
        assert world.resume().under_way == ["c"]

    def test_an_undo_that_failed_is_tried_again_by_a_resume_and_the_saga_fails_after_it(self):
        world = saga().finish("a").fail("b").fail("un-a")
        assert world.resume().under_way == ["un-a"]
        world.finish("un-a")
        assert world.rows.status is RunStatus.FAILED
        assert world.state("after") is NodeState.PENDING

    def test_an_undo_that_was_given_up_at_a_cancel_is_done_by_a_resume(self):
        world = saga().finish("a").cancel().pass_s(CLEAN_UP_MS / 1000 + 1)
        assert world.state("un-a") is NodeState.CANCELLED
        assert world.resume().under_way == ["un-a"]
        world.finish("un-a")
        assert world.error.message.startswith("saga 's' was undone")

    def test_a_try_around_it_takes_its_failure_once_it_is_undone(self):
        world = World(
            lambda _ctx: Try(
                "t", Saga("s", Step(task("a"), task("un-a")), Step(task("b"))), catch=task("c")
            )
        ).begin()
        assert world.finish("a").fail("b").under_way == ["un-a"]
        assert world.finish("un-a").under_way == ["c"]
        assert world.finish("c").rows.status is RunStatus.FINISHED

    def test_an_action_of_several_nodes_is_undone_where_one_of_them_is_done(self):
        world = World(
            lambda _ctx: Saga("s", Step(Sequence(task("a"), task("b")), task("un")))
        ).begin()
        assert world.finish("a").fail("b").under_way == ["un"]


gate = settings(max_examples=200)
CHOICES = st.lists(st.integers(0, 60), max_size=40)
DEATHS = st.sets(st.integers(1, 40), max_size=6)


def outcome(world: World) -> object:
    if world.rows.status is not RunStatus.FINISHED:
        return world.rows.status
    return world.states(), world.rows.tries


@gate
@given(specs(has_tries=True), CHOICES, DEATHS, DEATHS)
def test_every_order_with_every_death_comes_to_the_same_end(spec, choices, before, after):
    plain = Play(spec, []).to_end()
    other = Play(spec, choices, die_before=before, die_after=after).to_end()
    assert outcome(other) == outcome(plain)


@gate
@given(specs(has_tries=True), CHOICES, DEATHS, st.integers(0, 25))
def test_a_cancel_ends_the_run_as_cancelled_with_nothing_left_to_clean_up(
    spec, choices, after, step
):
    play = Play(spec, choices, die_after=after)
    world = play.world.begin()
    for _ in range(step):
        if not world.is_over:
            play._step()
    if world.rows.status.is_terminal:
        return
    world.cancel()
    for _ in range(100):
        if world.is_over:
            break
        play._step()
    assert world.rows.status is RunStatus.CANCELLED
    assert world.events[-1] == "RunCancelled"
    assert not [state for state in world.states().values() if state.startswith(("in-", "waiting"))]
    finished = [event.rpartition(" ")[0] for event in world.events if event.startswith("NodeFin")]
    assert len(set(finished)) == len(finished)


def test_the_random_trees_fail_and_catch():
    seen: Counter[str] = Counter()

    @settings(max_examples=300)
    @given(specs(has_tries=True), CHOICES)
    def look(spec, choices):
        world = Play(spec, choices).to_end()
        seen.update(f"{fact.phase} {fact.is_done}" for fact in world.rows.tries.values())

    look()
    for phase in ("after", "caught", "raised", "broken"):
        assert seen[f"{phase} True"] > 1, seen
