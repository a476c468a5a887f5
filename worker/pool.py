"""The pool: a parent that spawns children, keeps the configured number running, and notices deaths.

It never loads workflow code, and neither does the fork server that its children come from. It hands a dead child's runs
back at once (it sees the sentinel), writes all its children's heartbeats in one statement a second, kills a child that is
silent for 20 s, buries dead workers of other pools, and has sources described. It ends when told to (SIGTERM,
SIGINT, or the end of its stdin) after its children have drained; its other loops are restarted if they fail.
"""

import asyncio
import os
import signal
import time
from contextlib import suppress
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.service_loops import ServiceLoops
from smithers.store.claims import ClaimKind
from smithers.store.hints import Channel
from smithers.store.pool_store import PoolStore, open_pool_store
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from worker.burials import bury_found, log_burial
from worker.children import Children
from worker.death_watch import DeathWatch
from worker.describing import Describer
from worker.fork_server import ForkServer
from worker.forked import Child
from worker.liveness import keep_liveness
from worker.meters import PoolMeters
from worker.mirroring import mirroring
from worker.settings import MAX_ISOLATED, MAX_TRYING, PoolSettings

BEAT_EVERY_S: Final = 1.0
SPAWN_AGAIN_S: Final = 1.0
BACK_OFF_S: Final = (0.0, 0.1, 0.5, 1.0, 5.0)  # pause before the successor of a short-lived child
YOUNG_S: Final = 5.0
NOT_NOW: Final = (StoreError, OSError, EOFError)  # no database, descriptor or fork: that may pass
MAX_APART: Final = {ClaimKind.ISOLATED: MAX_ISOLATED, ClaimKind.SUSPECT: MAX_TRYING}
APART_PAUSE_S: Final = 0.2
APART_START_S: Final = 10.0  # for a new one to claim a run: a second one would slow it down

LOG: Final = structlog.get_logger(__name__)


