"""Tools in real runs: their rows and events, what a retry learns, and that nothing of them outlives its attempt."""

import json
import os
import signal
import time
from uuid import uuid4

import pytest

from tests.support.serving import find_processes, until_none
from tests.support.world import World, kill, until

IN_TIME_S = 15.0  # five seconds, and ten for which a busy machine may stand still


def jailed_mark() -> str:
    """A number of seconds that no other process sleeps for."""
    return f"3600.{uuid4().int % 10**9}"


async def until_process(mark: str) -> None:
    async def is_there() -> bool:
        return bool(find_processes(mark))

    await until(is_there, f"a process has {mark}")


def write_flow(world: World, body: str, **options: object) -> None:
    """Write a workflow of one task whose body is `body`."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    world.write("body.py", body)
    world.write(
        "flow.py",
        f"""
        from smithers import Task, workflow
        from body import body

        @workflow
        def flow(ctx):
            return Task("t", body{given})
        """,
    )


async def calls(world: World, run_id: str = "r") -> list[tuple[int, int, str, str]]:
    rows = await world.sql.fetch(
        "SELECT attempt, call_no, tool_name, state FROM smithers.tool_calls WHERE run_id = $1 ORDER BY 1, 2",
        run_id,
    )
    return [tuple(row) for row in rows]


async def test_every_call_is_a_row_and_two_events(world: World) -> None:
    write_flow(
        world,
        """
        from smithers.tools import ToolError, bash, grep, read, write

        async def body():
            await write("a/b.txt", "found\\n")
            lines = await grep("found", "a")
            try:
                await read("absent.txt")
            except ToolError:
                pass
            return [lines.matches[0].path, (await bash("cat", ["a/b.txt"])).check().stdout]
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": ["a/b.txt", "found\n"]}
    assert await calls(world) == [
        (1, 1, "write", "finished"),
        (1, 2, "grep", "finished"),
        (1, 3, "read", "failed"),
        (1, 4, "bash", "finished"),
    ]
    told = [
        (event["type"], event["toolName"], event["seq"], event["attempt"], event.get("status"))
        for event in await world.events("r")
        if event["type"].startswith("ToolCall")
    ]
    assert [one for one in told if one[2] in (3, 4)] == [
        ("ToolCallStarted", "read", 3, 1, None),
        ("ToolCallFinished", "read", 3, 1, "error"),
        ("ToolCallStarted", "bash", 4, 1, None),
        ("ToolCallFinished", "bash", 4, 1, "success"),
    ]
    row = await world.sql.fetchrow("SELECT * FROM smithers.tool_calls WHERE call_no = 3")
    assert row is not None
    assert json.loads(row["input"])["path"] == "absent.txt"
    assert json.loads(row["error"])["code"] == "TOOL_REFUSED"
    assert row["finished_at"] >= row["started_at"]


