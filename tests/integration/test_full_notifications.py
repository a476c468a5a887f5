"""The cluster's queue of notifications is full, because another application does not read its own: nobody stands still."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from smithers.engine.turn import ApprovalChange
from smithers.ids import NodeId, RunId
from smithers.store.commits import Committer, Outcome
from smithers.store.embedded import open_embedded_postgres
from smithers.store.hints import Channel, notify
from smithers.store.outside import Decision, SignalSent, decide, open_outside_lane, send_signal
from smithers.store.schema import upgrade_schema
from smithers.store.starts import open_start_lane
from tests.support.data_dirs import scratch
from tests.support.turns import Ground, a_start, a_turn, change, key_of, parked, said

QUEUE_PAGES = "64"  # the fewest that Postgres allows
FILLER = "y" * 7_000


@pytest.fixture(scope="module")
def full_dsn() -> Iterator[str]:
    settings = {"max_notify_queue_pages": QUEUE_PAGES}
    with (
        scratch() as folder,
        open_embedded_postgres(folder / "postgres", settings=settings) as server,
    ):
        upgrade_schema(server.dsn)
        yield server.dsn


@pytest.fixture
async def listener(full_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Another application's connection, which listens inside a transaction that it leaves open."""
    connection = await asyncpg.connect(full_dsn)
    await connection.execute("LISTEN elsewhere")
    await connection.execute("BEGIN")
    yield connection
    await connection.close()


async def fill(connection: asyncpg.Connection) -> None:
    for text in (FILLER, ""):  # to the last line of it
        with pytest.raises(asyncpg.ProgramLimitExceededError):
            await notify_for_ever(connection, text)


async def notify_for_ever(connection: asyncpg.Connection, text: str) -> None:
    for number in itertools.count():
        await connection.execute("SELECT pg_notify('elsewhere', $1)", f"{number}{text}")


async def test_what_is_written_stands_and_is_answered_and_the_queue_heals(
    full_dsn: str, listener: asyncpg.Connection
) -> None:
    async with Ground(full_dsn) as ground, AsyncExitStack() as stack:
        worker = await ground.add_worker()
        asked, told = await ground.owned(worker, "asked", "told")
        committer = await stack.enter_async_context(Committer(full_dsn, worker_id=worker))
        starts = await stack.enter_async_context(open_start_lane(full_dsn))
        outside = await stack.enter_async_context(open_outside_lane(full_dsn))
        question = a_turn(approvals=[ApprovalChange(key_of("ok"), "{}")], ending=parked().ending)
        await committer.commit(change(asked, question))
        await fill(ground.sql)
        assert await starts.submit(a_start("new"))
        answer = await committer.commit(change(told, said("x")))
        assert answer.outcome is Outcome.COMMITTED
        signal = SignalSent(
            run_id=RunId("told"),
            signal_name="s",
            correlation_id=None,
            data="1",
            received_by=None,
            signal_id=None,
        )
        assert [(await send_signal(outside, signal)).seq for _ in range(2)] == [0, 1]
        decision = Decision(
            run_id=RunId("asked"),
            node_id=NodeId("ok"),
            iteration=0,
            is_approved=True,
            note=None,
            decided_by=None,
            decision=None,
            user=None,
            scopes=None,
        )
        assert await decide(outside, decision)
        await notify(ground.sql, {Channel.DUE: ["default"]})
        await listener.close()
        await send_signal(outside, signal)  # it finds the queue full, and empties it
        assert await ground.sql.fetchval("SELECT pg_notification_queue_usage()") < 0.1
