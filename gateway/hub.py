"""Follow the runs that have viewers, and send every new event to all viewers of its run.

One reader for the process: hints name the runs with new events, one query reads all of them that have viewers, and runs
that change meanwhile are read by the next one. Each event is encoded once for all viewers of its run, joined with the
others of the same read. A run has one cursor for all its viewers; a viewer behind it catches up with reads of its own, and
joins when there is no gap between the two, without an await in between. So no event is lost or sent twice, in
any interleaving; a lost hint costs one interval of slow polling, never an event. A viewer that is too slow for live events
falls behind again.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final, Self

import structlog

from gateway.access import Credential
from gateway.metrics import Metrics
from gateway.viewers import KEEP_ALIVE, KEEP_ALIVE_CHUNK, Ending, Viewer, as_chunk, frame_events
from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.ids import RunId
from smithers.service_loops import ServiceLoops
from smithers.store.connections import Pool
from smithers.store.tails import Cursor, Tail, TailLane, find_moved
from smithers.telemetry.names import DropReason

LOG: Final = structlog.get_logger(__name__)
KEEP_ALIVE_S: Final = 10.0  # below the idle limit of every proxy we know
SWEEP_S: Final = 0.5
POLL_S: Final = 2.0  # the net under lost hints
DEAF_POLL_S: Final = 0.1  # the same while no hints can arrive
# Up to twice as much after a failed read: all gateways query a database that comes back.
RETRY_S: Final = 1.0
MAX_RUNS_PER_READ: Final = 500
_STAMP: Final = '"timestampMs":'


class FollowedRun:
    """A run that has viewers, or is about to have some: handlers that catch up do so in a `with` block of it."""

    __slots__ = ("_forget_if_idle", "cursor", "opening_count", "run_id", "viewers", "was_hinted")

    def __init__(self, run_id: RunId, forget_if_idle: "Callable[[FollowedRun], None]") -> None:
        self.run_id = run_id
        self._forget_if_idle = forget_if_idle
        self.cursor = -1  # every viewer, or if none is left the last ones, got all up to here
        self.viewers: set[Viewer] = set()
        self.opening_count = 0  # handlers that are catching up
        self.was_hinted = False  # a hint came while no viewer was attached

    def __enter__(self) -> Self:
        self.opening_count += 1
        return self

    def __exit__(self, *_exc: object) -> None:
        self.opening_count -= 1
        self._forget_if_idle(self)


class Hub:
    """The viewers of one process."""

    def __init__(
        self,
        *,
        live: TailLane,
        replay: TailLane,
        pool: Pool,
        metrics: Metrics,
        hears: Callable[[], bool],
        admits: Callable[[Credential], bool],
    ) -> None:
        """`hears` says whether hints can arrive at present; `admits`, whether a credential is still valid."""
        self._live = live
        self._replay = replay
        self._pool = pool
        self._metrics = metrics
        self._hears = hears
        self._admits = admits
        self._runs: dict[RunId, FollowedRun] = {}
        self._moved: set[FollowedRun] = set()
        self._has_moved = asyncio.Event()
        self._loops = ServiceLoops()
        self._complaint = Complaint()
        self._is_draining = False

    async def __aenter__(self) -> Self:
        self._loops.start(self._follow, name="hub-follow")
        self._loops.start(self._poll, name="hub-poll")
        self._loops.start(self._sweep, name="hub-sweep")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._loops.stop()

    def hear(self, names: frozenset[str] | None) -> None:
        """Handle a hint: these runs have new events; None: any may have."""
        for run_id in self._runs if names is None else names & self._runs.keys():
            self._mark(self._runs[RunId(run_id)])

    def drain(self) -> None:
        """End every stream after its last whole event, and let no new one wait."""
        self._is_draining = True
        for run in self._runs.values():
            for viewer in run.viewers:
                viewer.end()

    def may_go_on(self, viewer: Viewer) -> bool:
        """Say whether a stream may wait for future events: not draining, and its credential still valid."""
        return not self._is_draining and self._admits(viewer.credential)

    def following(self, run_id: RunId) -> FollowedRun:
        """Return a run whose hints are remembered while it is entered: before the first read, so that none is missed."""
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = FollowedRun(run_id, self._forget_if_idle)
        return run

    async def read(self, run_id: RunId, cursor: int) -> Tail | None:
        """Read a page of a run's events for a viewer that is behind; None: there is no such run."""
        asked = Cursor(run_id, cursor)
        return (await self._replay.submit((asked,))).get(asked)

    def join(self, run: FollowedRun, viewer: Viewer, tail: Tail) -> bool:
        """Attach a viewer that was sent all of `tail`, if there is no gap between it and the others."""
        # Behind the run's cursor there is more to read, even if all other viewers have left: they consumed the hint for it.
        if tail.has_more or viewer.cursor < run.cursor:
            return False
        if not run.viewers:  # not beyond the last event: others have not asked for later ones only
            run.cursor = max(run.cursor, min(viewer.cursor, tail.last_seq))
        run.viewers.add(viewer)
        self._metrics.streams_active.inc()
        if run.was_hinted:
            self._mark(run)
        return True

    def leave(self, run: FollowedRun, viewer: Viewer, reason: DropReason | None = None) -> None:
        """Detach a viewer for good; idempotent."""
        if self._detach(run, viewer) and reason is not None:
            self._metrics.count_drop(reason)
        viewer.end(Ending.WHOLE if reason is None else Ending.LOST)

    def _detach(self, run: FollowedRun, viewer: Viewer) -> bool:
        if viewer not in run.viewers:
            return False
        run.viewers.remove(viewer)
        self._metrics.streams_active.dec()
        self._forget_if_idle(run)
        return True

    def _mark(self, run: FollowedRun) -> None:
        run.was_hinted = not run.viewers
        if run.viewers:
            self._moved.add(run)
            self._has_moved.set()

    def _forget_if_idle(self, run: FollowedRun) -> None:
        if not run.viewers and not run.opening_count and self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
            self._moved.discard(run)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_moved.wait()
            asked = self._take_moved()
            if not asked:
                continue
            asked_at = loop.time()
            try:
                tails = await self._live.submit(tuple(asked))
            except StoreError as error:
                if self._complaint.may_be_said():
                    LOG.warning("stream_read_failed", run_count=len(asked), error=str(error))
                for run in asked.values():
                    self._mark(run)
                await asyncio.sleep(_retry_s())
                continue
            now = loop.time()
            for cursor, run in asked.items():
                tail = tails.get(cursor)
                if tail is None:  # retention has removed it: there is no end to wait for
                    self._let_go(run)
                    continue
                self._publish(run, cursor.seq, tail, now)
                if tail.payloads:
                    lag_s = _age_when_read_s(tail) + loop.time() - asked_at
                    self._metrics.stream_lag.observe(lag_s)

    def _take_moved(self) -> dict[Cursor, FollowedRun]:
        asked = {}
        for _ in range(min(len(self._moved), MAX_RUNS_PER_READ)):
            run = self._moved.pop()
            if run.viewers:
                asked[Cursor(run.run_id, run.cursor)] = run
            else:  # all left since the hint; who is catching up must still hear of it
                run.was_hinted = True
        if not self._moved:
            self._has_moved.clear()
        return asked

    def _publish(self, run: FollowedRun, read_from: int, tail: Tail, now: float) -> None:
        if tail.payloads:
            try:
                self._send(run, read_from, tail, now)
            except Exception:
                # How far each viewer got is no longer known: they reconnect with their last ids.
                for viewer in list(run.viewers):
                    self.leave(run, viewer, DropReason.GONE)
                raise
        if tail.is_last:
            self._let_go(run)
        elif tail.has_more:
            self._mark(run)

    def _let_go(self, run: FollowedRun) -> None:
        for viewer in list(run.viewers):
            self.leave(run, viewer)

    def _send(self, run: FollowedRun, read_from: int, tail: Tail, now: float) -> None:
        end_seq, is_last = tail.end_seq, tail.is_last
        data = frame_events(tail.first_seq, tail.payloads)
        chunk = b"" if is_last else as_chunk(data)
        run.cursor = max(run.cursor, end_seq)
        sent = 0
        for viewer in list(run.viewers):
            if viewer.cursor >= end_seq:
                continue  # it joined after this read began, or waits for later ones
            own, own_chunk, skipped = data, chunk, 0
            if viewer.cursor != read_from:
                skipped = viewer.cursor + 1 - tail.first_seq
                own = frame_events(viewer.cursor + 1, tail.payloads[skipped:])
                own_chunk = as_chunk(own)
            if not viewer.has_room(len(own)):
                self._detach(run, viewer)
                viewer.end(Ending.BEHIND)
                continue
            sent += len(tail.payloads) - skipped
            viewer.cursor = end_seq
            if is_last:
                viewer.last_words = own
                continue
            reason = viewer.write(own_chunk if viewer.is_chunked else own, now)
            if reason is not None:
                self.leave(run, viewer, reason)
        self._metrics.events_sent.inc(sent)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S if self._hears() else DEAF_POLL_S)
            watched = [run for run in self._runs.values() if run.viewers]
            if not watched:
                continue
            try:
                moved = await find_moved(
                    self._pool, [Cursor(run.run_id, run.cursor) for run in watched]
                )
            except StoreError as error:
                if self._complaint.may_be_said():
                    LOG.warning("stream_poll_failed", run_count=len(watched), error=str(error))
                await asyncio.sleep(_retry_s())
                continue
            self.hear(frozenset(moved))

    async def _sweep(self) -> None:
        """Keep silent streams alive; drop those whose readers do not read, or no longer may: one timer for all."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for run in list(self._runs.values()):
                for viewer in list(run.viewers):
                    if not self._admits(viewer.credential):
                        self.leave(run, viewer)
                        continue
                    reason = viewer.look_after(now)
                    if reason is None and now - viewer.written_at >= KEEP_ALIVE_S:
                        alive = KEEP_ALIVE_CHUNK if viewer.is_chunked else KEEP_ALIVE
                        reason = viewer.write(alive, now)
                    if reason is not None:
                        self.leave(run, viewer, reason)


def _retry_s() -> float:
    return RETRY_S * random.uniform(1.0, 2.0)  # noqa: S311 - keeps no secret


def _age_when_read_s(tail: Tail) -> float:
    """Return the age of its first event, by the database's clock: this host's may differ."""
    payload = tail.payloads[0]
    start = payload.index(_STAMP) + len(_STAMP)
    stamp_ms = int(payload[start : payload.index(",", start)])
    return max(tail.now_ms - stamp_ms, 0) / 1000
