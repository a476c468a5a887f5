"""The hub under every interleaving that chance finds: reads that take their snapshot early or late, viewers that come
and go, hints that are lost. What Postgres promises (a run's events in order, one snapshot) is all that the fake has.
"""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import hub as hub_module
from gateway.access import ANYBODY, Credential
from gateway.hub import FollowedRun, Hub
from gateway.metrics import Metrics
from gateway.viewers import MAX_BUFFERED_BYTES, Ending, ReadersPace, Viewer
from smithers import service_loops
from smithers.complaints import EVERY_S, Complaint
from smithers.errors import StoreUnavailable
from smithers.ids import RunId
from smithers.store.tails import Cursor, Tail
from smithers.telemetry.exposition import merge
from smithers.telemetry.names import STREAM_LAG, DropReason

RUN = RunId("r")
PAGE = 4
AGE_MS = 250  # of the first two events when they are read; the others are new


@dataclass
class History:
    """One run's events, and whether it has ended."""

    count: int = 1
    has_ended: bool = False
    is_removed: bool = False

    def tail(self, cursor: int) -> Tail:
        end = min(self.count, cursor + 1 + PAGE)
        payloads = [
            f'{{"timestampMs":{1 if seq < 2 else AGE_MS},"n":{seq}}}'
            for seq in range(cursor + 1, end)
        ]
        return Tail(
            run_id=RUN,
            has_ended=self.has_ended,
            last_seq=self.count - 1,
            now_ms=1 + AGE_MS,
            first_seq=cursor + 1,
            payloads=payloads,
        )


@dataclass
class FakeLane:
    """Answers from the history as it is at some moment between the question and the answer."""

    history: History
    chance: random.Random
    reads: int = 0

    async def submit(self, cursors: tuple[Cursor, ...]) -> dict[Cursor, Tail]:
        self.reads += 1
        await turns(self.chance.randrange(6))
        found = () if self.history.is_removed else cursors
        answer = {cursor: self.history.tail(cursor.seq) for cursor in found}
        await turns(self.chance.randrange(6))
        return answer


@dataclass
class FakeTransport:
    """Takes everything, or nothing."""

    written: list[bytes] = field(default_factory=list)
    is_closed: bool = False
    buffered: int = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def abort(self) -> None:
        self.is_closed = True


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def make_hub(history: History, chance: random.Random) -> Hub:
    return Hub(
        live=FakeLane(history, chance),  # type: ignore[arg-type]  # a fake
        replay=FakeLane(history, chance),  # type: ignore[arg-type]  # a fake
        pool=None,  # type: ignore[arg-type]  # the slow poll is not reached
        metrics=Metrics(),
        hears=lambda: True,
        admits=lambda _credential: True,
    )


def make_viewer(
    transport: FakeTransport | None = None, *, cursor: int = -1, credential: Credential = ANYBODY
) -> Viewer:
    return Viewer(
        transport or FakeTransport(),  # type: ignore[arg-type]  # a fake
        credential=credential,
        cursor=cursor,
        is_chunked=False,
        now=0.0,
    )


def seqs(transport: FakeTransport) -> list[int]:
    return [
        int(line.removeprefix(b"id: "))
        for data in transport.written
        for line in data.split(b"\n")
        if line.startswith(b"id: ")
    ]


async def watch(
    hub: Hub, chance: random.Random, seen: list[int], patience: int, full_after: int | None = None
) -> bool:
    """Watch once, as a stream's handler does; says whether the end was seen.

    `full_after`: how long its reader reads.
    """
    transport = FakeTransport()
    viewer = make_viewer(transport, cursor=seen[-1] if seen else -1)
    with hub.following(RUN) as run:
        while True:
            tail = await hub.read(RUN, viewer.cursor)
            assert tail is not None
            seen += range(tail.first_seq, tail.end_seq + 1)
            viewer.cursor = tail.end_seq
            if tail.is_last:
                return True
            await turns(chance.randrange(3))
            if hub.join(run, viewer, tail):
                break
    ending = asyncio.ensure_future(viewer.until_ended())
    for turn in range(patience):
        if ending.done():
            break
        if turn == full_after:
            transport.buffered = MAX_BUFFERED_BYTES
        await asyncio.sleep(0)
    hub.leave(run, viewer)
    if await ending is Ending.BEHIND:
        assert not viewer.last_words
    transport.write(viewer.last_words)
    seen += seqs(transport)
    assert seen[-1] == viewer.cursor
    return False


