"""The children of a pool: born into a slot, watched, replaced when they retire, and buried.

A slot is a child's place in the memory shared with its parent. A child that retires (one of its bodies does not stop)
keeps its slot until its other work is finished, for as long as that takes; its successor gets another. The number of
retired children is limited: beyond it the oldest is drained.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from math import inf
from typing import Final
from uuid import uuid4

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.ids import WorkerId
from smithers.processes import find_process
from smithers.store.claims import ClaimKind
from smithers.store.pool_store import Burial, PoolStore
from smithers.telemetry.sheet import Sheet
from worker import processes
from worker.burials import log_burial
from worker.deaths import ChildEnd
from worker.descendants import sweep
from worker.fork_server import ForkServer
from worker.forked import Child, start_child
from worker.loads import ENDED, GONE, Loads, make_loads
from worker.meters import PoolMeters
from worker.relay import Relay
from worker.settings import (
    DRAIN,
    MAX_ISOLATED,
    MAX_RETIRED,
    MAX_TRYING,
    ChildSettings,
    PoolSettings,
)

SILENT_CHILD_S: Final = 20.0
START_GRACE_S: Final = 60.0  # a child without a first heartbeat is still importing
LATE_S: Final = 5.0  # for a child that was told to end, after its drain timeout
# Since the last look: this process stood still, and its children perhaps with it.
FROZEN_S: Final = 5.0
LOOK_EVERY_S: Final = 0.1  # a body can fill some hundred MiB in that time
RETRY_S: Final = 0.5
MAX_WORD_BYTES: Final = 4_096

LOG: Final = structlog.get_logger(__name__)


class Children:
    """A pool's children, from start to burial."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        store: PoolStore,
        fork_server: ForkServer,
        sheet: Sheet,
        meters: PoolMeters,
        on_left: Callable[[], None],
    ) -> None:
        """`on_left` is called when one has retired or was buried."""
        self.pool_id = uuid4()
        self._settings = settings
        self._store = store
        self._fork_server = fork_server
        self._sheet = sheet
        self._meters = meters
        self._on_left = on_left
        count = settings.worker_count + MAX_ISOLATED + MAX_TRYING + MAX_RETIRED
        self._loads_fd = make_loads(count)
        self._loads = Loads.within(self._loads_fd)
        self.relay = Relay(self._loads)
        self._free: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for slot in range(count):
            self._free.put_nowait(slot)
        self._living: dict[int, Child] = {}  # by slot
        self._dying: set[WorkerId] = set()  # those that are being buried
        self._retired: list[Child] = []  # those not told to end; oldest first
        self._endings: set[asyncio.Task[None]] = set()
        self._burial_complaint = Complaint()
        self._looked_at = inf  # not yet
        self._listens_since = -inf  # silence before that does not count

    @property
    def worker_ids(self) -> set[WorkerId]:
        """The children that this pool must bury."""
        return {child.worker_id for child in self._living.values()} | self._dying

    def list_of(self, kind: ClaimKind) -> list[Child]:
        """List those of a kind, except those that have retired."""
        return [
            child for child in self._living.values() if child.kind is kind and not child.is_retired
        ]

    @property
    def has_room(self) -> bool:
        """Whether a child could be started at once."""
        return not self._free.empty()

    def has_claimed(self, child: Child) -> bool:
        """Say whether a child that is apart from the others has claimed a run."""
        return self._loads.has_claimed(child.slot)

    async def start(self, kind: ClaimKind) -> Child:
        """Start a child as soon as there is a slot; raises StoreError, OSError, EOFError if it cannot be started."""
        child = self._start_in(await self._free.get(), kind)
        ending = asyncio.create_task(self._see_to_end(child), name=f"ending-{child.worker_id}")
        self._endings.add(ending)
        ending.add_done_callback(self._hear_ending)
        try:
            await self._introduce(child)
        except (StoreError, OSError):
            self._kill(child, ChildEnd.NOT_REGISTERED)
            raise
        except asyncio.CancelledError:  # a drain; the database may have been told
            child.must_be_buried = True
            raise
        return child

    def drain(self) -> None:
        """Tell all of them to pause their runs and exit."""
        for child in self._living.values():
            self._drain(child)

    async def until_gone(self) -> None:
        """Wait until all draining children have been buried; no longer than a drain may take."""
        if self._endings:
            limit_s = self._settings.drain_timeout_s + 2 * LATE_S
            await asyncio.wait(self._endings, timeout=limit_s)

    async def beat(self) -> None:
        """Write the heartbeats of all of them; kill those that others have declared dead."""
        known = [child for child in self._living.values() if child.is_registered]
        if not known:
            return
        retired = [child.worker_id for child in known if child.is_retired]
        alive = await self._store.beat([child.worker_id for child in known], retired)
        self._meters.count_beat()
        for child in known:
            if child.worker_id not in alive:
                self._kill(child, ChildEnd.DISPLACED)  # its runs have new owners: it must stop

    async def guard(self) -> None:
        """Kill children that are silent, overdue to exit, or over their memory limit; until cancelled."""
        while True:
            self.look(time.monotonic())
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self, now: float) -> None:
        """Kill such children once; `now`: by time.monotonic()."""
        if now - self._looked_at > FROZEN_S:
            self._listens_since = now
        self._looked_at = now
        for child in list(self._living.values()):
            if self._is_silent(child, now):
                self._kill(child, ChildEnd.SILENT)
            elif now > child.end_by:
                self._kill(child, ChildEnd.LATE)
            elif self._is_large(child):  # its runs resume elsewhere, tried apart from others
                self._kill(child, ChildEnd.MEMORY)

    def _start_in(self, slot: int, kind: ClaimKind) -> Child:
        settings = ChildSettings(
            worker_id=uuid4(),
            slot=slot,
            kind=kind,
            pool=self._settings,
            sheet_fd=self._sheet.fd,
        )
        with ExitStack() as undo:
            undo.callback(self._free_slot, slot)
            self._loads.beats[slot] = 0.0
            self._loads.tell(slot, 0 if kind is ClaimKind.MANY else GONE)
            ear = self.relay.open_ear(slot)
            undo.callback(self.relay.close_mouth, slot)
            child = start_child(self._fork_server, settings, self._loads_fd, ear)
            undo.pop_all()
        self._living[slot] = child
        return child

    def _free_slot(self, slot: int) -> None:
        self._loads.tell(slot, GONE)
        self._free.put_nowait(slot)

    async def _introduce(self, child: Child) -> None:
        """Listen to a child, and register it: before that it can claim nothing."""
        asyncio.get_running_loop().add_reader(child.orders.fileno(), self._hear, child)
        pid = child.process.pid
        LOG.info("child_started", slot=child.slot, pid=pid, worker_id=str(child.worker_id))
        child.identity = processes.identify(pid)
        if child.identity is None:  # it is gone already
            return
        await self._store.register(
            child.worker_id,
            pool_id=self.pool_id,
            process=child.identity,
            queues=self._settings.queues,
        )
        child.is_registered = child.must_be_buried = True

    def _hear(self, child: Child) -> None:
        """Handle a child's only message: that it retires."""
        # Not recv(): half a message would block everything.
        try:
            word = os.read(child.orders.fileno(), MAX_WORD_BYTES)
        except OSError:
            word = b""
        if not word:  # a body has closed it, or it ends
            asyncio.get_running_loop().remove_reader(child.orders.fileno())
        elif not child.is_retired and child.end_by == inf:
            child.is_retired = True
            LOG.info("child_replaced", slot=child.slot, worker_id=str(child.worker_id))
            self._retired.append(child)
            if len(self._retired) == MAX_RETIRED:
                self._drain(self._retired[0])
            self._let_go(child)

    def _let_go(self, child: Child) -> None:
        child.has_left.set()
        self._on_left()

    def _drain(self, child: Child) -> None:
        child.end_by = time.monotonic() + self._settings.drain_timeout_s + LATE_S
        if child in self._retired:
            self._retired.remove(child)
        with suppress(OSError):  # it is ending already
            child.orders.send(DRAIN)

    def _is_silent(self, child: Child, now: float) -> bool:
        beaten_at = self._loads.beats[child.slot]
        limit_s = SILENT_CHILD_S if beaten_at else START_GRACE_S
        return bool(now - max(beaten_at or child.started_at, self._listens_since) > limit_s)

    def _is_large(self, child: Child) -> bool:
        limit_mib = self._settings.worker_memory_mib
        if limit_mib is None:
            return False
        found = find_process(child.process.pid)
        return found is not None and found.resident_bytes > limit_mib << 20

    def _kill(self, child: Child, reason: ChildEnd) -> None:
        if child.killed_for is None and self._living.get(child.slot) is child:
            child.killed_for = reason
            LOG.error("child_killed", slot=child.slot, reason=reason)
            child.process.kill()

    async def _see_to_end(self, child: Child) -> None:
        """Wait for a child's exit, and clean up after it."""
        await processes.until_readable(child.process.sentinel)
        self._dying.add(child.worker_id)
        try:
            code, is_done = self._clear_after(child)
            level = LOG.info if is_done else LOG.error
            level("child_ended", slot=child.slot, worker_id=str(child.worker_id), exit_code=code)
            death = _name_death(child, code, is_done=is_done)
            burial = await self._bury(child, death, has_left_nothing=is_done and code == 0)
        finally:
            self._dying.discard(child.worker_id)  # unburied children are found by their pids
            self._let_go(child)
        by_itself = ChildEnd.EXIT if is_done else ChildEnd.CRASH
        self._meters.count_end(child.killed_for or by_itself, burial)
        if burial.handed_back or burial.failed:
            log_burial(child.worker_id, death, burial)

    def _hear_ending(self, ending: asyncio.Task[None]) -> None:
        self._endings.discard(ending)
        if not ending.cancelled() and (error := ending.exception()) is not None:
            LOG.error("child_end_failed", exc_info=error)

    def _clear_after(self, child: Child) -> tuple[int, bool]:
        """Free an ended child's resources here; return its exit code, and whether it ended as planned."""
        code = child.process.wait()
        is_done = self._loads.beats[child.slot] == ENDED  # a body may cause an exit code of 0, too
        del self._living[child.slot]
        if child in self._retired:
            self._retired.remove(child)
        asyncio.get_running_loop().remove_reader(child.orders.fileno())
        self.relay.close_mouth(child.slot)
        child.orders.close()
        child.outlet.close()
        child.process.close()
        self._free_slot(child.slot)
        return code, is_done

    async def _bury(self, child: Child, death: str, *, has_left_nothing: bool) -> Burial:
        """Hand back a child's runs, however long it takes. Other pools do it if registering failed: the row may be there.

        `has_left_nothing`: no process that it started may be left behind.
        """
        burial = Burial(is_all=not child.must_be_buried)
        while not burial.is_all:
            try:
                if not has_left_nothing and child.identity is not None:
                    # A body may have closed the descriptor that signals its end.
                    await processes.end(child.identity)
                    await sweep(child.worker_id)
                burial = (await self._store.bury(child.worker_id, death)).after(burial)
            except (StoreError, OSError) as error:
                if self._burial_complaint.may_be_said():
                    LOG.warning("bury_failed", worker_id=str(child.worker_id), error=str(error))
            if not burial.is_all:
                await asyncio.sleep(RETRY_S)
        return burial


def _name_death(child: Child, code: int, *, is_done: bool) -> str:
    """Say how a child died: if this begins with `exit-`, its runs in flight are suspected of it."""
    # If a child was told to end, none of its runs is to blame, even if it did not stop in time.
    if is_done or child.killed_for is ChildEnd.LATE:
        return "drained"
    return f"exit-{code}"
