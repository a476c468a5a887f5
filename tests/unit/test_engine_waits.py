"""Approvals, gates, signals, timers: how they begin, what ends them, and how a run is parked meanwhile."""

import asyncio
import signal
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from gateway.run_state import iso
from smithers import (
    Approval,
    ApprovalDecision,
    Branch,
    ContinueAsNew,
    Loop,
    Parallel,
    Retry,
    Sequence,
    Signal,
    Subflow,
    Task,
    Timer,
)
from smithers.engine.facts import NodeKey
from smithers.engine.mount import LeafPlace
from smithers.engine.progress import Progress
from smithers.states import ApprovalStatus, NodeState, RunStatus
from smithers.tree import Child
from smithers.workflow import Workflow
from tests.support.engine import START_MS, World
from worker.rendering import render_guard


class TestApprovals:
    def test_a_yes_is_the_output(self):
        world = World(lambda _: [Approval("ok", title="Go?"), Task("a", 1)]).begin()
        assert world.rows.requests[world.key("ok")]["title"] == "Go?"
        world.approve("ok", note="fine")
        decision = ApprovalDecision.model_validate(world.output("ok"))
        assert (decision.approved, decision.note, decision.decided_by) == (True, "fine", "ann")
        assert decision.decided_at == datetime.fromtimestamp(START_MS / 1000, UTC)
        assert world.under_way == ["a"]

    def test_one_is_decided_without_a_look_at_the_others(self, monkeypatch: pytest.MonkeyPatch):
        gates = [Approval(f"ok-{number}", title="?") for number in range(9)]
        world = World(lambda _: Parallel(Task("holds", 1), *gates)).begin()
        looked_at: list[NodeKey] = []
        find_leaf = Progress.find_leaf

        def count(run: Progress, key: NodeKey) -> LeafPlace | None:
            looked_at.append(key)
            return find_leaf(run, key)

        monkeypatch.setattr(Progress, "find_leaf", count)
        world.approve("ok-7")
        assert world.state("ok-7") is NodeState.FINISHED
        assert set(looked_at) == {world.key("ok-7")}

    def test_a_no_fails_the_run(self):
        world = World(lambda _: [Approval("ok", title="?"), Task("a", 1)]).begin()
        world.deny("ok", note="no money")
        assert world.rows.status is RunStatus.FAILED
        assert world.rows.error is not None
        assert world.error.code == "APPROVAL_DENIED"
        assert world.error.message == "denied by ann: no money"

    def test_a_no_may_be_an_answer_like_another(self):
        world = World(lambda _: [Approval("ok", title="?", on_deny="continue"), Task("a", 1)])
        world.begin().deny("ok")
        assert world.output("ok")["approved"] is False
        assert world.under_way == ["a"]

    def test_a_no_may_skip_the_approval_and_what_needs_it(self):
        def build(_: Any) -> Any:
            return [Approval("ok", title="?", on_deny="skip"), Task("a", 1, needs={"d": "ok"})]

        world = World(build).begin().deny("ok")
        assert world.states() == {"a": "skipped", "ok": "skipped"}

    @pytest.mark.parametrize(
        ("on_deny", "state", "status"),
        [
            ("fail", NodeState.FAILED, RunStatus.FAILED),
            ("continue", NodeState.FINISHED, RunStatus.FINISHED),
            ("skip", NodeState.SKIPPED, RunStatus.FINISHED),
        ],
    )
    def test_time_that_runs_out_is_a_no_and_told_apart(self, on_deny, state, status):
        world = World(lambda _: Approval("ok", title="?", timeout=60, on_deny=on_deny)).begin()
        assert world.rows.due_ms == START_MS + 60_000
        assert not world.pass_s(59).is_over
        world.pass_s(1)
        assert (world.state("ok"), world.rows.status) == (state, status)
        if on_deny == "fail":
            assert world.rows.error is not None
            assert world.error.code == "WAIT_TIMED_OUT"
        if on_deny == "continue":
            assert world.output("ok")["timed_out"] is True

    def test_no_time_at_all_is_given_up_once_the_question_is_committed(self):
        def build(ctx: Any) -> Any:
            ctx.state("ok")  # renders again in the turn that asks
            return Approval("ok", title="?", timeout=0, on_deny="continue")

        world = World(build).begin()
        assert world.events.index("ApprovalRequested ok") < world.events.index("ApprovalDenied ok")
        assert world.is_over

    def test_a_yes_before_the_time_runs_out_counts_even_when_it_is_seen_later(self):
        world = World(lambda _: [Approval("ok", title="?", timeout=60), Task("a", 1)]).begin()
        world.now_ms += 90_000  # nobody woke up in time
        assert world.approve("ok").under_way == ["a"]

    def test_a_denied_approval_is_asked_anew_after_a_resume(self):
        world = World(lambda _: Approval("ok", title="?")).begin().deny("ok").resume()
        assert world.rows.status is RunStatus.WAITING_APPROVAL
        assert world.approve("ok").rows.status is RunStatus.FINISHED

    def test_an_old_answer_is_none_to_a_question_that_is_not_committed_yet(self):
        """The commit that asks anew came too late, and what was reloaded still holds the denial of before."""

        def build(ctx: Any) -> Any:
            ctx.output_maybe("a")
            return Parallel(Approval("ok", title="?"), Task("a", 1, needs_approval=True))

        world = World(build).begin().approve("a").deny("ok")
        commit = world._commit
        calls: list[int] = []

        def stale_once(run: Any, turn: Any) -> None:
            if not calls:
                calls.append(1)
                run.retract_ending()
                world._take_news(run)
                turn = run.plan(world.now_ms)
            commit(run, turn)

        world._commit = stale_once  # type: ignore[method-assign]  # one stale commit
        world.resume()
        assert world.state("ok") is NodeState.WAITING_APPROVAL
        world.finish("a", value=1)
        assert world.rows.status is RunStatus.WAITING_APPROVAL

    @pytest.mark.parametrize("name", ["allowed_users", "allowed_scopes"])
    def test_who_may_decide_is_asked_for(self, name):
        who: dict[str, Any] = {name: ["ann"]}
        world = World(lambda _: Approval("ok", title="?", **who)).begin()
        (wire,) = ({"allowed_users": "allowedUsers", "allowed_scopes": "allowedScopes"}[name],)
        assert world.rows.requests[world.key("ok")][wire] == ["ann"]