async def test_a_call_with_effects_is_in_the_database_before_it_runs(world: World) -> None:
    write_flow(
        world,
        """
        import os
        from ledger import mark
        from smithers.tools import previous_calls, tool

        @tool
        async def charge(amount: int) -> str:
            \"\"\"Take money.\"\"\"
            mark("charged")
            os.kill(os.getpid(), 9)

        async def body():
            if not previous_calls():
                await charge(5)
            return [(call.tool_name, call.state, call.attempt, call.input) for call in previous_calls()]
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert world.ledger() == {"charged": 1}
    assert await world.outputs("r") == {"t": [["charge", "started", 1, '{"amount":5}']]}


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_retry_knows_what_was_called(world: World, is_async: bool) -> None:
    call = "await {}" if is_async else "{}.result()"
    write_flow(
        world,
        f"""
        from smithers import current_task
        from smithers.tools import previous_calls, read, tool

        @tool
        def charge(amount: int) -> int:
            \"\"\"Take money.\"\"\"
            if amount > 1:
                raise ValueError("too much")
            return amount * 2

        {"async " if is_async else ""}def body():
            if current_task().attempt == 3:
                return [(c.attempt, c.call_no, c.state, c.is_idempotent, c.output) for c in previous_calls()]
            {call.format("charge(current_task().attempt)")}
            raise RuntimeError("again")
        """,
        retries=2,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["t"] == [
        [1, 1, "finished", False, "2"],
        [2, 1, "failed", False, None],
    ]


STUBBORN = """
from smithers.tools import bash

LINE = "trap '' TERM; setsid sh -c 'trap \\"\\" TERM; sleep {mark} & sleep {mark}' & sleep {mark}"

async def waits():
    await bash.shell(LINE)

def blocks():
    bash.shell(LINE).result()

body = {body}
"""


@pytest.mark.parametrize("body", ["waits", "blocks"])
async def test_a_cancel_reaches_every_process_of_a_tool(world: World, body: str) -> None:
    mark = jailed_mark()
    write_flow(world, STUBBORN.replace("{mark}", mark).replace("{body}", body))
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await until_process(mark)
    owner = await world.owner_pid("r")
    assert await world.cancel("r") == "requested"
    began = time.monotonic()
    await world.until_status("r", "cancelled")
    until_none(mark)
    assert time.monotonic() - began < IN_TIME_S
    os.kill(owner, 0)  # nobody had to be replaced for it
    assert await calls(world) == [(1, 1, "shell", "failed")]


async def test_a_time_out_of_the_task_ends_its_tools(world: World) -> None:
    mark = jailed_mark()
    write_flow(world, STUBBORN.replace("{mark}", mark).replace("{body}", "waits"), timeout=1)
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await until_process(mark)
    await world.until_status("r", "failed")
    until_none(mark)
    assert (await world.error("r"))["code"] == "TASK_TIMEOUT"


@pytest.mark.parametrize("victim", ["child", "pool"])
@pytest.mark.parametrize("unsafe_tools", [False, True], ids=["jailed", "unsafe"])
async def test_tools_die_with_the_worker_that_is_killed(
    world: World, victim: str, unsafe_tools: bool
) -> None:
    mark = jailed_mark()
    write_flow(world, STUBBORN.replace("{mark}", mark).replace("{body}", "waits"))
    pool = world.start_pool(workers=1, unsafe_tools=unsafe_tools)
    await world.start("r", "flow.py")
    await until_process(mark)
    before = set(find_processes(mark))
    kill(await world.owner_pid("r") if victim == "child" else pool.pid)

    async def are_gone() -> bool:
        return not before & set(find_processes(mark))

    await until(are_gone, "the old attempt's processes are dead", IN_TIME_S)
    if victim == "pool":
        assert find_processes(mark) == []


async def test_a_body_that_goes_on_calling_after_its_end_calls_nothing(world: World) -> None:
    write_flow(
        world,
        """
        from ledger import mark
        from smithers import current_task
        from smithers.tools import bash

        def body():
            mark("begun")
            while True:
                try:
                    bash("sleep", ["0.01"]).result()
                except Exception:
                    mark("swallowed")
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await world.until_ledger("begun")
    owner = await world.owner_pid("r")
    assert await world.cancel("r") == "requested"
    await world.until_status("r", "cancelled")
    os.kill(owner, 0)
    assert "swallowed" not in world.ledger()


BODIES = {
    "thread": "subprocess.run(['sh', '-c', 'trap \"\" TERM; sleep {mark}; sleep {mark}'])",
    "grandchildren": "subprocess.run(['sh', '-c', 'setsid sleep {mark} & sh -c \"sleep {mark}; true\"; true'])",
    "system": "os.system('sleep {mark}')",
    "asyncio": "await (await asyncio.create_subprocess_exec('sleep', '{mark}')).wait()",
    "asyncio thread": "await asyncio.to_thread(subprocess.run, ['sleep', '{mark}'])",
    "asyncio shell": "await (await asyncio.create_subprocess_shell('sleep {mark}; sleep {mark}')).wait()",
}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_cancel_reaches_what_a_body_started_by_itself(world: World, kind: str) -> None:
    mark = jailed_mark()
    start = BODIES[kind].replace("{mark}", mark)
    write_flow(
        world,
        f"""
        import asyncio, os, subprocess

        {"async " if kind.startswith("asyncio") else ""}def body():
            {start}
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await until_process(mark)
    owner = await world.owner_pid("r")
    assert await world.cancel("r") == "requested"
    began = time.monotonic()
    await world.until_status("r", "cancelled")
    until_none(mark)
    assert time.monotonic() - began < IN_TIME_S
    os.kill(owner, 0)


async def test_what_a_body_started_dies_before_its_run_goes_on_elsewhere(world: World) -> None:
    mark = jailed_mark()
    write_flow(
        world,
        f"""
        import subprocess
        from ledger import mark
        from smithers import current_task

        def body():
            if current_task().attempt == 1:
                subprocess.run(["setsid", "sleep", "{mark}"])
            found = subprocess.run(["pgrep", "-f", "sleep {mark}"], capture_output=True, text=True)
            return found.stdout
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await until_process(mark)
    kill(await world.owner_pid("r"))
    await world.until_status("r", "finished")
    assert await world.outputs("r") == {"t": ""}
    assert find_processes(mark) == []


async def test_a_process_of_another_body_in_the_same_thread_lives_on(world: World) -> None:
    kept, ended = jailed_mark(), jailed_mark()
    world.write(
        "flow.py",
        f"""
        import subprocess
        from smithers import Sequence, Task, workflow

        def leave():
            subprocess.Popen(["sleep", "{kept}"])

        def stay():
            subprocess.run(["sleep", "{ended}"])

        @workflow
        def flow(ctx):
            return Sequence(Task("leave", leave), Task("stay", stay))
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "flow.py")
    await until_process(ended)
    assert await world.cancel("r") == "requested"
    await world.until_status("r", "cancelled")
    until_none(ended)
    (left,) = find_processes(f"sleep\0{kept}")
    os.kill(left, signal.SIGKILL)
