"""The pool: a parent that spawns children, keeps as many alive as it was told to, and notices deaths.

It never loads workflow code, and neither does the fork server that its children come from. It hands a dead child's runs
back at once (it sees the sentinel), writes all its children's heartbeats in one statement a second, kills a child that is
silent for 20 s, buries the workers of others that are gone, and has sources described. It ends when told to (SIGTERM,
SIGINT, or the end of its stdin) after its children have drained.
"""

import asyncio
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, Final
from uuid import UUID, uuid4

import structlog

from smithers.errors import StoreError
from smithers.ids import WorkerId
from smithers.store.hints import Channel
from smithers.store.owners import ProcessIdentity
from smithers.store.pool_store import PoolStore, open_pool_store
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from worker import processes
from worker.births import be_child
from worker.death_watch import DeathWatch
from worker.descendants import sweep
from worker.describing import describe_in_process
from worker.liveness import keep_liveness
from worker.loads import ENDED, GONE, Loads
from worker.memory import resident_bytes
from worker.meters import PoolMeters
from worker.mirroring import mirroring
from worker.outlets import Outlet
from worker.settings import DRAIN, MAX_SOLO, ChildSettings, PoolSettings

BEAT_EVERY_S: Final = 1.0
SILENT_CHILD_S: Final = 20.0
WEIGH_EVERY_S: Final = 0.1  # a body fills some hundred MiB in that time
WANTED_EVERY_S: Final = 2.0
START_GRACE_S: Final = 60.0  # a child that has not beaten yet is still importing
BACK_OFF_S: Final = (0.0, 0.1, 0.5, 1.0, 5.0)  # before the next start of a child that died young
YOUNG_S: Final = 5.0
SOLO_PAUSE_S: Final = 0.2
SOLO_START_S: Final = 10.0  # for a new one to claim its run: a second one would slow it down

log = structlog.get_logger("worker.pool")


@dataclass(eq=False, slots=True)
class Child:
    """A child as its parent sees it."""

    worker_id: WorkerId
    slot: int
    process: ForkServerProcess
    orders: Connection
    outlet: Outlet
    started_at: float
    identity: ProcessIdentity | None = None  # None: it was gone before anybody looked
    killed_for: str | None = None