class Pool:
    """The parent of children."""

    def __init__(
        self, settings: PoolSettings, store: PoolStore, fork_server: ForkServer, sheet: Sheet
    ) -> None:
        self._settings = settings
        self._store = store
        self._meters = PoolMeters(sheet.open_page(Role.POOL))
        store.hints.watch = self._meters.hear_listening
        self._draining = asyncio.Event()
        self._due = asyncio.Event()
        self._has_looked = asyncio.Event()
        self._spawn_complaint = Complaint()
        self._children = Children(
            settings,
            store=store,
            fork_server=fork_server,
            sheet=sheet,
            meters=self._meters,
            on_left=self._due.set,
        )
        self._describer = Describer(fork_server, store, root_dir=settings.root_dir)
        self._relay = self._children.relay
        self.is_session_held = asyncio.Event()
        self._death_watch = DeathWatch(self._children.pool_id, self.is_session_held.is_set)

    @property
    def pool_id(self) -> UUID:
        """The id in the name of its liveness lock."""
        return self._children.pool_id

    def hear_sources(self, _hashes: frozenset[str] | None) -> None:
        """Handle a hint that a source's description is requested."""
        self._describer.hear()

    def hear_due(self, queues: frozenset[str] | None) -> None:
        """Handle a hint that a run became claimable: it is for one child, and may need one of its own."""
        if queues is None:
            self._relay.pass_due_to_all()
        elif queues.isdisjoint(self._settings.queues):
            return
        else:
            self._relay.pass_due()
        self._due.set()

    def hear_news(self, run_ids: frozenset[str] | None) -> None:
        """Handle a hint that there is news for runs: a child of this pool may own them."""
        self._relay.pass_news(run_ids)

    def drain(self) -> None:
        """Let the children finish, then end."""
        if not self._draining.is_set():
            LOG.info("pool_drains")
        self._draining.set()

    async def run(self) -> None:
        """Supervise the children until drained."""
        async with ServiceLoops() as serving, ServiceLoops() as starting:
            serving.start(self._beat_for_all, name="beats")
            serving.start(self._children.guard, name="guard")
            serving.start(self._watch_others, name="watch")
            serving.start(self._describer.run, name="describe")
            starting.start(self._look_for_runs_apart, name="apart")
            for number in range(self._settings.worker_count):
                starting.start(self._keep_child, name=f"keeper-{number}")
            await self._draining.wait()
            starting.cancel()
            self._children.drain()
            await self._children.until_gone()

    async def _keep_child(self) -> None:
        """Keep one child running, and replace it when it ends, with a pause after a short-lived one."""
        young_in_a_row = 0
        await self._has_looked.wait()
        while True:
            child = await self._start_child(ClaimKind.MANY)
            if child is None:
                await asyncio.sleep(SPAWN_AGAIN_S)
                continue
            await child.has_left.wait()
            is_young = time.monotonic() - child.started_at < YOUNG_S
            young_in_a_row = young_in_a_row + 1 if is_young else 0
            await asyncio.sleep(BACK_OFF_S[min(young_in_a_row, len(BACK_OFF_S) - 1)])

    async def _start_child(self, kind: ClaimKind) -> Child | None:
        try:
            return await self._children.start(kind)
        except NOT_NOW as error:
            if self._spawn_complaint.may_be_said():
                LOG.warning("spawn_failed", error=f"{type(error).__name__}: {error}")
            return None

    async def _look_for_runs_apart(self) -> None:
        """Give each isolated run a child of its own, and suspects children that try them: a few of each at a time."""
        complaint = Complaint()
        await self._has_looked.wait()
        while True:
            self._due.clear()
            try:
                await self._start_apart()
            except StoreError as error:
                if complaint.may_be_said():
                    LOG.warning("runs_apart_unknown", error=str(error))
            await asyncio.sleep(APART_PAUSE_S)  # hints come with every start; few concern this loop
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_EVERY_S):
                    await self._due.wait()

    async def _start_apart(self) -> None:
        """Start children for the isolated runs and the suspects that are due, while there is room for more of a kind."""
        here = {kind: self._children.list_of(kind) for kind in MAX_APART}
        room = {kind: limit - len(here[kind]) for kind, limit in MAX_APART.items()}
        if max(room.values()) <= 0:
            return
        # Before the count: if a child claims between the two, one too few is started, until the next look, and none too many.
        starting = {kind: sum(map(self._is_starting, here[kind])) for kind in MAX_APART}
        counts = await self._store.count_runs_apart(self._settings.queues)
        for kind in MAX_APART:
            for _ in range(min(room[kind], counts[kind] - starting[kind])):
                # Children that are still ending may have all slots: one kind must not wait for the other's.
                if not self._children.has_room:
                    return
                await self._start_child(kind)

    def _is_starting(self, child: Child) -> bool:
        is_new = time.monotonic() - child.started_at < APART_START_S
        return is_new and not self._children.has_claimed(child)

    async def _beat_for_all(self) -> None:
        complaint = Complaint()
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            try:
                await self._children.beat()
            except StoreError as error:
                if complaint.may_be_said():
                    LOG.warning("beat_failed", error=str(error))

    async def _watch_others(self) -> None:
        """Check once a second for dead workers that nobody has buried; children start after the first check.

        Nothing begins before the schema is new enough: a workflow's own database may be migrated later than the server's.
        """
        complaint = Complaint()
        while True:
            try:
                if not self._has_looked.is_set():
                    await self._store.require_schema()
                await self._bury_gone()
            except StoreError as error:
                if complaint.may_be_said():
                    LOG.warning("watch_failed", error=str(error))
            else:
                self._has_looked.set()
            await asyncio.sleep(BEAT_EVERY_S)

    async def _bury_gone(self) -> None:
        own = self._children.worker_ids
        try:
            living = await self._store.list_living()
        except StoreError:
            self._death_watch.miss()
            raise
        others = [one for one in living if one.worker_id not in own]
        for worker, death in self._death_watch.look(others):
            burial = await bury_found(self._store, worker, death)
            self._meters.count_burial(death, burial)
            log_burial(worker.worker_id, death, burial)


async def run_pool(settings: PoolSettings, fork_server: ForkServer) -> None:
    """Run a pool until SIGTERM, SIGINT or the end of stdin."""
    loop = asyncio.get_running_loop()
    async with open_pool_store(settings.dsn, settings.direct_dsn) as store:
        sheet = Sheet.create() if settings.sheet_fd is None else Sheet(settings.sheet_fd)
        pool = Pool(settings.for_children, store, fork_server, sheet)
        listeners = {
            Channel.SOURCES: pool.hear_sources,
            Channel.DUE: pool.hear_due,
            Channel.NEWS: pool.hear_news,
        }
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, pool.drain)
        loop.add_reader(0, _read_stdin, loop, pool)
        async with ServiceLoops() as loops:
            if settings.has_sessions:
                told = (settings.direct_dsn, pool.pool_id, pool.is_session_held)
                loops.start(partial(keep_liveness, *told), name="liveness")
            async with store.hints.listen(listeners), mirroring(settings):
                await pool.run()


def _read_stdin(loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
    """Watch stdin: the process that started the pool holds the other end, and its end is ours."""
    if not os.read(0, 4096):
        loop.remove_reader(0)
        pool.drain()
