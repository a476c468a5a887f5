"""Runs on a real pool and a real Postgres: what a workflow says is what its history says."""

import asyncio
import platform
import re

import pytest

from smithers.store.schema import run_alembic, upgrade_schema
from tests.support.world import World
from worker.slices import SLICE_NS

KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
RUNTIME = 5  # the field of `sched_attr` with the slice

TWO_TASKS = """
    from smithers import Task, workflow

    async def first():
        return {"n": 1}

    def second(first):
        print("seen", first["n"])
        return first["n"] + 1

    @workflow
    def two(ctx):
        return Task("a", first), Task("b", second, needs={"first": "a"})
"""


async def test_two_tasks_in_sequence_have_the_history_of_the_contract(world: World) -> None:
    world.write("two.py", TWO_TASKS)
    world.start_pool(workers=1)
    await world.start("r", "two.py")
    await world.until_status("r", "finished")
    assert await world.lines("r") == [
        "RunStarted",
        "NodePending a",
        "NodePending b",
        "FrameCommitted",
        "NodeStarted a 1",
        "NodeFinished a 1",
        "NodeStarted b 1",
        "NodeOutput b 1",
        "NodeFinished b 1",
        "RunFinished",
    ]
    assert await world.outputs("r") == {"a": {"n": 1}, "b": 2}


@pytest.mark.skipif(KERNEL < (6, 12), reason="the kernel keeps no slice for a thread")
async def test_a_child_has_short_slices_and_a_bodys_thread_the_usual_ones(world: World) -> None:
    world.write(
        "slices.py",
        """
        from smithers import Task, workflow
        from worker.slices import read_attributes

        async def in_loop():
            return read_attributes()

        @workflow
        def slices(ctx):
            return Task("loop", in_loop), Task("thread", read_attributes)
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "slices.py")
    await world.until_status("r", "finished")
    seen = await world.outputs("r")
    assert seen["loop"][RUNTIME] == SLICE_NS < seen["thread"][RUNTIME]


async def test_a_slow_sibling_delays_nobody(world: World) -> None:
    world.write(
        "siblings.py",
        """
        import asyncio
        from ledger import mark
        from smithers import Parallel, Sequence, Task, workflow

        async def slow():
            while not mark.done:
                await asyncio.sleep(0.01)

        mark.done = False

        async def last():
            mark.done = True

        @workflow
        def siblings(ctx):
            return Parallel(Task("slow", slow), Sequence(*(Task(f"q{i}", i) for i in range(20)), Task("last", last)))
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "siblings.py")
    await world.until_status("r", "finished")
    lines = await world.lines("r")
    assert lines.index("NodeFinished last 1") < lines.index("NodeFinished slow 1")


BODY_LINE = 25  # of what is wrong, in its file
WRONG = {
    "return Task('t', lambda: 1 / 0)": None,
    "return Task('t', lambda: object())": "INVALID_OUTPUT",
    "return Task('t', lambda: float('nan'))": "INVALID_OUTPUT",
    "return Task('t', lambda: 'x' * 2_000_000)": "INVALID_OUTPUT",
    "return Task('t', lambda: 'one', output=int)": "INVALID_OUTPUT",
    "return Task('t', lambda: __import__('sys').exit(1))": None,
    "return Task('t', slow, timeout=0.1)": "TASK_TIMEOUT",
    "return Task('t', slow_thread, timeout=0.1)": "TASK_TIMEOUT",
    "return [Task('a', 1), Task('a', 2)]": "DUPLICATE_NODE_ID",
    "return Task('t', {'n': 1}, output=Leaving)": None,
    "return HumanTask('t', prompt='?', output=Leaving)": "RENDER_FAILED",
    "return 5": "RENDER_FAILED",
    "Task('t', 1)": "RENDER_FAILED",
    "raise ValueError('no')": "RENDER_FAILED",
    "__import__('sys').exit(1)": "RENDER_FAILED",
    "while True: pass": "RENDER_FAILED",
    "return Task('t', 1, depends_on=['nobody'])": "DEPENDENCY_UNMET",
}