class TestGates:
    def test_a_gate_stands_before_the_first_attempt_only(self):
        world = World(lambda _: Task("a", 1, needs_approval=True, retries=1)).begin()
        assert world.rows.status is RunStatus.WAITING_APPROVAL
        world.approve("a").fail("a").try_next()
        assert world.finish("a").fact("a").attempt == 2

    def test_a_gate_stays_open_whatever_is_decided_after_it(self):
        gated = Task("a", 1, needs_approval=True, retries=1)
        world = World(lambda _: Parallel(gated, Approval("ok", title="?"))).begin().approve("a")
        world.approve("ok").fail("a").try_next()
        assert world.under_way == ["a"]

    def test_a_no_at_a_gate_fails_the_task(self):
        world = World(lambda _: Task("a", 1, needs_approval=True)).begin().deny("a")
        assert world.rows.status is RunStatus.FAILED

    def test_a_no_at_the_gate_of_a_task_whose_failure_is_tolerated_moves_on(self):
        task = Task("a", 1, needs_approval=True, continue_on_fail=True)
        world = World(lambda _: [task, Task("b", 1)]).begin().deny("a")
        assert world.die().under_way == ["b"]

    def test_a_yes_is_remembered_over_a_death(self):
        world = World(lambda _: Task("a", 1, needs_approval=True)).begin().approve("a").die()
        assert world.under_way == ["a"]

    def test_any_number_of_gates_may_open_for_a_builder_that_watches_them(self):
        names = [f"t{number}" for number in range(40)]

        def build(ctx):
            assert all(ctx.state(name) is not NodeState.FAILED for name in names)
            return Parallel(Task(name, 1, needs_approval=True) for name in names)

        world = World(build, max_concurrency=100).begin()
        for name in names:
            world.approve(name)
        assert len(world.under_way) == 40

    def test_a_skipped_task_asks_nobody(self):
        world = World(lambda _: Task("a", 1, needs_approval=True, skip_if=True)).begin()
        assert world.rows.approvals == {}


