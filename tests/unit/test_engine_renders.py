"""When a builder is called, what its trees leave behind, and what a large tree costs."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, field_validator

from smithers import Approval, Branch, Loop, Parallel, Sequence, Signal, Task, Timer
from smithers.engine import schedule as schedules
from smithers.engine.facts import Facts
from smithers.engine.frames import (
    DELTA,
    KEYFRAME,
    KEYFRAME_EVERY,
    encode_frame,
    hash_of,
    mounted_tasks,
    restore,
)
from smithers.engine.rendering import build_renderer
from smithers.errors import InvalidInput
from smithers.ids import RunId
from smithers.states import AttemptState, NodeState, RunStatus
from smithers.tree import Child
from smithers.workflow import Workflow
from tests.support.engine import START_MS, World
from worker.rendering import render_guard


class TestReads:
    def test_a_result_that_nobody_asked_for_causes_no_render(self):
        world = World(lambda _: [Task(x, 1) for x in "abc"]).begin()
        world.finish("a").finish("b").finish("c")
        assert world.render_count == 1

    @pytest.mark.parametrize("ask", ["output_maybe", "latest", "iteration_count", "state"])
    def test_a_result_that_was_asked_for_causes_one_also_when_there_was_none(self, ask):
        def build(ctx: Any) -> Any:
            getattr(ctx, ask)("b")
            return [Task(x, 1) for x in "abc"]

        world = World(build).begin()
        before = world.render_count
        world.finish("a")
        between = world.render_count
        world.finish("b")
        assert world.render_count > between
        if ask != "state":  # a change of state is what was asked for
            assert between == before == 1

    def test_a_state_is_told_as_it_changes(self):
        seen: list[Any] = []

        def build(ctx: Any) -> Any:
            seen.append(ctx.state("a"))
            return Task("a", 1, continue_on_fail=True)

        World(build).begin().fail("a")
        assert seen == [None, NodeState.PENDING, NodeState.IN_PROGRESS, NodeState.FAILED]

    def test_a_death_changes_no_state_that_a_builder_reads(self):
        def build(ctx):
            is_going = ctx.state("a") == "in-progress"
            return Parallel(Task("a", 1), is_going and Approval("stop", title="Stop it?"))

        world = World(build).begin()
        frames = [*world.rows.frames]
        world.die()
        assert (world.under_way, world.state("stop")) == (["a"], NodeState.WAITING_APPROVAL)
        assert world.events_of("stop").count("ApprovalRequested stop") == 1
        assert world.rows.frames == frames

    def test_what_is_asked_for_and_missing_fails_the_run_with_a_hint(self):
        world = World(lambda ctx: Task(ctx.output("a"), 1)).begin()
        assert world.rows.error is not None
        assert "output_maybe" in world.error.message

    def test_a_take_up_renders_once(self):
        world = World(lambda _: [Task("a", 1), Task("b", 1)]).begin().finish("a")
        before = world.render_count
        world.die()
        assert world.render_count == before + 1


class TestFrames:
    def test_a_frame_is_kept_only_where_the_tree_has_changed(self):
        def build(ctx: Any) -> Any:
            ctx.output_maybe("a")
            return [Task("a", 1), ctx.output_maybe("b") and Task("c", 1), Task("b", 1)]

        world = World(build).begin().finish("a", value=1)
        assert len(world.rows.frames) == 1
        world.finish("b", value=1)
        assert len(world.rows.frames) == 2

    def test_a_take_up_keeps_no_frame_of_the_same_tree(self):
        world = World(lambda _: Task("a", 1)).begin().die()
        assert len(world.rows.frames) == 1

    def test_a_tree_that_changes_and_changes_back_in_one_turn_leaves_no_frame(self):
        def build(ctx: Any) -> Any:
            states = ctx.state("a"), ctx.state("x")
            between = states == ("finished", "pending")
            return [Task("a", 1), Task("x", 1, skip_if=True), between and Timer("t", duration=9)]

        world = World(build).begin().finish("a")
        assert world.events_of("t") == ["NodePending t", "NodeSkipped t"]
        assert len(world.rows.frames) == 1
        assert world.events.count("FrameCommitted 1") == 1

    def test_every_row_gives_its_whole_text_back(self):
        def build(ctx: Any) -> Any:
            count = ctx.iteration_count("a")
            return Loop(
                "l", Task("a", 1, label=f"{count} \U0001f600"), Task("b", 1), max_iterations=45
            )

        world = World(build).begin()
        while not world.is_over:
            world.finish(*world.under_way)
        assert len(world.rows.frames) > KEYFRAME_EVERY
        assert [hash_of(frame) for frame in world.rows.frames] == world.rows.hashes

    def test_a_small_change_of_a_large_tree_is_a_small_row(self):
        text = orjson.dumps(["x" * 9 for _ in range(1000)]).decode()
        encoding, body = encode_frame(2, text.replace("x", "y", 1), text)
        assert encoding == DELTA
        assert len(body) < 30
        assert restore(text, encoding, body) == text.replace("x", "y", 1)

    def test_a_whole_tree_stands_there_every_so_often_and_first(self):
        text = "x" * 1000
        assert encode_frame(1, text, None)[0] == KEYFRAME
        assert encode_frame(KEYFRAME_EVERY + 1, text + "y", text)[0] == KEYFRAME
        assert encode_frame(2, text + "y", text)[0] == DELTA
        assert restore("", KEYFRAME, text) == text

    def test_the_wire_knows_every_kind_of_element(self):
        def build(_: Any) -> Any:
            return [
                Parallel(
                    Task("a", 1, retries=2, meta={"x": [1]}),
                    Approval("b", title="T"),
                    max_concurrency=3,
                ),
                Loop("l", Signal("c", correlation_id="k"), Timer("d", duration=1.5)),
            ]

        frame = orjson.loads(World(build).begin().rows.frames[0])
        tags = []
        stack = [frame]
        while stack:
            element = stack.pop()
            assert all(isinstance(value, str) for value in element["props"].values())
            tags.append(element["tag"].removeprefix("smithers:"))
            stack += element["children"]
        assert sorted(tags) == sorted(
            [
                "workflow",
                "sequence",
                "parallel",
                "task",
                "approval",
                "ralph",
                "wait-for-event",
                "timer",
            ]
        )
        assert [key.node_id for key in mounted_tasks(orjson.dumps(frame).decode())] == [*"abcd"]


class TestLeavingTheTree:
    def test_an_attempt_whose_task_leaves_is_stopped(self):
        def build(ctx: Any) -> Any:
            return Parallel(Task("a", 1), not ctx.output_maybe("a") and Task("b", 1))

        world = World(build, aborts_at_once=False).begin().finish("a", value=1)
        assert world.aborting == {world.key("b"): "unmounted"}
        assert not world.is_over
        world.stop("b")
        assert world.events[-2:] == ["NodeCancelled b 1 unmounted", "RunFinished"]
        assert ("b", 1, AttemptState.CANCELLED) in world.rows.attempts

    def test_an_attempt_that_finishes_before_it_is_stopped_is_kept(self):
        def build(ctx: Any) -> Any:
            return Parallel(Task("a", 1), not ctx.output_maybe("a") and Task("b", 1))

        world = World(build, aborts_at_once=False).begin().finish("a", value=1).finish("b")
        assert world.state("b") is NodeState.FINISHED

    def test_an_attempt_that_fails_after_its_task_left_does_not_fail_the_run(self):
        def build(ctx: Any) -> Any:
            return Parallel(Task("a", 1), Task("c", 1), not ctx.output_maybe("a") and Task("b", 1))

        world = World(build, aborts_at_once=False).begin().finish("a", value=1).fail("b").die()
        assert world.finish("c").rows.status is RunStatus.FINISHED

    def test_an_attempt_that_died_with_its_process_and_left_the_tree_is_cancelled(self):
        def build(ctx: Any) -> Any:
            return Parallel(Task("a", 1), not ctx.output_maybe("a") and Task("b", 1))

        world = World(build, aborts_at_once=False).begin().finish("a", value=1).die()
        assert world.state("b") is NodeState.CANCELLED
        assert world.rows.status is RunStatus.FINISHED

    def test_a_wait_that_leaves_is_withdrawn(self):
        def build(ctx: Any) -> Any:
            waits: list[Child] = [Timer("t", duration=9), Approval("ok", title="?"), Signal("s")]
            return Parallel(Task("a", 1), not ctx.output_maybe("a") and waits)

        world = World(build).begin().finish("a", value=1)
        assert world.is_over
        assert {world.state(node) for node in ("t", "ok", "s")} == {NodeState.CANCELLED}
        assert "TimerCancelled t" in world.events

    def test_a_pending_node_that_leaves_is_skipped_and_runs_when_it_is_back(self):
        def build(ctx: Any) -> Any:
            here = not ctx.output_maybe("a") or ctx.output_maybe("b")
            return [Task("a", 1), here and Task("x", 1), Task("b", 1)]

        world = World(build).begin().finish("a", value=1)
        assert world.state("x") is NodeState.SKIPPED
        world.finish("b", value=1)
        assert world.under_way == ["x"]

    def test_a_finished_node_that_comes_back_is_not_run_again(self):
        def build(ctx: Any) -> Any:
            here = not ctx.output_maybe("a") or ctx.output_maybe("b")
            return Sequence(here and Task("a", 1), Task("b", 1))

        world = World(build).begin().finish("a", value=1).finish("b", value=1)
        assert world.is_over
        assert world.fact("a").attempt == 1

    def test_a_task_that_is_back_before_it_was_stopped_starts_again_in_its_turn(self):
        def build(ctx: Any) -> Any:
            gone = ctx.output_maybe("a") and not ctx.output_maybe("b")
            return Parallel(Task("a", 1), Task("b", 1), not gone and Task("x", 1))

        world = World(build, aborts_at_once=False).begin()
        world.finish("a", value=1).finish("b", value=1)
        world.stop("x")
        assert world.events_of("x")[-3:] == [
            "NodeCancelled x 1 unmounted",
            "NodePending x",
            "NodeStarted x 2",
        ]

    def test_a_task_that_is_back_behind_another_waits_for_it(self):
        def build(ctx: Any) -> Any:
            gone = ctx.output_maybe("a") and not ctx.output_maybe("b")
            rest = Sequence(Task("c", 1), Task("x", 1)) if ctx.output_maybe("b") else Task("x", 1)
            return Parallel(Task("a", 1), Task("b", 1), not gone and rest)

        world = World(build, aborts_at_once=False).begin()
        world.finish("a", value=1).finish("b", value=1)
        world.stop("x")
        assert world.under_way == ["c"]
        assert world.finish("c").under_way == ["x"]

    def test_nobody_waits_for_a_node_that_was_cancelled_and_is_gone(self):
        def build(ctx: Any) -> Any:
            gone = ctx.output_maybe("a")
            return Parallel(Task("a", 1), not gone and Task("x", 1), Task("b", 1, depends_on=["x"]))

        world = World(build, aborts_at_once=False).begin().finish("a", value=1)
        assert world.under_way == ["x"]
        assert world.stop("x").under_way == ["b"]

    def test_nobody_starts_to_wait_for_a_node_that_was_cancelled_and_is_gone(self):
        def build(ctx: Any) -> Any:
            gone = ctx.output_maybe("a")
            both = Parallel(Task("a", 1), not gone and Timer("x", duration=900))
            return [both, Task("b", 1, depends_on=["x"])]

        world = World(build).begin().finish("a", value=1)
        assert world.state("x") is NodeState.CANCELLED
        assert world.under_way == ["b"]

    def test_a_task_that_leaves_and_is_back_within_one_turn_is_not_stopped(self):
        def build(ctx: Any) -> Any:
            gone = (ctx.state("a"), ctx.state("y")) == ("finished", "pending")
            late = Sequence(Task("a", 1), Task("y", 1, skip_if=True))
            return Parallel(late, not gone and Task("x", 1), Branch(gone, None, Task("z", 1)))

        world = World(build, aborts_at_once=False).begin().finish("a")
        assert world.aborting == {}
        assert world.finish("x").finish("z").rows.status is RunStatus.FINISHED

    def test_a_task_whose_branch_is_not_chosen_any_more_is_stopped_once(self):
        def build(ctx: Any) -> Any:
            states = [ctx.state(node) for node in "ab"]
            return [
                Parallel(Task("a", 1), Branch(states[0] != "finished", Task("x", 1))),
                Task("b", 1, skip_if=True),
            ]

        world = World(build, aborts_at_once=False).begin().finish("a")
        assert world.stop("x").events_of("x")[-1] == "NodeCancelled x 1 unmounted"

    def test_a_decision_for_a_task_whose_turn_has_passed_back_waits_for_its_turn(self):
        def build(ctx: Any) -> Any:
            gated = Task("x", 1, needs_approval=True)
            if ctx.output_maybe("a"):
                return Parallel(Task("a", 1), Sequence(Task("first", 1), gated))
            return Parallel(Task("a", 1), gated)

        world = World(build).begin().finish("a", value=1).approve("x")
        assert world.under_way == ["first"]
        assert world.finish("first").under_way == ["x"]

    def test_a_wait_in_whose_place_another_kind_stands_begins_anew(self):
        world = World(lambda _: Signal("x")).begin()
        world.renderer = World(lambda _: Task("x", 1)).renderer
        world._take_up()
        assert world.under_way == ["x"]


class TestCost:
    COUNT = 2_000

    def test_a_long_sequence_that_nobody_reads_is_rendered_once(self):
        world = World(lambda _: [Task(f"n{number}", 1) for number in range(self.COUNT)]).begin()
        for number in range(self.COUNT):
            world.finish(f"n{number}")
        assert world.is_over
        assert world.render_count == 1

    @pytest.mark.parametrize("shape", ["sequence", "parallel", "limited"])
    def test_settling_a_node_costs_the_same_in_a_small_and_in_a_large_tree(
        self, shape, monkeypatch
    ):
        small, large = (self._most_steps(shape, count, monkeypatch) for count in (20, self.COUNT))
        assert large == small < 20

    def _most_steps(self, shape: str, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
        """Count the calls inside the schedule for each settled node, and return the most."""

        def build(_: Any) -> Any:
            tasks = [Task(f"n{number}", 1) for number in range(count)]
            limit = 8 if shape == "limited" else None
            return tasks if shape == "sequence" else Parallel(tasks, max_concurrency=limit)

        world = World(build).begin()
        steps = [0]

        def counted(function: Any) -> Any:
            def call(*args: Any) -> Any:
                steps[0] += 1
                return function(*args)

            return call

        with monkeypatch.context() as patch:
            for name in ("_hold", "_offer", "_offer_room"):
                patch.setattr(schedules, name, counted(getattr(schedules, name)))
            for name in ("_advance", "_give_room_back", "_open", "_reach", "_take_room", "settle"):
                patch.setattr(schedules.Schedule, name, counted(getattr(schedules.Schedule, name)))
            most = 0
            for number in range(count):
                steps[0] = 0
                world.finish(f"n{number}")
                most = max(most, steps[0])
        return most

    def test_a_wait_is_looked_at_once_however_often_the_tree_is_rendered(self):
        def build(ctx: Any) -> Any:
            ctx.output_maybe("a")
            return Parallel(Loop("l", Task("a", 1), max_iterations=50), Timer("t", duration=900))

        world = World(build).begin()
        for number in range(49):
            world.finish(f"a#{number}", value=1)
        assert len(world.run.dues._heap) == 1
        assert world.run.next_due_ms() == START_MS + 900_000


def test_a_run_under_suspicion_starts_only_what_it_may_and_the_rest_when_it_is_cleared():
    world = World(lambda _: Parallel(Task(x, 1) for x in "cab"))
    world._go = lambda: None  # type: ignore[method-assign]  # held before its first turn
    world.begin()
    del world._go
    world.run.start_only({world.key("a")})
    world._go()
    assert world.under_way == ["a"]
    world.run.start_only(None)
    world._go()
    assert world.under_way == ["a", "b", "c"]


def read_input(given: str, *, timeout_s: float = 60) -> Any:
    """Have a run's renderer made of its input, as a child does."""

    class Given(BaseModel):
        topic: str

        @field_validator("topic", mode="before")
        @classmethod
        def tidy(cls, topic: str) -> str:
            if topic == "slow":
                threading.Event().wait(60)
            if topic == "exit":
                raise SystemExit(topic)
            return topic.strip()

    renderer = build_renderer(
        Workflow(name="w", builder=lambda _: None, input_model=Given),
        run_id=RunId("r"),
        input_json=given,
        auth_json=None,
        carried_json=None,
        config_json="{}",
        guard=render_guard(timeout_s),
    )
    return renderer.read_input()