async def test_what_is_wrong_with_a_workflow_is_named_and_the_worker_lives_on(world: World) -> None:
    for number, body in enumerate(WRONG):
        world.write(
            f"wrong{number}.py",
            f"""
            import asyncio
            from pydantic import BaseModel, model_validator
            from smithers import HumanTask, Task, current_task, workflow

            class Leaving(BaseModel):
                n: int

                @model_validator(mode="after")
                def leave(self):
                    exit(3)

                @classmethod
                def __get_pydantic_json_schema__(cls, core_schema, handler):
                    exit(3)

            async def slow():
                await asyncio.sleep(100)

            def slow_thread():
                current_task().cancelled.wait(100)

            @workflow(render_timeout=2)
            def wrong(ctx):
                {body}
            """,
        )
    world.write("two.py", TWO_TASKS)
    world.start_pool(workers=1)
    for number in range(len(WRONG)):
        await world.start(f"wrong{number}", f"wrong{number}.py")
    codes = {}
    for number, body in enumerate(WRONG):
        await world.until_status(f"wrong{number}", "failed")
        codes[body] = (await world.error(f"wrong{number}")).get("code")
        assert (await world.lines(f"wrong{number}"))[-1] == "RunFailed"
    assert codes == WRONG
    await world.until_logged("run_failed", len(WRONG))
    told = {line["run_id"]: line for line in world.log("run_failed")}
    assert len(told) == len(WRONG)
    for number, body in enumerate(WRONG):
        line = told[f"wrong{number}"]
        assert (line["workflow"], line.get("code")) == (f"wrong{number}", WRONG[body])
        if "raise" in body:
            assert (line["file"], line["line"]) == (f"wrong{number}.py", BODY_LINE)
            assert (await world.error(f"wrong{number}"))["message"].endswith(
                f"ValueError: no (wrong{number}.py, line {BODY_LINE})"
            )
    await world.start("after", "two.py")
    await world.until_status("after", "finished")
    deaths = await world.sql.fetchval(
        "SELECT count(*) FROM smithers.workers WHERE dead_at IS NOT NULL"
    )
    assert deaths == 0


async def test_a_body_that_swallows_its_cancellation_is_left_behind(world: World) -> None:
    world.write(
        "deaf.py",
        """
        import asyncio
        from smithers import Task, workflow

        async def deaf():
            while True:
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    pass

        @workflow
        def deaf_workflow(ctx):
            return Task("t", deaf, timeout=0.1)
        """,
    )
    world.start_pool(workers=1, drain_timeout_s=1)
    await world.start("r", "deaf.py")
    await world.until_status("r", "failed")
    assert (await world.error("r"))["code"] == "TASK_TIMEOUT"