class Order(BaseModel):
    number: int


class TestSignals:
    def test_a_signals_data_is_the_output(self):
        world = World(lambda _: [Signal("paid", output=Order), Task("a", 1)]).begin()
        assert world.rows.status is RunStatus.WAITING_EVENT
        world.signal("paid", {"number": "7"})
        assert world.output("paid") == {"number": 7}
        assert world.under_way == ["a"]

    def test_an_early_signal_is_kept(self):
        world = World(lambda _: [Task("a", 1), Signal("paid")]).begin().signal("paid", 1)
        assert world.finish("a").output("paid") == 1
        assert "NodeWaitingEvent paid paid" not in world.events

    def test_each_signal_counts_once_and_the_oldest_first(self):
        world = World(lambda _: [Signal("x", event="go"), Signal("y", event="go")]).begin()
        world.signal("go", 1)
        assert world.state("y") is NodeState.WAITING_EVENT
        world.signal("go", 2)
        assert (world.output("x"), world.output("y")) == (1, 2)

    def test_the_first_in_the_tree_is_served_first(self):
        world = World(lambda _: Parallel(Signal("z", event="go"), Signal("a", event="go"))).begin()
        assert world.signal("go", 1).state("z") is NodeState.FINISHED

    def test_a_correlation_picks_its_signal(self):
        world = World(lambda _: Signal("paid", correlation_id="o7")).begin()
        world.signal("paid", 1, "o8").signal("paid", 2)
        assert not world.is_over
        assert world.signal("paid", 3, "o7").output("paid") == 3

    def test_without_a_correlation_any_signal_of_the_name_will_do(self):
        world = World(lambda _: Signal("paid")).begin().signal("other").signal("paid", 1, "o8")
        assert world.output("paid") == 1

    def test_data_that_does_not_fit_fails_the_node_and_says_where(self):
        world = (
            World(lambda _: Signal("paid", output=Order)).begin().signal("paid", {"number": "x"})
        )
        assert world.rows.error is not None
        assert world.error.code == "INVALID_OUTPUT"
        assert world.error.message.startswith(
            "the signal's data does not fit Order: number: Input should be a valid integer"
        )
        assert world.error.details[0]["loc"] == ["number"]

    @pytest.mark.parametrize(
        ("on_timeout", "state"),
        [("fail", NodeState.FAILED), ("continue", NodeState.FINISHED), ("skip", NodeState.SKIPPED)],
    )
    def test_a_signal_that_does_not_come_is_given_up(self, on_timeout, state):
        world = World(lambda _: Signal("paid", timeout=timedelta(hours=1), on_timeout=on_timeout))
        world.begin().pass_s(3600)
        assert world.state("paid") is state
        if on_timeout == "fail":
            assert world.rows.error is not None
            assert world.error.code == "WAIT_TIMED_OUT"

    def test_a_loop_takes_one_signal_in_each_iteration(self):
        world = World(lambda _: Loop("l", Signal("go"), max_iterations=3))
        world.begin().signal("go", 1).signal("go", 2).signal("go", 3)
        assert [world.output(f"go#{n}") for n in range(3)] == [1, 2, 3]

    def test_a_thousand_early_signals_are_taken_in_their_order(self):
        world = World(lambda _: [Task("a", 1), Loop("l", Signal("go"), max_iterations=1000)])
        world.begin()
        for number in range(1000):
            world.signal("go", number)
        world.finish("a")
        assert world.is_over
        assert [world.output(f"go#{n}") for n in range(1000)] == [*range(1000)]


