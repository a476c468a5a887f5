"""Hints arrive, few and packed; a connection that was lost comes back and says that anything may have happened."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from structlog.testing import capture_logs

from smithers.errors import StoreUnavailable
from smithers.store import hints as hints_module
from smithers.store.connections import connect_listening
from smithers.store.hints import MAX_PAYLOAD_BYTES, Channel, Hints, Listener
from tests.support.proxy import Mode, Proxy
from tests.support.turns import PATIENCE_S, names


class Ear:
    """Keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[frozenset[str] | None] = []
        self._moved = asyncio.Event()

    def __call__(self, names: frozenset[str] | None) -> None:
        self.heard.append(names)
        self._moved.set()

    @property
    def names(self) -> set[str]:
        return set().union(*(names for names in self.heard if names))

    @property
    def beginnings(self) -> int:
        return self.heard.count(None)

    async def until(self, *wanted: str, beginnings: int = 1) -> None:
        """Wait until it has heard of these, and has been told of so many connections."""
        async with asyncio.timeout(PATIENCE_S):
            while not (self.names.issuperset(wanted) and self.beginnings >= beginnings):
                self._moved.clear()
                await self._moved.wait()


@asynccontextmanager
async def listening(
    dsn: str, listeners: Mapping[Channel, Listener], role: str = "ear"
) -> AsyncIterator[Hints]:
    """Open hints, and wait until they listen."""
    ready = Ear()
    async with Hints(dsn, role=role).listen({Channel.SOURCES: ready, **listeners}) as hints:
        await ready.until()
        yield hints


async def test_a_hint_goes_to_the_listeners_of_its_channel_in_every_process(ground):
    mine, theirs, other = Ear(), Ear(), Ear()
    async with (
        listening(ground.dsn, {Channel.DUE: mine}) as speaker,
        listening(ground.dsn, {Channel.DUE: theirs, Channel.NEWS: other}),
    ):
        speaker.send(Channel.DUE, ["default", "slow"])
        await asyncio.gather(mine.until("default", "slow"), theirs.until("default", "slow"))
    assert mine.heard == theirs.heard == [None, frozenset({"default", "slow"})]
    assert other.heard == [None]


async def test_what_is_sent_before_there_is_a_connection_is_said_when_there_is(ground):
    ear = Ear()
    async with listening(ground.dsn, {Channel.EVENTS: ear}), Hints(ground.dsn, role="x") as speaker:
        assert not speaker.is_connected
        speaker.send(Channel.EVENTS, ["a"])
        await ear.until("a")


async def test_what_piled_up_goes_out_at_once_and_each_name_once(ground):
    ear = Ear()
    async with listening(ground.dsn, {Channel.EVENTS: ear}) as speaker:
        for _ in range(100):
            speaker.send(Channel.EVENTS, names(20))
        await ear.until(*names(20))
        speaker.send(Channel.EVENTS, ["last"])
        await ear.until("last")
    assert ear.heard == [None, frozenset(names(20)), frozenset({"last"})]


async def test_many_names_are_split_into_payloads_that_postgres_takes(ground):
    ear = Ear()
    many = {f"{'ü' * 100}{number}" for number in range(500)}
    async with listening(ground.dsn, {Channel.EVENTS: ear}) as speaker:
        speaker.send(Channel.EVENTS, many)
        await ear.until(*many)
    parts = [part for part in ear.heard if part]
    assert sum(map(len, parts)) == len(many)
    sizes = [len(" ".join(part).encode()) for part in parts]
    assert max(sizes) <= MAX_PAYLOAD_BYTES
    assert min(sizes[:-1]) > MAX_PAYLOAD_BYTES - 210


async def test_a_killed_connection_comes_back_and_says_that_anything_may_have_happened(ground):
    ear = Ear()
    async with listening(ground.dsn, {Channel.NEWS: ear}) as hints:
        for round_no in (2, 3):
            await ground.cut("smithers-ear-hints")
            await ear.until(beginnings=round_no)
            assert hints.is_connected
            hints.send(Channel.NEWS, [f"r{round_no}"])
            await ear.until(f"r{round_no}")
    assert ear.heard == [None, None, frozenset({"r2"}), None, frozenset({"r3"})]
    assert not hints.is_connected


async def test_a_connection_that_cannot_be_had_back_is_complained_of_once_and_told_when_it_is(
    ground, monkeypatch
):
    connect, tries, is_open = connect_listening, asyncio.Semaphore(0), asyncio.Event()

    async def refuse(dsn, *, role):
        tries.release()
        if is_open.is_set():
            return await connect(dsn, role=role)
        raise StoreUnavailable("the way is closed")

    monkeypatch.setattr(hints_module, "connect_listening", refuse)
    monkeypatch.setattr(hints_module, "RECONNECT_PAUSE_S", 0.001)
    ear = Ear()
    with capture_logs() as logs:
        async with Hints(ground.dsn, role="ear").listen({Channel.DUE: ear}):
            for _ in range(5):
                await asyncio.wait_for(tries.acquire(), PATIENCE_S)
            is_open.set()
            await ear.until()
    assert [(said["event"], said["role"]) for said in logs] == [
        ("listening_failed", "ear"),
        ("listening_again", "ear"),
    ]
    assert logs[0]["error"] == "the way is closed"


async def test_a_listener_that_raises_ends_no_hints(ground, monkeypatch):
    ear = Ear()

    def raise_once(names: frozenset[str] | None) -> None:
        ear(names)
        if ear.beginnings == 1:
            raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("smithers.service_loops.PAUSE_S", 0)
    async with Hints(ground.dsn, role="ear").listen({Channel.NEWS: raise_once}) as hints:
        await ear.until(beginnings=2)
        hints.send(Channel.NEWS, ["a"])
        await ear.until("a", beginnings=2)


async def test_a_hint_whose_connection_broke_under_it_is_said_by_the_next(ground):
    ear = Ear()
    async with (
        listening(ground.dsn, {Channel.NEWS: ear}),
        Proxy(ground.dsn) as proxy,
        listening(proxy.dsn, {}, role="mouth") as speaker,
    ):
        proxy.link("smithers-mouth-hints").mode = Mode.LOSE_REQUEST
        speaker.send(Channel.NEWS, ["a"])
        await ear.until("a")