async def test_a_failed_task_is_tried_again_and_finishes(world: World) -> None:
    world.write(
        "flaky.py",
        """
        from smithers import Retry, Task, current_task, workflow

        def flaky():
            task = current_task()
            if task.attempt < 3:
                raise OSError("not yet")
            return task.idempotency_key

        @workflow
        def flaky_workflow(ctx):
            return Task("t", flaky, retries=3, retry=Retry(initial=0.01))
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flaky.py")
    await world.until_status("r", "finished")
    assert await world.lines("r") == [
        "RunStarted",
        "NodePending t",
        "FrameCommitted",
        "NodeStarted t 1",
        "NodeFailed t 1",
        "NodeRetrying t 2",
        "NodeStarted t 2",
        "NodeFailed t 2",
        "NodeRetrying t 3",
        "NodeStarted t 3",
        "NodeFinished t 3",
        "RunFinished",
    ]
    assert await world.outputs("r") == {"t": "r/t/0"}
    attempts = await world.sql.fetch(
        "SELECT attempt, state FROM smithers.attempts ORDER BY attempt"
    )
    assert [tuple(row) for row in attempts] == [(1, "failed"), (2, "failed"), (3, "finished")]


WAITS = """
    from smithers import Approval, ApprovalDecision, Parallel, Sequence, Signal, Task, Timer, workflow

    @workflow
    def waits(ctx):
        decision = ctx.output_maybe("ok", ApprovalDecision)
        return Sequence(
            Approval("ok", title="Go on?", on_deny=ctx.input.get("on_deny", "fail"), timeout=ctx.input.get("timeout")),
            decision and Task("approved", decision.approved),
            Parallel(Timer("sleep", duration=0.2), Signal("go", event="go")),
            Task("end", lambda: ctx.output("go")),
        )
"""


async def test_a_run_goes_on_by_itself_through_approval_timer_and_signal(world: World) -> None:
    world.write("waits.py", WAITS)
    world.start_pool()
    await world.start("r", "waits.py")
    assert await world.signal("r", "go", {"early": True}, "s1") == "received"
    assert await world.signal("r", "go", {"early": False}, "s1") == "repeated"
    await world.until_status("r", "waiting-approval")
    assert await world.sql.fetchval("SELECT owner_id FROM smithers.runs") is None
    assert await world.decide("r", "ok", is_approved=True) == "decided"
    assert await world.decide("r", "ok", is_approved=True) == "repeated"
    assert await world.decide("r", "ok", is_approved=False) == "not-waiting"
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["end"] == {"early": True}
    lines = await world.lines("r")
    parked = lines.index("RunStatusChanged waiting-approval")
    assert lines[parked + 1 : parked + 4] == [
        "ApprovalGranted ok",
        "RunStarted",
        "NodeFinished ok 1",
    ]


async def test_a_run_that_is_signalled_before_its_first_claim_starts_once(world: World) -> None:
    world.write(
        "early.py",
        """
        from smithers import Signal, workflow

        @workflow
        def early(ctx):
            return Signal("go")
        """,
    )
    await world.start("r", "early.py")
    assert await world.signal("r", "go", 1) == "received"
    world.start_pool(workers=1)
    await world.until_status("r", "finished")
    lines = await world.lines("r")
    assert lines[:3] == ["RunStarted", "SignalReceived", "NodePending go"]
    assert lines.count("RunStarted") == 1


async def test_a_denial_does_what_the_approval_says(world: World) -> None:
    world.write("waits.py", WAITS)
    world.start_pool(workers=1)
    after = {"fail": "failed", "continue": "waiting-event", "skip": "waiting-event"}
    for on_deny, status in after.items():
        await world.start(on_deny, "waits.py", {"on_deny": on_deny})
        await world.until_status(on_deny, "waiting-approval")
        await world.decide(on_deny, "ok", is_approved=False)
        await world.until_status(on_deny, status)
        assert ("approved" in await world.outputs(on_deny)) == (on_deny == "continue")


async def test_an_approval_that_nobody_decides_counts_as_denied(world: World) -> None:
    world.write("waits.py", WAITS)
    world.start_pool(workers=1)
    await world.start("r", "waits.py", {"timeout": 0.1})
    await world.until_status("r", "failed")
    assert (await world.error("r"))["code"] == "WAIT_TIMED_OUT"
    denied = next(event for event in await world.events("r") if event["type"] == "ApprovalDenied")
    assert denied["decidedBy"] == "system:timeout"


BUSY_AND_ASKING = """
    import asyncio
    from smithers import Approval, Parallel, Sequence, Task, workflow

    async def step():
        await asyncio.sleep(0.01)

    @workflow
    def busy(ctx):
        steps = Sequence(Task(f"s{n}", step) for n in range(60))
        return Parallel(steps, *(Approval(f"q{n}", title="?") for n in range(10)))
"""
DECIDE_UNTOLD = """
    SELECT (smithers.decide_approval_v5(
        ROW('r', $1::text, 0, true, NULL, 'x', NULL, NULL, NULL, false)::smithers.decision_v1)).outcome"""


async def test_decisions_that_nobody_is_told_of_are_taken_in_among_a_runs_own_commits(
    world: World,
) -> None:
    world.write("busy.py", BUSY_AND_ASKING)
    world.start_pool(workers=1)
    await world.start("r", "busy.py")
    for number in range(10):
        await world.until_event("r", f"NodeFinished s{number} 1")
        assert await world.sql.fetchval(DECIDE_UNTOLD, f"q{number}") == "decided"
    await world.until_status("r", "finished")
    lines = await world.lines("r")
    assert all(lines.count(f"NodeFinished q{number} 1") == 1 for number in range(10))


CANCELLABLE = """
    import asyncio
    from ledger import mark
    from smithers import Parallel, Task, current_task, workflow

    async def coroutine():
        mark("coroutine starts")
        try:
            await asyncio.sleep(100)
        finally:
            mark("coroutine stopped")

    def thread():
        mark("thread starts")
        current_task().cancelled.wait(100)
        mark("thread stopped")

    @workflow
    def cancellable(ctx):
        return Parallel(Task("c", coroutine), Task("t", thread)), Task("never", 1)
"""


async def test_a_cancel_reaches_coroutines_and_threads(world: World) -> None:
    world.write("cancellable.py", CANCELLABLE)
    world.start_pool(workers=1)
    await world.start("r", "cancellable.py")
    await world.until_ledger("thread starts")
    await world.until_ledger("coroutine starts")
    assert await world.cancel("r") == "requested"
    assert await world.cancel("r") == "requested"
    await world.until_status("r", "cancelled")
    assert {"coroutine stopped", "thread stopped"} <= set(world.ledger())
    lines = await world.lines("r")
    assert sorted(lines[-3:-1]) == ["NodeCancelled c 1", "NodeCancelled t 1"]
    assert lines[-1] == "RunCancelled"
    assert "NodeStarted never 1" not in lines
    assert world.ledger()["coroutine stopped"] == world.ledger()["thread stopped"] == 1
    assert await world.cancel("r") == "not-active"


async def test_a_queued_and_a_parked_run_are_cancelled_at_once(world: World) -> None:
    world.write("waits.py", WAITS)
    await world.start("queued", "waits.py")
    assert await world.cancel("queued") == "cancelled"
    world.start_pool(workers=1)
    await world.start("parked", "waits.py")
    await world.until_status("parked", "waiting-approval")
    assert await world.cancel("parked") == "cancelled"
    assert (await world.lines("parked"))[-2:] == ["NodeCancelled ok", "RunCancelled"]
    assert await world.decide("parked", "ok", is_approved=True) == "not-waiting"


async def test_a_resume_gives_failed_nodes_fresh_attempts_and_leaves_finished_ones(
    world: World,
) -> None:
    source = """
        from ledger import mark
        from smithers import Task, current_task, workflow

        def good():
            mark("good")

        def bad():
            if current_task().attempt == 1:
                raise ValueError("once")
            return "better"

        @workflow
        def halves(ctx):
            return Task("good", good), Task("bad", bad)
    """
    world.write("halves.py", source)
    world.start_pool(workers=1)
    await world.start("r", "halves.py")
    await world.until_status("r", "failed")
    assert await world.resume("r") == "resumed"
    await world.until_status("r", "finished")
    assert world.ledger()["good"] == 1
    assert (await world.outputs("r"))["bad"] == "better"
    assert await world.resume("r") == "finished"
    assert await world.sql.fetchval("SELECT error FROM smithers.runs") is None


async def test_a_cancelled_run_continues_when_resumed(world: World) -> None:
    world.write("waits.py", WAITS)
    world.start_pool(workers=1)
    await world.start("r", "waits.py")
    await world.until_status("r", "waiting-approval")
    await world.cancel("r")
    assert await world.resume("r") == "resumed"
    await world.until_status("r", "waiting-approval")
    await world.decide("r", "ok", is_approved=True)
    await world.signal("r", "go", 1)
    await world.until_status("r", "finished")


async def test_an_edit_takes_effect_at_the_next_start_and_a_run_keeps_its_version(
    world: World,
) -> None:
    def write(word: str) -> None:
        world.write("words.py", f"WORD = {word!r}\n")

    world.write(
        "said.py",
        """
        import words
        from smithers import Approval, Task, workflow

        @workflow
        def said(ctx):
            return Approval("ok", title="?"), Task("say", lambda: words.WORD)
        """,
    )
    world.start_pool(workers=1)
    for number, word in enumerate(["old", "new"]):
        write(word)
        await world.start(f"r{number}", "said.py")
        await world.until_status(f"r{number}", "waiting-approval")
    for number in range(2):
        await world.decide(f"r{number}", "ok", is_approved=True)
        await world.until_status(f"r{number}", "finished")
    assert [(await world.outputs(f"r{number}"))["say"] for number in range(2)] == ["old", "new"]


async def test_a_resume_with_an_edited_source_uses_it_for_what_is_left(world: World) -> None:
    world.write(
        "fix.py",
        "from smithers import Task, workflow\n@workflow\ndef fix(ctx):\n    return Task('a', 1), Task('b', lambda: 1 / 0)\n",
    )
    world.start_pool(workers=1)
    await world.start("r", "fix.py")
    await world.until_status("r", "failed")
    world.write(
        "fix.py",
        "from smithers import Task, workflow\n@workflow\ndef fix(ctx):\n    return Task('a', 2), Task('b', lambda: 3)\n",
    )
    assert await world.resume("r", "fix.py") == "resumed"
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"a": 1, "b": 3}
    assert "WorkflowReloaded" in await world.lines("r")


@pytest.mark.parametrize("before", ["failed", "cancelled", "waiting-approval"])
async def test_a_run_resumed_with_a_source_that_does_not_load_fails_until_it_is_mended(
    world: World, before: str
) -> None:
    body = "1" if before == "waiting-approval" else "1 / 0" if before == "failed" else "1"
    source = """
        from smithers import Approval, Sequence, Task, workflow

        @workflow
        def fix(ctx):
            return Sequence(Task("a", 1), ASKED, Task("b", lambda: BODY))
    """.replace("ASKED", "Approval('ok', title='?')" if before != "failed" else "Task('c', 1)")
    world.write("fix.py", source.replace("BODY", body))
    world.start_pool(workers=1)
    await world.start("r", "fix.py")
    await world.until_status("r", before if before == "failed" else "waiting-approval")
    if before == "cancelled":
        await world.cancel("r")
    world.write("fix.py", "import a_module_that_nobody_has\n")
    for _ in range(2):  # the second time it is one that has failed
        assert await world.resume("r", "fix.py") in {"resumed", "active"}
        await world.until_status("r", "failed")
        assert (await world.error("r"))["name"] == "ImportFailed"
        assert "skipped" not in (await world.states("r")).values()
    world.write("fix.py", source.replace("BODY", "2"))
    assert await world.resume("r", "fix.py") == "resumed"
    if before != "failed":
        await world.until_status("r", "waiting-approval")
        await world.decide("r", "ok", is_approved=True)
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["b"] == 2


async def test_an_input_that_does_not_fit_fails_the_run_by_name(world: World) -> None:
    world.write(
        "typed.py",
        """
        from pydantic import BaseModel, model_validator
        from smithers import Task, workflow

        class Given(BaseModel):
            n: int

            @model_validator(mode="before")
            @classmethod
            def tidy(cls, given):
                return {"n": given["n"] or exit(3)}

        @workflow(input=Given)
        def typed(ctx):
            return Task("t", ctx.input.n)
        """,
    )
    world.start_pool(workers=1)
    for run_id, given in {"none": {}, "misfit": {"n": "x"}, "nought": {"n": 0}}.items():
        await world.start(run_id, "typed.py", given)
        await world.until_status(run_id, "failed")
        assert (await world.error(run_id))["code"] == "INVALID_INPUT"
    await world.start("fits", "typed.py", {"n": 3})
    await world.until_status("fits", "finished")
    assert await world.outputs("fits") == {"t": 3}
    assert await world.sql.fetchval("SELECT count(*) FROM smithers.workers") == 1


async def test_runs_that_want_it_have_a_child_of_their_own(world: World) -> None:
    world.write(
        "alone.py",
        """
        import os
        from smithers import Task, workflow

        @workflow(isolation="process")
        def alone(ctx):
            return Task("pid", os.getpid)
        """,
    )
    world.start_pool(workers=1)
    for number in range(2):
        await world.start(f"alone{number}", "alone.py", is_solo=True)
    await world.start("among-others", "alone.py")
    pids = set()
    for run_id in ("alone0", "alone1", "among-others"):
        await world.until_status(run_id, "finished")
        pids.add((await world.outputs(run_id))["pid"])
    assert len(pids) == 3


HUGE = 2**70 + 1  # more than a double holds
WHOLE_NUMBERS = """
    from pydantic import BaseModel
    from smithers import Sequence, Signal, Task, workflow

    class Given(BaseModel):
        n: int

    def build(ctx, given):
        return Sequence(
            Task("given", lambda: given + 1),
            Signal("told"),
            Task("after", lambda told: told["n"] + 1, needs={"told": "told"}),
        )

    @workflow
    def plain(ctx):
        return build(ctx, ctx.input["n"])

    @workflow(input=Given)
    def modelled(ctx):
        return build(ctx, ctx.input.n)
"""


async def test_a_whole_number_of_any_size_comes_through_as_it_is(world: World) -> None:
    world.write("numbers.py", WHOLE_NUMBERS)
    world.start_pool(workers=1)
    for name in ("plain", "modelled"):
        await world.start(name, f"numbers.py:{name}", {"n": HUGE})
        await world.signal(name, "told", {"n": HUGE})
        await world.until_status(name, "finished")
        found = await world.outputs(name)
        assert (found["given"], found["after"]) == (HUGE + 1, HUGE + 1)


# What Postgres says of a value above a gigabyte, which the outputs of a run are once they are read together: here of the
# nodes that have one moment, because a gigabyte takes a test long.
TOO_LARGE = """
    CREATE OR REPLACE FUNCTION smithers.to_ms(p_at timestamptz) RETURNS bigint LANGUAGE plpgsql AS $$
    BEGIN
        IF p_at = '2999-01-01' THEN
            RAISE 'out of memory' USING ERRCODE = 'program_limit_exceeded';
        END IF;
        RETURN floor(extract(epoch FROM p_at) * 1000);
    END $$"""


async def test_a_run_that_is_too_large_to_be_taken_up_fails_by_name_and_takes_nobody_along(
    world: World,
) -> None:
    world.write(
        "asking.py",
        """
        from smithers import Approval, Task, workflow

        @workflow
        def asking(ctx):
            return Approval("ok", title="?"), Task("after", 1)
        """,
    )
    world.start_pool(workers=1)
    for run_id in ("large", "small"):
        await world.start(run_id, "asking.py")
        await world.until_status(run_id, "waiting-approval")
    await world.sql.execute(TOO_LARGE)
    await world.sql.execute(
        "UPDATE smithers.nodes SET due_at = '2999-01-01' WHERE run_id = 'large' AND node_id = 'ok'"
    )
    async with world.sql.transaction():  # one batch takes both up
        for run_id in ("large", "small"):
            assert await world.decide(run_id, "ok", is_approved=True) == "decided"
    world.wake()
    await world.until_status("small", "finished")
    await world.until_status("large", "failed")
    assert (await world.error("large"))["code"] == "RUN_TOO_LARGE"
    deaths = "SELECT count(*) FROM smithers.workers WHERE dead_at IS NOT NULL"
    assert await world.sql.fetchval(deaths) == 0


async def test_a_pool_takes_up_no_run_before_the_schema_is_new_enough(world: World) -> None:
    """A workflow's own database may still be at the last release's schema: a run could not even be failed there."""
    from alembic import command

    world.write("two.py", TWO_TASKS)
    await world.start("r", "two.py")
    await run_alembic(world.dsn, lambda config: command.downgrade(config, "-1"))
    world.start_pool(workers=1)
    await world.until_logged("watch_failed")
    (line,) = world.log("watch_failed")
    assert "run `smithers db upgrade`" in line["error"]
    assert await world.status("r") == "queued"
    await asyncio.to_thread(upgrade_schema, world.dsn)
    await world.until_status("r", "finished")