class Pool:
    """The parent of children."""

    def __init__(
        self, settings: PoolSettings, store: PoolStore, nursery: ForkServerContext, sheet: Sheet
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool_id = uuid4()
        self._nursery = nursery
        self._sheet = sheet
        self._meters = PoolMeters(sheet.open_page(Role.POOL))
        self._beats: Any = self._nursery.Array("d", settings.worker_count + MAX_SOLO, lock=False)
        counts = nursery.Array("i", len(self._beats), lock=False)
        self._loads = Loads(counts, self._beats)
        self._children: dict[int, Child] = {}
        self._dying: set[WorkerId] = set()  # children that are being buried
        self._deaths_in_a_row = [0] * settings.worker_count
        self._draining = asyncio.Event()
        self._wanted = asyncio.Event()
        self._due = asyncio.Event()
        self._solo: set[asyncio.Task[None]] = set()
        self._death_watch = DeathWatch(self._pool_id)

    @property
    def pool_id(self) -> UUID:
        """What its liveness lock is named for."""
        return self._pool_id

    def hear_sources(self, _hashes: frozenset[str] | None) -> None:
        """Take a hint that somebody wants a source described."""
        self._wanted.set()

    def hear_due(self, queues: frozenset[str] | None) -> None:
        """Take a hint that something became claimable: it may want a child of its own."""
        if queues is None or not queues.isdisjoint(self._settings.queues):
            self._due.set()

    def drain(self) -> None:
        """Let the children finish, and end."""
        if not self._draining.is_set():
            log.info("pool_drains")
        self._draining.set()

    async def run(self) -> None:
        """Keep the children alive until drained."""
        await self._bury_gone()
        tasks = [
            asyncio.create_task(self._beat_for_all(), name="beats"),
            asyncio.create_task(self._kill_large(), name="memory"),
            asyncio.create_task(self._watch_others(), name="watch"),
            asyncio.create_task(self._describe_wanted(), name="describe"),
            asyncio.create_task(self._look_for_solo(), name="solo"),
        ]
        keepers = [
            asyncio.create_task(self._keep_child(slot), name=f"keeper-{slot}")
            for slot in range(self._settings.worker_count)
        ]
        try:
            await self._draining.wait()
            for child in list(self._children.values()):
                _send_drain(child)
            deadline_s = self._settings.drain_timeout_s + 5
            keepers += self._solo
            _, stuck = await asyncio.wait(keepers, timeout=deadline_s) if keepers else ([], [])
            for child in list(self._children.values()):
                self._kill(child, "drain-timeout")
            if stuck:
                await asyncio.wait(stuck, timeout=5)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _keep_child(self, slot: int) -> None:
        """Have a child in this slot until drained, with a pause after each that died young."""
        while not self._draining.is_set():
            try:
                child = await self._spawn(slot, is_solo=False)
            except StoreError as error:
                log.warning("spawn_failed", error=str(error))
                await self._pause(1.0)
                continue
            await self._until_dead(child)
            await self._bury(child)
            is_young = time.monotonic() - child.started_at < YOUNG_S
            self._deaths_in_a_row[slot] = self._deaths_in_a_row[slot] + 1 if is_young else 0
            step = min(self._deaths_in_a_row[slot], len(BACK_OFF_S) - 1)
            await self._pause(BACK_OFF_S[step])

    async def _look_for_solo(self) -> None:
        """Give each run that wants it a child of its own, a few at a time."""
        while not self._draining.is_set():
            self._due.clear()
            free = set(range(len(self._beats))[-MAX_SOLO:]) - self._children.keys()
            try:
                count = await self._store.count_solo_runs(self._settings.queues) if free else 0
            except StoreError as error:
                log.warning("solo_failed", error=str(error))
                count = 0
            starting = sum(
                child.slot >= self._settings.worker_count
                and time.monotonic() - child.started_at < SOLO_START_S
                for child in self._children.values()
            )
            for slot in sorted(free)[: max(0, count - starting)]:
                task = asyncio.create_task(self._keep_solo(slot), name=f"solo-{slot}")
                self._solo.add(task)
                task.add_done_callback(self._solo.discard)
            await asyncio.sleep(SOLO_PAUSE_S)  # hints come with every start; few of them are for us
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_EVERY_S):
                    await self._due.wait()

    async def _keep_solo(self, slot: int) -> None:
        try:
            child = await self._spawn(slot, is_solo=True)
        except StoreError as error:
            log.warning("spawn_failed", error=str(error))
            return
        await self._until_dead(child)
        await self._bury(child)
        self._due.set()

    async def _spawn(self, slot: int, *, is_solo: bool) -> Child:
        worker_id = WorkerId(uuid4())
        orders, childs_end = self._nursery.Pipe()
        outlet, childs_outlet = self._nursery.Pipe(duplex=False)
        settings = ChildSettings(
            worker_id=worker_id,
            slot=slot,
            is_solo=is_solo,
            pool=self._settings,
            sheet=self._sheet,
        )
        self._beats[slot] = 0.0
        self._loads.tell(slot, GONE if is_solo else 0)
        process = self._nursery.Process(
            target=be_child,
            args=(settings, self._loads, childs_end, childs_outlet),
            name=f"child-{slot}",
        )
        process.start()
        childs_end.close()
        childs_outlet.close()
        child = Child(worker_id, slot, process, orders, Outlet(outlet), time.monotonic())
        self._children[slot] = child
        child.identity = processes.identify(process.pid or 0)
        if child.identity is not None:
            try:
                await self._store.register(
                    worker_id,
                    pool_id=self._pool_id,
                    process=child.identity,
                    queues=self._settings.queues,
                )
            except StoreError:
                self._kill(child, "not-registered")
                raise
        log.info("child_started", slot=slot, pid=process.pid, worker_id=str(worker_id))
        return child

    async def _until_dead(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(child.process.sentinel, dead.set)
        try:
            await dead.wait()
        finally:
            loop.remove_reader(child.process.sentinel)

    async def _bury(self, child: Child) -> None:
        child.process.join()
        self._dying.add(child.worker_id)
        self._children.pop(child.slot, None)
        self._loads.tell(child.slot, GONE)
        code = child.process.exitcode
        is_done = self._beats[child.slot] == ENDED  # an exit code of 0 may be a body's too
        child.orders.close()
        child.outlet.close()
        child.process.close()
        if not is_done and child.identity is not None:
            await processes.end(child.identity)  # a body may have closed what tells of its end
            await sweep(child.worker_id)
        while True:
            try:
                burial = await self._store.bury(child.worker_id, f"exit-{code}")
                break
            except StoreError as error:
                log.warning("bury_failed", worker_id=str(child.worker_id), error=str(error))
                await asyncio.sleep(0.5)
        self._dying.discard(child.worker_id)
        self._meters.count_end(child.killed_for or ("exit" if is_done else "crash"), burial)
        level = log.info if is_done else log.error
        level("child_ended", slot=child.slot, exit_code=code, runs_handed_back=burial.handed_back)

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._draining.wait()

    async def _beat_for_all(self) -> None:
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            self._kill_silent()
            worker_ids = [child.worker_id for child in self._children.values()]
            if not worker_ids:
                continue
            try:
                alive = await self._store.beat(worker_ids)
            except StoreError as error:
                log.warning("beat_failed", error=str(error))
                continue
            self._meters.count_beat()
            for child in list(self._children.values()):
                if child.worker_id in worker_ids and child.worker_id not in alive:
                    # Others gave it up for dead, and its runs have new owners: it must not go on.
                    self._kill(child, "displaced")

    def _kill_silent(self) -> None:
        now = time.monotonic()
        for child in list(self._children.values()):
            beaten_at = self._beats[child.slot]
            limit_s = SILENT_CHILD_S if beaten_at else START_GRACE_S
            if now - (beaten_at or child.started_at) > limit_s:
                self._kill(child, "silent")

    async def _kill_large(self) -> None:
        """Kill a child that has grown beyond its limit: its runs go on elsewhere, and are tried apart."""
        limit_mib = self._settings.worker_memory_mib
        while limit_mib is not None:
            for child in list(self._children.values()):
                if resident_bytes(child.process.pid or 0) > limit_mib << 20:
                    self._kill(child, "memory")
            await asyncio.sleep(WEIGH_EVERY_S)

    def _kill(self, child: Child, reason: str) -> None:
        if child.killed_for is None:
            child.killed_for = reason
            log.error("child_killed", slot=child.slot, reason=reason)
            child.process.kill()

    async def _watch_others(self) -> None:
        """Look once a second for workers whose death nobody has noticed."""
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            try:
                await self._bury_gone()
            except StoreError as error:
                log.warning("watch_failed", error=str(error))

    async def _bury_gone(self) -> None:
        own = {child.worker_id for child in self._children.values()} | self._dying
        living = [one for one in await self._store.list_living() if one.worker_id not in own]
        for worker, death in self._death_watch.look(living):
            # Before others go on with what it has in flight.
            if processes.is_here(worker.process):
                await processes.end(worker.process)
                await sweep(worker.worker_id)
            burial = await self._store.bury(worker.worker_id, death)
            self._meters.count_burial(death, burial)
            log.warning(
                "worker_buried",
                worker_id=str(worker.worker_id),
                death=death,
                runs_handed_back=burial.handed_back,
            )

    async def _describe_wanted(self) -> None:
        """Describe the sources that somebody asked for; one after another."""
        while True:
            self._wanted.clear()
            try:
                wanted = await self._store.list_wanted_descriptions()
                for one in wanted:
                    text = await describe_in_process(
                        self._nursery,
                        one.bundle,
                        one.workflow_export,
                        root_dir=self._settings.root_dir,
                    )
                    await self._store.put_description(one, text)
            except StoreError as error:
                log.warning("describe_failed", error=str(error))
                wanted = []
            if not wanted:
                with suppress(TimeoutError):
                    async with asyncio.timeout(WANTED_EVERY_S):
                        await self._wanted.wait()


def _send_drain(child: Child) -> None:
    with suppress(OSError):  # it is ending already
        child.orders.send(DRAIN)


async def run_pool(settings: PoolSettings, nursery: ForkServerContext) -> None:
    """Run a pool until SIGTERM, SIGINT or the end of stdin."""
    loop = asyncio.get_running_loop()
    holder: list[Pool] = []

    def hear_sources(names: frozenset[str] | None) -> None:
        for pool in holder:
            pool.hear_sources(names)

    def hear_due(names: frozenset[str] | None) -> None:
        for pool in holder:
            pool.hear_due(names)

    listeners = {Channel.SOURCES: hear_sources, Channel.DUE: hear_due}
    async with open_pool_store(settings.dsn, settings.direct_dsn, listeners) as store:
        sheet = Sheet.create() if settings.sheet_fd is None else Sheet(settings.sheet_fd)
        pool = Pool(settings.alone, store, nursery, sheet)
        holder.append(pool)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, pool.drain)
        keeping = asyncio.create_task(keep_liveness(settings.direct_dsn, pool.pool_id))
        loop.add_reader(0, _read_stdin, loop, pool)
        try:
            async with mirroring(settings):
                await pool.run()
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])


def _read_stdin(loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
    """Whoever started the pool holds the other end: its end is ours."""
    if not os.read(0, 4096):
        loop.remove_reader(0)
        pool.drain()