class TestTimers:
    def test_a_timer_tells_when_it_fires(self):
        world = World(lambda _: [Timer("t", duration=90), Task("a", 1)]).begin()
        assert world.events[-3:] == [
            "TimerCreated t",
            "NodeWaitingTimer t",
            "RunStatusChanged waiting-timer",
        ]
        assert world.rows.due_ms == START_MS + 90_000
        world.pass_s(91)
        assert world.under_way == ["a"]
        fired = next(fields for kind, fields in world.rows.history if kind == "TimerFired")
        assert (fired["firedAtMs"] - START_MS, fired["delayMs"]) == (91_000, 1000)

    def test_a_death_does_not_move_a_timer(self):
        world = World(lambda _: Parallel(Timer("t", duration=90), Task("a", 1))).begin()
        world.pass_s(60).die().pass_s(30)
        assert world.state("t") is NodeState.FINISHED

    def test_a_timer_runs_on_whose_node_was_of_another_kind_before_it_began(self):
        def build(ctx: Any) -> Any:
            return [
                Task("a", 1),
                Timer("t", duration=60) if ctx.output_maybe("a") else Task("t", 2),
            ]

        assert World(build).begin().finish("a", value=1).pass_s(60).is_over

    def test_a_timer_that_is_due_at_the_take_up_fires_in_the_first_turn(self):
        world = World(lambda _: Parallel(Timer("t", duration=90), Task("a", 1))).begin()
        world.now_ms += 100_000
        before = world.commit_count
        assert world.die().state("t") is NodeState.FINISHED
        assert world.commit_count == before + 1

    @pytest.mark.parametrize("shift_s", [-60, 0])
    def test_a_moment_that_has_passed_fires_at_once(self, shift_s):
        moment = datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(seconds=shift_s)
        assert World(lambda _: Timer("t", until=moment)).begin().is_over

    def test_a_moment_is_waited_for(self):
        moment = datetime.fromtimestamp(START_MS / 1000 + 30, UTC)
        assert World(lambda _: Timer("t", until=moment)).begin().rows.due_ms == START_MS + 30_000

    @pytest.mark.parametrize(
        "moment",
        [
            datetime.max.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        ],
    )
    def test_a_moment_that_never_comes_is_one_that_can_be_shown(self, moment: datetime):
        due_ms = World(lambda _: Timer("t", until=moment)).begin().rows.due_ms
        assert due_ms is not None
        assert iso(due_ms).startswith("2")

    @pytest.mark.parametrize("duration", [1e15, 1e308])
    def test_for_ever_is_a_number_that_a_database_can_keep(self, duration):
        world = World(lambda _: Signal("s", timeout=duration)).begin()
        assert world.rows.due_ms is not None
        assert world.rows.due_ms < 2**53


