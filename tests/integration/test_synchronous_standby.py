"""While a synchronous standby is away nothing is answered as done: it is committed here, and nowhere else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from smithers.engine.turn import ApprovalChange
from smithers.errors import StoreUnavailable
from smithers.ids import NodeId, RunId
from smithers.store import connections, lanes
from smithers.store.commits import Committer, Outcome
from smithers.store.connections import open_pool
from smithers.store.embedded.temporary import open_temporary_postgres
from smithers.store.outside import Decision, SignalSent, decide, open_outside_lane, send_signal
from smithers.store.schema import upgrade_schema
from smithers.store.starts import (
    IdempotencyKey,
    KeptStart,
    find_key,
    open_start_lane,
    start_with_key,
)
from tests.support.turns import Ground, a_start, a_turn, change, key_of, parked, said

CALL_S = 2.5  # the server gives up after four fifths of it
DECISION = Decision(
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
SIGNAL = SignalSent(
    run_id=RunId("told"),
    signal_name="s",
    correlation_id=None,
    data="1",
    received_by=None,
    signal_id="once",
)
KEY = IdempotencyKey("key", "request")
LIMIT_S = 30
IS_HELD = "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = $1"


@pytest.fixture(scope="module")
def own_dsn() -> Iterator[str]:
    """A server whose settings are this module's."""
    postgres = open_temporary_postgres({"synchronous_commit": "on"})
    upgrade_schema(postgres.dsn)
    yield postgres.dsn
    postgres.close()


@pytest.fixture
async def ground(own_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    for module in (connections, lanes):
        monkeypatch.setattr(module, "COMMAND_TIMEOUT_S", CALL_S)
    async with Ground(own_dsn) as ground:
        yield ground


async def want_standby(ground: Ground, name: str) -> None:
    """Have commits wait for a standby of this name; none: for nobody. Return when they do."""
    await ground.sql.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    await ground.sql.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(LIMIT_S):
        while await is_commit_held(ground) != bool(name):
            pass


async def is_commit_held(ground: Ground) -> bool:
    """Commit something; say whether the server has it wait for a standby."""
    probe = await ground.connect()
    pid = probe.get_server_pid()
    committing = asyncio.create_task(probe.execute("CREATE TABLE probe (); DROP TABLE probe"))
    while not committing.done():
        if await ground.sql.fetchval(IS_HELD, pid):
            committing.cancel()
            await asyncio.wait([committing])
            return True
    await committing
    return False


async def outcome(asked: Awaitable[Any]) -> Any:
    try:
        return await asked
    except StoreUnavailable:
        return StoreUnavailable


@pytest.mark.slow
async def test_what_no_standby_has_is_not_answered_as_done(ground: Ground) -> None:
    worker = await ground.add_worker()
    asked, told = await ground.owned(worker, "asked", "told")
    async with AsyncExitStack() as stack:
        committer = await stack.enter_async_context(Committer(ground.dsn, worker_id=worker))
        decisions = await stack.enter_async_context(open_outside_lane(ground.dsn))
        signals = await stack.enter_async_context(open_outside_lane(ground.dsn))
        starts = await stack.enter_async_context(open_start_lane(ground.dsn))
        pool = await stack.enter_async_context(open_pool(ground.dsn, role="test", max_size=2))
        question = a_turn(approvals=[ApprovalChange(key_of("ok"), "{}")], ending=parked().ending)
        await committer.commit(change(asked, question))

        async def ask() -> list[Any]:
            return [
                *await asyncio.gather(
                    outcome(decide(decisions, DECISION)),
                    outcome(send_signal(signals, SIGNAL)),
                    outcome(starts.submit(a_start("new"))),
                    outcome(start_with_key(pool, a_start("keyed"), KEY)),
                )
            ]

        await want_standby(ground, "gone")
        committing = asyncio.create_task(committer.commit(change(told, said("x"))))
        assert await ask() == [StoreUnavailable] * 4
        assert await ask() == [StoreUnavailable] * 4  # and neither is a repetition
        assert await outcome(find_key(pool, KEY)) is StoreUnavailable
        assert not committing.done()

        await want_standby(ground, "")
        is_decided, signal, is_new, keyed = await ask()
        assert (is_decided, signal.is_new, is_new) == (False, False, False)
        assert keyed == ("keyed", False)
        assert await find_key(pool, KEY) == KeptStart(RunId("keyed"), None)
        assert (await committing).outcome is Outcome.COMMITTED
    assert (await ground.types("told"))[1:] in (["SignalReceived", "x"], ["x", "SignalReceived"])


async def test_a_commit_is_answered_however_long_its_notification_waits_for_another(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that notifies holds a lock of the whole cluster while it waits for a standby that we do not wait for."""
    monkeypatch.setitem(connections._GUARDS, "lock_timeout", "200ms")
    await ground.start("noted")
    await want_standby(ground, "gone")
    await ground.sql.execute("SET synchronous_commit = local")
    await ground.sql.execute("ALTER DATABASE smithers SET synchronous_commit = local")
    other = await ground.connect()
    await other.execute("SET synchronous_commit = on")
    writes = "SELECT pg_logical_emit_message(true, '', ''), pg_notify('elsewhere', '')"
    notifying = asyncio.create_task(other.execute(writes))
    await ground.until(IS_HELD, other.get_server_pid())
    signal = replace(SIGNAL, run_id=RunId("noted"), signal_id=None)
    async with AsyncExitStack() as stack:
        signals = await stack.enter_async_context(open_outside_lane(ground.dsn))
        starts = await stack.enter_async_context(open_start_lane(ground.dsn))
        starting = asyncio.gather(*(starts.submit(a_start(run_id)) for run_id in ("one", "two")))
        sending = asyncio.gather(*(send_signal(signals, signal) for _ in range(2)))
        await asyncio.sleep(0.6)  # three times as long as a lock is waited for
        await ground.sql.execute("SELECT pg_cancel_backend($1)", other.get_server_pid())
        are_new = await starting
        first, second = await sending
    assert are_new == [True, True]
    assert {first.seq, second.seq} == {0, 1}
    assert len(await ground.rows("signals", "noted")) == 2
    await notifying
    await ground.sql.execute("ALTER DATABASE smithers RESET synchronous_commit")
    await want_standby(ground, "")
