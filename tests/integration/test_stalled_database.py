"""A database that stays connected and says nothing: whatever is asked of it comes to an end within its time.

The times are made short here; who keeps to them is found by tests/unit/test_database_calls.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from smithers.errors import StoreUnavailable
from smithers.retention import pruning
from smithers.store import connections
from smithers.store.connections import (
    Pool,
    connect,
    driver_errors,
    open_connection,
    open_pool,
    transaction,
)
from smithers.store.hints import Channel, Hints
from smithers.store.lanes import Lane
from smithers.store.pool_store import open_pool_store
from tests.support.proxy import Proxy
from tests.support.turns import Ground
from worker.liveness import keep_liveness

ASK_S = 0.8
CLEAN_UP_S = 0.3
NEVER_S = 3_600.0
LIMIT_S = 60.0  # for both of them on a busy machine; no other time-out is as short here
QUERY = "SELECT 1"
POOL_ID = uuid4()
HOLDERS = """
    SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
HOLD_WORKERS = "SELECT FROM smithers.workers FOR UPDATE"
# For longer than a beat is waited for that may be lost.
BEATS_LONG = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'smithers-pool' AND wait_event_type = 'Lock'
        AND clock_timestamp() - query_start > interval '0.4 s'"""

Ask = Callable[[asyncpg.Connection], Awaitable[object]]


@pytest.fixture
async def proxy(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", ASK_S)
    monkeypatch.setattr("smithers.store.lanes.COMMAND_TIMEOUT_S", ASK_S)
    for name in ("CLEAN_UP_TIMEOUT_S", "END_TIMEOUT_S"):
        monkeypatch.setattr(connections, name, CLEAN_UP_S)
    for name in ("ACQUIRE_TIMEOUT_S", "CONNECT_TIMEOUT_S", "PROVE_TIMEOUT_S"):
        monkeypatch.setattr(connections, name, NEVER_S)
    async with Proxy(database) as proxy:
        yield proxy


@contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT_S


async def in_transaction(connection: asyncpg.Connection) -> None:
    async with transaction(connection):
        await connection.execute(QUERY)


async def listen(connection: asyncpg.Connection) -> None:
    await connection.add_listener("heard", lambda *_: None)


ASKED: dict[str, Ask] = {
    "fetch": lambda connection: connection.fetch(QUERY),
    "fetchrow": lambda connection: connection.fetchrow(QUERY),
    "fetchval": lambda connection: connection.fetchval("SELECT $1::int", 1),
    "execute": lambda connection: connection.execute(QUERY),
    "transaction": in_transaction,
    "add_listener": listen,
}


async def outcome(asking: Awaitable[object]) -> type[BaseException] | None:
    """Say how a call ended."""
    try:
        with driver_errors():
            await asking
    except Exception as error:  # noqa: BLE001 - which one it is, is asked
        return type(error)
    return None


async def test_whatever_is_asked_over_a_connection_ends(proxy: Proxy) -> None:
    opened = [await connect(proxy.dsn, role="test") for _ in ASKED]
    proxy.stall()
    with soon():
        asked = [outcome(ask(one)) for ask, one in zip(ASKED.values(), opened, strict=True)]
        ends = await asyncio.gather(*asked)
    assert dict(zip(ASKED, ends, strict=True)) == dict.fromkeys(ASKED, StoreUnavailable)
    for connection in opened:
        connection.terminate()


async def test_whatever_is_asked_through_a_pool_ends_and_the_pool_goes_on(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(pool: Pool, ask: Ask) -> None:
        async with pool.acquire() as connection:
            await ask(connection)

    async with open_pool(proxy.dsn, role="test", max_size=len(ASKED)) as pool:
        async with AsyncExitStack() as opened:
            for _ in ASKED:
                await opened.enter_async_context(pool.acquire())
        proxy.stall()
        monkeypatch.setattr(connections, "ACQUIRE_TIMEOUT_S", ASK_S)
        with soon():
            ends = await asyncio.gather(*(outcome(take(pool, ask)) for ask in ASKED.values()))
        assert dict(zip(ASKED, ends, strict=True)) == dict.fromkeys(ASKED, StoreUnavailable)
        monkeypatch.undo()
        proxy.heal()
        assert await pool.fetchval(QUERY) == 1


async def test_nobody_waits_for_ever_for_a_connection_of_a_pool(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pool(proxy.dsn, role="test", max_size=1) as pool:
        async with pool.acquire():
            monkeypatch.setattr(connections, "ACQUIRE_TIMEOUT_S", ASK_S)
            with soon(), pytest.raises(StoreUnavailable), driver_errors():
                await pool.fetchval(QUERY)
        monkeypatch.undo()
        assert await pool.fetchval(QUERY) == 1


async def test_a_connection_that_stalls_when_it_is_given_back_is_dropped_and_its_answer_stands(
    proxy: Proxy,
) -> None:
    async with open_pool(proxy.dsn, role="test", max_size=1) as pool:
        with soon():
            async with pool.acquire() as connection:
                await connection.execute("BEGIN")  # what is left open is rolled back
                answer = await connection.fetchval(QUERY)
                proxy.stall()
        assert answer == 1
        assert pool.get_size() == 0


async def cancelled(work: Awaitable[object], begun: asyncio.Event) -> None:
    """Cancel work that hangs, and wait for its end."""
    task = asyncio.ensure_future(work)
    await begun.wait()
    await asyncio.sleep(0)  # it stands in the call now
    task.cancel()
    with soon():
        await asyncio.wait([task])
    assert task.cancelled()


async def test_whoever_is_cancelled_in_the_midst_of_a_transaction_ends_as_cancelled(
    proxy: Proxy,
) -> None:
    begun = asyncio.Event()

    async def ask(pool: Pool) -> None:
        with driver_errors():
            async with pool.acquire() as connection, transaction(connection):
                proxy.stall()
                begun.set()
                await connection.execute(QUERY)

    async with open_pool(proxy.dsn, role="test", max_size=1) as pool:
        await cancelled(ask(pool), begun)


async def test_a_connection_that_stalls_at_its_end_holds_nobody_up(proxy: Proxy) -> None:
    begun = asyncio.Event()

    async def ask() -> None:
        async with open_connection(proxy.dsn, role="test") as connection:
            proxy.stall()
            begun.set()
            await connection.execute(QUERY)

    await cancelled(ask(), begun)


async def test_a_pool_that_stalls_at_its_end_is_left(proxy: Proxy) -> None:
    with soon():
        async with open_pool(proxy.dsn, role="test", max_size=1) as pool:
            await pool.fetchval(QUERY)
            proxy.stall()


async def test_a_new_connection_that_stalls_is_given_up(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", ASK_S)
    proxy.stall()
    with soon(), pytest.raises(StoreUnavailable):
        await connect(proxy.dsn, role="test")


async def test_a_lane_that_stalls_tells_whoever_waits(proxy: Proxy) -> None:
    async def flush(connection: asyncpg.Connection, items: Sequence[int]) -> list[int]:
        return [await connection.fetchval("SELECT $1::int", item) for item in items]

    async with Lane(proxy.dsn, role="test", flush=flush) as lane:
        assert await lane.submit(1) == 1
        proxy.stall()
        with soon(), pytest.raises(StoreUnavailable):
            await lane.submit(2)
        proxy.heal()
        assert await lane.submit(3) == 3


async def test_hints_that_stall_are_said_over_the_next_connection(
    proxy: Proxy, database: str
) -> None:
    heard: asyncio.Queue[frozenset[str] | None] = asyncio.Queue()
    listener = {Channel.DUE: heard.put_nowait}
    async with (
        Hints(proxy.dsn, role="test") as hints,
        Hints(database, role="hears").listen(listener),
    ):
        assert await heard.get() is None
        hints.send(Channel.DUE, ["one"])
        assert await heard.get() == frozenset({"one"})
        proxy.stall()
        hints.send(Channel.DUE, ["two"])
        async with asyncio.timeout(LIMIT_S):
            while hints.is_connected:
                await asyncio.sleep(0.01)
        proxy.heal()
        async with asyncio.timeout(LIMIT_S):
            said = await heard.get()
        # "one" too, where the stall came before its answer: who is told twice looks twice.
        assert said in (frozenset({"two"}), frozenset({"one", "two"}))


async def test_a_pool_whose_connections_were_all_lost_soon_beats_over_a_new_one(
    proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", NEVER_S)
    monkeypatch.setattr(connections, "PROMPT_TIMEOUT_S", ASK_S)
    async with Ground(database) as ground, open_pool_store(proxy.dsn, proxy.dsn) as store:
        worker = await ground.add_worker()
        # Both are open.
        await asyncio.gather(store.beat([worker], []), store.list_living())
        proxy.lose_links()
        with soon():
            # All that is asked without a pause: whichever has a lost connection lets go of it.
            lost = await asyncio.gather(
                *map(outcome, (store.list_living(), store.count_runs_apart(("default",))))
            )
            assert lost == [StoreUnavailable] * 2
            assert await store.beat([worker], []) == {worker}


async def test_a_beat_that_is_slow_is_waited_for_over_one_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PROMPT_TIMEOUT_S", 0.2)
    async with Ground(database) as ground, open_pool_store(database, database) as store:
        worker, slowing = await ground.add_worker(), await ground.connect()
        async with slowing.transaction():
            await slowing.execute(HOLD_WORKERS)
            with pytest.raises(StoreUnavailable):
                await store.beat([worker], [])
        served = []
        for _ in range(2):
            async with slowing.transaction():
                await slowing.execute(HOLD_WORKERS)
                beating = asyncio.create_task(store.beat([worker], []))
                served.append(await until_found(ground.sql, BEATS_LONG))
            assert await beating == {worker}
        assert served[0] == served[1]


async def test_hints_whose_session_has_ended_unheard_come_back(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smithers.store.hints.PROVE_EVERY_S", 0.1)
    monkeypatch.setattr(connections, "PROVE_TIMEOUT_S", ASK_S)
    began: asyncio.Queue[frozenset[str] | None] = asyncio.Queue()
    async with Hints(proxy.dsn, role="test").listen({Channel.DUE: began.put_nowait}) as hints:
        assert await began.get() is None
        proxy.link("smithers-test-hints").lose_server()
        async with asyncio.timeout(LIMIT_S):
            assert await began.get() is None
        assert hints.is_connected


async def test_a_liveness_lock_whose_session_has_ended_unheard_is_taken_anew(
    proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PROVE_TIMEOUT_S", ASK_S)
    keeping = asyncio.create_task(keep_liveness(proxy.dsn, POOL_ID, asyncio.Event()))
    try:
        async with Ground(database) as ground:
            first = await until_found(ground.sql, HOLDERS)
            proxy.link("smithers-liveness").lose_server()
            async with asyncio.timeout(LIMIT_S):
                while await until_found(ground.sql, HOLDERS) == first:
                    await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def until_found(connection: asyncpg.Connection, query: str) -> int:
    """Wait until a query finds a backend, and say which."""
    async with asyncio.timeout(LIMIT_S):
        while not (found := await connection.fetch(query)):
            await asyncio.sleep(0.01)
    ((pid,),) = found
    return int(pid)


async def test_retention_that_stalls_ends_with_its_server(proxy: Proxy) -> None:
    proxy.stall()
    with soon():
        async with pruning(proxy.dsn, timedelta(days=30), first_s=0.0):
            await proxy.until_asked()