class TestParking:
    def test_a_person_is_named_before_a_signal_and_a_signal_before_a_timer(self):
        waits = {
            RunStatus.WAITING_APPROVAL: Approval("ok", title="?"),
            RunStatus.WAITING_EVENT: Signal("paid"),
            RunStatus.WAITING_TIMER: Timer("t", duration=60),
        }
        statuses = [*waits]
        for first in range(3):
            left = [waits[status] for status in statuses[first:]]

            def build(_ctx: Any, left: Any = left) -> Any:
                return Parallel(reversed(left))

            world = World(build).begin()
            assert world.rows.status is statuses[first]

    def test_a_run_with_work_under_way_is_not_parked(self):
        world = World(lambda _: Parallel(Task("a", 1), Timer("t", duration=60))).begin()
        assert world.rows.status is RunStatus.RUNNING
        assert world.finish("a").rows.status is RunStatus.WAITING_TIMER

    def test_when_a_wait_began_is_known_also_where_its_run_has_work_under_way(self):
        world = World(lambda _: Parallel(Approval("ok", title="?"), Task("a", 1))).begin()
        assert world.run.committed.nodes[world.key("ok")].started_ms == START_MS

    def test_a_run_is_due_at_the_earliest_of_its_waits(self):
        tree: list[Child] = [
            Timer("t", duration=60),
            Signal("s", timeout=30),
            Approval("ok", title="?"),
        ]
        assert World(lambda _: Parallel(tree)).begin().rows.due_ms == START_MS + 30_000

    def test_a_back_off_counts_among_the_waits(self):
        retry = Retry(initial=20, jitter=False)
        tree = Parallel(Task("a", 1, retries=1, retry=retry), Approval("ok", title="?"))
        world = World(lambda _: tree).begin().fail("a")
        assert world.rows.status is RunStatus.WAITING_APPROVAL
        assert world.rows.due_ms == START_MS + 20_000
        assert world.pass_s(20).under_way == ["a"]

    def test_a_wait_behind_another_runs_out_in_its_time_also_after_a_take_up(self):
        def build(ctx):
            is_known = ctx.output_maybe("go") is not None
            return Parallel(
                Signal("go"),
                Signal("go2"),
                Sequence(
                    is_known and Approval("first", title="?"),
                    Approval("second", title="?", timeout=60, on_deny="continue"),
                ),
            )

        world = World(build).begin().signal("go", 1).signal("go2")
        assert world.progress is None
        world.pass_s(61)
        assert world.output("second")["timed_out"]
        assert world.state("first") is NodeState.WAITING_APPROVAL

    def test_a_timer_behind_what_nothing_can_begin_is_due_in_its_time(self):
        def build(ctx):
            is_known = ctx.output_maybe("go") is not None
            return Parallel(
                Signal("go"),
                Sequence(
                    is_known and Task("x", 1, depends_on=["nowhere"]), Timer("t", duration=60)
                ),
            )

        world = World(build).begin().signal("go", 1)
        assert world.rows.due_ms == world.fact("t").due_ms
        world.pass_s(61)
        assert world.state("t") is NodeState.FINISHED
        assert world.error.code == "DEPENDENCY_UNMET"

    def test_a_decision_that_came_while_the_run_was_being_parked_is_not_lost(self):
        world = World(lambda _: [Approval("ok", title="?"), Task("a", 1)]).begin()
        world.approve("ok")
        assert world.events[-3:] == ["RunStarted", "NodeFinished ok 1", "NodeStarted a 1"]

    @pytest.mark.parametrize(
        "other",
        [
            Task("other", 1),
            Approval("other", title="?"),
            Signal("other"),
            Timer("other", duration=9),
            Subflow("other", Workflow(name="child", builder=lambda _ctx: [])),
            ContinueAsNew(id="other"),
        ],
        ids=lambda other: type(other).__name__,
    )
    def test_what_a_yes_takes_out_of_the_tree_does_not_begin(self, other):
        def build(ctx):
            return [
                Approval("ok", title="?"),
                Branch(ctx.output_maybe("ok"), Task("a", 1), other),
                Task("b", 1, skip_if=not ctx.output_maybe("ok")),
            ]

        world = World(build).begin().approve("ok")
        assert world.under_way == ["a"]
        assert world.events_of("other") == ["NodePending other", "NodeSkipped other"]
        assert world.finish("a").under_way == ["b"]

    def test_a_parked_run_that_is_cancelled_withdraws_its_question(self):
        world = World(lambda _: Approval("ok", title="?")).begin().cancel()
        assert world.rows.approvals[world.key("ok")].status is ApprovalStatus.CANCELLED
        assert world.events[-2:] == ["NodeCancelled ok run-cancelled", "RunCancelled"]


@pytest.mark.parametrize(
    ("host", "wrong"),
    [("slow", "took longer"), ("exit", "SystemExit"), ("cancel", "CancelledError")],
)
def test_a_model_that_breaks_or_hangs_fails_its_wait_by_name(host, wrong):
    class Paid(BaseModel):
        host: str

        @field_validator("host")
        @classmethod
        def look_up(cls, host: str) -> str:
            match host:
                case "slow":
                    threading.Event().wait(60)
                case "exit":
                    raise SystemExit
                case "cancel":
                    raise asyncio.CancelledError
                case _:
                    pass
            return host

    before = signal.getsignal(signal.SIGALRM)
    try:
        world = World(lambda _: Signal("paid", output=Paid))
        world.renderer = world.renderer._replace(guard=render_guard(0.1))
        world.begin().signal("paid", {"host": host})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert world.rows.error is not None
    assert world.error.code == "INVALID_OUTPUT"
    assert world.error.message.startswith("the signal's data does not fit Paid: ")
    assert wrong in world.error.message