@pytest.mark.parametrize("seed", range(300))
async def test_no_interleaving_loses_or_doubles_an_event(seed: int) -> None:
    chance = random.Random(seed)
    history = History()

    async def write() -> None:
        for _ in range(60):
            history.count += chance.choice([1, 1, 1, 2, 3, 9])
            if history.count > 100:
                history.has_ended = True
            await turns(chance.randrange(4))
            hub.hear(frozenset({RUN, "other"}))
            await turns(chance.randrange(4))
        history.has_ended = True
        hub.hear(frozenset({RUN}))

    async def view() -> list[int]:
        seen: list[int] = []
        await turns(chance.randrange(100))
        while not await watch(
            hub, chance, seen, chance.choice([0, 1, 2, 10, 200]), chance.choice([None, 0, 1, 20])
        ):
            await turns(chance.randrange(3))
        return seen

    async with make_hub(history, chance) as hub, asyncio.TaskGroup() as group:
        viewing = [group.create_task(view()) for _ in range(5)]
        group.create_task(write())
    for task in viewing:
        assert task.result() == list(range(len(task.result())))
    assert hub._runs == {}


@pytest.mark.parametrize("seed", range(100))
async def test_who_has_joined_needs_no_slow_poll_to_see_the_last_event(seed: int) -> None:
    chance = random.Random(seed)
    history = History()
    async with make_hub(history, chance) as hub, asyncio.timeout(60), asyncio.TaskGroup() as group:
        viewings = []
        for _ in range(3):
            seen: list[int] = []
            viewings.append(seen)
            group.create_task(watch(hub, chance, seen, 1_000_000))
            await turns(chance.randrange(8))
            history.count += 1
            hub.hear(frozenset({RUN}))
        await turns(chance.randrange(30))
        history.count += 1
        history.has_ended = True
        hub.hear(frozenset({RUN}))
    assert viewings == [list(range(history.count))] * 3


async def test_a_viewer_that_asked_for_later_events_gets_only_those() -> None:
    chance = random.Random(1)
    history = History(count=3)
    transport = FakeTransport()
    async with make_hub(history, chance) as hub:
        viewer = make_viewer(transport, cursor=6)
        with hub.following(RUN) as run:
            assert hub.join(run, viewer, history.tail(6))
            assert run.cursor == 2  # who asked for what there is can join
        for _ in range(4):
            history.count += 2
            hub.hear(frozenset({RUN}))
            await turns(30)
        assert seqs(transport) == [7, 8, 9, 10]
        hub.leave(run, viewer)


async def test_a_hint_that_found_its_viewers_gone_is_kept_for_who_is_about_to_join() -> None:
    chance = random.Random(2)
    history = History()
    async with make_hub(history, chance) as hub:
        leaving, joining = make_viewer(cursor=0), make_viewer(cursor=0)
        with hub.following(RUN) as run:
            early = history.tail(0)
            assert hub.join(run, leaving, early)
            history.count += 1
            hub.hear(frozenset({RUN}))
            hub.leave(run, leaving)
            await turns(30)
            assert hub.join(run, joining, early)
        await turns(30)
        assert seqs(joining.transport) == [1]  # type: ignore[arg-type]  # a fake
        hub.leave(run, joining)


async def test_what_nobody_foresaw_ends_the_streams_of_its_run_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_loops, "PAUSE_S", 0)
    history = History()
    broken, whole = RunId("broken"), RUN
    send = Hub._send

    def fail(hub: Hub, run: FollowedRun, *rest: Any) -> None:
        if run.run_id == broken:
            raise KeyError("nobody foresaw this")
        send(hub, run, *rest)

    monkeypatch.setattr(Hub, "_send", fail)
    viewers = {}
    async with make_hub(history, random.Random(3)) as hub, asyncio.timeout(60):
        for run_id in (broken, whole):
            viewer = viewers[run_id] = make_viewer(cursor=0)
            with hub.following(run_id) as run:
                assert hub.join(run, viewer, history.tail(0))
        history.count += 1
        with capture_logs() as logs:
            hub.hear(frozenset({broken}))
            assert await viewers[broken].until_ended() is Ending.LOST
            while not seqs(viewers[whole].transport):  # type: ignore[arg-type]  # a fake
                hub.hear(frozenset({whole}))
                await asyncio.sleep(0)
        hub.leave(run, viewers[whole])
    assert viewers[broken].transport.is_closing()
    assert [(line["event"], line["loop"]) for line in logs] == [
        ("service_loop_failed", "hub-follow")
    ]


