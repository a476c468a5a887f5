"""What comes from outside meets a real pool: one outcome for an approval, each signal once and in order.

The long forms are `python -m bench.loads races signals`, over HTTP; the races of the store alone are in
tests/integration/test_store_outside.py.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from tests.support.world import World

ROUNDS = 40
SEED = 20261122
DECIDE = """SELECT (smithers.decide_approval_v5(
    ROW($1, 'ok', 0, $2::boolean, NULL, 'person', NULL, NULL, NULL, false)::smithers.decision_v1)).outcome"""
CANCEL = "SELECT outcome FROM smithers.cancel_run_v1($1)"
# As if its time had come: the run is claimed, and whoever claims it finds the wait over. The run's row first.
RUN_OUT = """
    WITH late AS (UPDATE smithers.runs SET due_at = smithers.clock()
        WHERE run_id = $1 AND owner_id IS NULL AND status = 'waiting-approval' RETURNING run_id)
    UPDATE smithers.nodes AS n SET due_at = smithers.clock() FROM late
    WHERE n.run_id = late.run_id AND n.state = 'waiting-approval'
"""
ENDS = {"approved": "finished", "denied": "failed"}


@pytest.fixture
async def doors(world: World) -> AsyncIterator[list[asyncpg.Connection]]:
    """Four connections, so that four can speak at once."""
    async with AsyncExitStack() as stack:
        opened = [await asyncpg.connect(world.dsn) for _ in range(4)]
        for connection in opened:
            stack.push_async_callback(connection.close)
        yield opened


async def race(
    world: World, doors: list[asyncpg.Connection], chance: random.Random, run_id: str
) -> dict[str, str]:
    """Let all four go in any order; return what they were answered."""
    calls: list[tuple[str, str, tuple[Any, ...]]] = [
        ("approve", DECIDE, (run_id, True)),
        ("deny", DECIDE, (run_id, False)),
        ("cancel", CANCEL, (run_id,)),
        ("time", RUN_OUT, (run_id,)),
    ]
    chance.shuffle(calls)
    # The last of them come when the time-out is being dealt with already, every other time.
    first = chance.randrange(1, 5)
    answers: dict[str, str] = {}
    for part in (calls[:first], calls[first:]):
        words = await asyncio.gather(
            *(
                door.fetchval(sql, *given)
                for door, (_, sql, given) in zip(doors, part, strict=False)
            )
        )
        world.wake()
        answers |= {name: word for (name, _, _), word in zip(part, words, strict=True)}
    return answers


async def test_of_approve_deny_cancel_and_time_out_one_decides_and_all_agree(
    world: World, doors: list[asyncpg.Connection]
) -> None:
    world.write(
        "ask.py",
        """
        from smithers import Approval, Sequence, Task, workflow

        @workflow
        def ask(ctx):
            return Sequence(Approval("ok", title="?", timeout=3600), Task("then", 1))
        """,
    )
    world.start_pool(workers=1)
    chance = random.Random(SEED)
    run_ids = [f"r{number}" for number in range(ROUNDS)]
    for run_id in run_ids:
        await world.start(run_id, "ask.py")
    for run_id in run_ids:
        await world.until_status(run_id, "waiting-approval")
        answers = await race(world, doors, chance, run_id)
        await world.until_status(run_id, "finished", "failed", "cancelled")
        events = await world.events(run_id)
        approval = await world.sql.fetchrow(
            "SELECT status, decided_by FROM smithers.approvals WHERE run_id = $1", run_id
        )
        said = [(e["type"], e["decidedBy"]) for e in events if "decidedBy" in e]
        types = {"approved": "ApprovalGranted", "denied": "ApprovalDenied"}
        assert approval is not None
        outcome = approval["status"]
        assert outcome in {*types, "cancelled"}
        assert said == ([(types[outcome], approval["decided_by"])] if outcome in types else [])
        assert (answers["approve"] == "decided") == (outcome == "approved")
        assert (answers["deny"] == "decided") == (
            outcome == "denied" and approval["decided_by"] == "person"
        )
        status = await world.status(run_id)
        assert (status == "cancelled") == (answers["cancel"] in {"cancelled", "requested"})
        assert status == ENDS.get(outcome, "cancelled") or status == "cancelled"
        assert [
            e["type"] for e in events if e["type"] in {"RunFinished", "RunFailed", "RunCancelled"}
        ] == [events[-1]["type"]]


async def test_each_signal_is_taken_once_in_the_order_of_its_number(
    world: World, doors: list[asyncpg.Connection]
) -> None:
    count = 60
    world.write(
        "inbox.py",
        f"""
        from smithers import Approval, Loop, Sequence, Signal, workflow

        @workflow
        def inbox(ctx):
            is_done = ctx.iteration_count("letter") >= {count}
            return Sequence(
                Approval("open", title="?"),
                Loop("letters", Signal("letter", output=int), until=is_done, max_iterations={count}),
            )
        """,
    )
    world.start_pool(workers=1)
    await world.start("r", "inbox.py")
    await world.until_status("r", "waiting-approval")
    sending = "SELECT seq FROM smithers.send_signal_v2('r', 'letter', NULL, $1, NULL, $2)"
    by_seq: dict[int, int] = {}

    async def send_half(numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, 2):
            pairs = [number for number in (first, first + 1) for _ in range(2)]
            seqs = await asyncio.gather(
                *(
                    door.fetchval(sending, str(number), f"letter-{number}")
                    for door, number in zip(doors, pairs, strict=True)
                )
            )
            assert seqs[0] == seqs[1]
            assert seqs[2] == seqs[3]
            by_seq.update(zip(seqs, pairs, strict=True))
            world.wake()

    await send_half(range(count // 2))
    await world.decide("r", "open", is_approved=True)
    await send_half(range(count // 2, count))
    await world.until_status("r", "finished")
    assert sorted(by_seq) == list(range(count))
    rows = await world.sql.fetch(
        "SELECT output FROM smithers.nodes WHERE run_id = 'r' AND node_id = 'letter' ORDER BY iteration"
    )
    assert [int(row["output"]) for row in rows] == [by_seq[seq] for seq in range(count)]
    await world.events("r")  # gapless