def test_what_a_builder_changes_in_its_input_no_later_render_sees():
    def build(ctx: Any) -> Any:
        ctx.input["names"].append("x")
        ctx.carried.append("y")
        names = [*ctx.input["names"], *ctx.carried, len(ctx.carried)]
        return [Task(f"{name}", 1) for name in names]

    renderer = build_renderer(
        Workflow(name="w", builder=build),
        run_id=RunId("r"),
        input_json='{"names": ["a"]}',
        auth_json=None,
        carried_json="[]",
        config_json="{}",
        guard=lambda call: call(),
    )
    for _ in range(2):
        mounted = renderer.render(Facts(), {}).mounted
        assert [key.node_id for key in mounted.leaves] == ["a", "x", "y", "1"]


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    "wrong",
    ["pass", "return [Task('a', 1), Task('a', 2)]", "__import__('threading').Event().wait()"],
)
def test_what_no_line_of_a_builder_raised_is_told_with_where_the_builder_begins(wrong):
    names: dict[str, Any] = {"Task": Task}
    code = compile(f"\ndef build(ctx):\n    {wrong}\n", "flows/plan.py@0a1b2c3d", "exec")
    exec(code, names)
    world = World(names["build"])
    world.renderer = world.renderer._replace(guard=render_guard(0.1))
    error = world.begin().rows.error
    assert error is not None
    assert error.message.endswith(" (flows/plan.py, line 2)")
    assert (error.traceback or "").startswith(
        'Traceback (most recent call last):\n  File "flows/plan.py@0a1b2c3d", line 2, in build\n'
    )
    assert "/smithers/" not in (error.traceback or "")


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("{}", "topic: Field required"),
        ('{"topic": 515}', "AttributeError"),
        ('{"topic": "exit"}', "SystemExit"),
        ('{"topic": "slow"}', "TimeoutError"),
    ],
)
def test_whatever_a_model_makes_of_an_input_is_the_inputs_fault(given, wrong):
    assert read_input('{"topic": " x "}').topic == "x"
    with pytest.raises(InvalidInput, match=f"does not fit w: .*{wrong}$") as caught:
        read_input(given, timeout_s=0.1)
    assert "515" not in f"{caught.value}{caught.value.details}"