async def test_a_reads_lag_is_that_of_its_first_event_by_the_databases_clock_alone() -> None:
    history = History()
    async with make_hub(history, random.Random(1)) as hub, asyncio.timeout(60):
        viewer = make_viewer(cursor=0)
        with hub.following(RUN) as run:
            assert hub.join(run, viewer, history.tail(0))
            history.count += 2
            hub.hear(frozenset({RUN}))
            while not seqs(viewer.transport):  # type: ignore[arg-type]  # a fake
                await asyncio.sleep(0)
            hub.leave(run, viewer)
    *counts, total_s = merge(hub._metrics._page.sheet.read())[STREAM_LAG.name,]
    assert sum(counts) == 1
    assert AGE_MS / 1000 <= total_s < AGE_MS / 1000 + 20


async def test_the_viewers_of_a_run_that_retention_has_removed_are_let_go() -> None:
    history = History()
    async with make_hub(history, random.Random(1)) as hub:
        viewer = make_viewer(cursor=0)
        with hub.following(RUN) as run:
            assert hub.join(run, viewer, history.tail(0))
            history.is_removed = True
            hub.hear(None)
            async with asyncio.timeout(60):
                assert await viewer.until_ended() is Ending.WHOLE
            assert not run.viewers


async def test_a_database_that_is_away_is_asked_and_complained_of_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    asked, real_sleep = asyncio.Semaphore(0), asyncio.sleep

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        await real_sleep(0)

    async def find_moved(*_: object) -> None:
        asked.release()
        raise StoreUnavailable("away")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(hub_module, "find_moved", find_moved)
    now = 0.0
    hub = make_hub(History(), random.Random(1))
    hub._hears = lambda: False
    hub._complaint = Complaint(lambda: now)
    with hub.following(RUN) as run, capture_logs() as logs:
        viewer = make_viewer(cursor=0)
        assert hub.join(run, viewer, History().tail(0))
        polling = asyncio.create_task(hub._poll())
        for _ in range(20):
            await asked.acquire()
        now = EVERY_S
        for _ in range(2):  # the last one but one has been logged when the last one is asked
            await asked.acquire()
        polling.cancel()
        hub.leave(run, viewer)
    assert [line["event"] for line in logs] == ["stream_poll_failed"] * 2
    assert all(1 <= pause_s <= 2 for pause_s in pauses[1::2])


def test_a_viewer_whose_reader_has_left_is_dropped() -> None:
    assert make_viewer(FakeTransport(is_closed=True)).write(b"x", 0.0) is DropReason.GONE


def test_a_viewer_has_room_for_as_much_as_there_is_once_it_has_read_everything() -> None:
    transport = FakeTransport()
    viewer = make_viewer(transport)
    assert viewer.has_room(2 * MAX_BUFFERED_BYTES)
    transport.buffered = 1
    assert viewer.has_room(MAX_BUFFERED_BYTES - 1)
    assert not viewer.has_room(MAX_BUFFERED_BYTES)


async def test_a_viewer_whose_credential_was_taken_away_ends_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "SWEEP_S", 0)
    revoked = Credential("ann", ("*",))
    hub = make_hub(History(), random.Random(1))
    hub._admits = lambda credential: credential != revoked
    async with hub, asyncio.timeout(20):
        staying, leaving = make_viewer(cursor=0), make_viewer(cursor=0, credential=revoked)
        with hub.following(RUN) as run:
            for viewer in (staying, leaving):
                assert hub.join(run, viewer, History().tail(0))
        assert await leaving.until_ended() is Ending.WHOLE
        assert run.viewers == {staying}
        assert hub.may_go_on(staying)
        assert not hub.may_go_on(leaving)
        hub.leave(run, staying)


def test_a_viewer_stalls_only_when_nothing_of_what_was_written_is_taken() -> None:
    transport = FakeTransport()
    viewer = make_viewer(transport)
    for second in range(100):  # slow, but it reads
        viewer.write(b"x" * 10, float(second))
        transport.buffered = 500 + second % 2
        assert viewer.look_after(float(second)) is None
    assert viewer.look_after(120.0) is None
    assert viewer.look_after(130.1) is DropReason.STALLED
    transport.buffered = 0
    assert viewer.look_after(131.0) is None


async def test_a_write_may_be_cancelled_while_its_reader_stalls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.viewers.STALLED_S", 0.0)
    transport = FakeTransport(buffered=1)

    async def write() -> None:
        with ReadersPace(transport):  # type: ignore[arg-type]  # a fake
            await asyncio.Event().wait()

    writing = asyncio.create_task(write())
    while not transport.is_closed:
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
