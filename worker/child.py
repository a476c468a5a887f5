"""A child: one process, one event loop, many runs. It owns the runs that it claims, under an id created at its start.

It ends when its parent says so, when the pipe to its parent closes, or when it can no longer be trusted: if a body does
not stop, it claims no more runs, and ends when its other work is finished. It then exits at once, whatever still runs here,
and leaves to its parent the runs of which something may still run: they are released when this process is dead. It writes
heartbeats into shared memory from its event loop: a blocked loop is silent, and the parent kills it.
"""

import asyncio
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Final

import structlog

from smithers.errors import StoreError
from smithers.ids import WorkerId
from smithers.store.worker_store import WorkerStore, open_worker_store
from smithers.telemetry.logs import configure_logging
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from smithers.telemetry.tracing import open_tracer
from worker.bodies import Bodies
from worker.claimer import Claimer
from worker.clock import DatabaseClock
from worker.descendants import mark_this_process
from worker.executor import Shared
from worker.loads import Loads
from worker.loops import BodyLoop
from worker.meters import ChildMeters
from worker.outlets import divert
from worker.premises import Premises
from worker.prints import route_prints
from worker.processes import die_with_parent, volunteer_for_oom
from worker.relay import listen_to_parent
from worker.rendering import install_alarm, render_guard
from worker.settings import DRAIN, RETIRES, ChildSettings
from worker.slices import shorten_slices
from worker.started import LoopThreads
from worker.threads import MAX_THREADS
from worker.toolboxes import open_workshop
from worker.workflows import Workflows

BEAT_EVERY_S: Final = 0.25
WATCH_EVERY_S: Final = 1.0
SEND_SPANS_S: Final = 2.0  # for spans that a slow collector has not accepted at the end
CUT_SHORT: Final = 3  # the exit code if something of a body may still run
BROKEN: Final = 70  # EX_SOFTWARE: if a run is held that could not be executed
MAX_NAMED: Final = 5  # how many of the runs that a drain stops are logged
MAX_LEFT_BEHIND: Final = 64  # bodies that do not stop: each may occupy a thread

LOG: Final = structlog.get_logger(__name__)


def run_child(
    settings: ChildSettings,
    loads: Loads,
    ear: socket.socket,
    orders: Connection,
    outlet: Connection,
) -> None:
    """Run a child until told to end; output of its code to descriptors 1 and 2 goes to `outlet`."""
    die_with_parent()
    shorten_slices()
    # Ctrl-C goes to the whole group: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    install_alarm()
    configure_logging(settings.pool.log_format, settings.pool.log_level, divert(outlet))
    route_prints()
    os.chdir(settings.pool.root_dir)
    mark_this_process(WorkerId(settings.worker_id))
    volunteer_for_oom()
    departure = _Departure(orders)
    # Never closed: that would wait for bodies that do not stop. Everything that matters is in the database.
    runner = asyncio.Runner(loop_factory=BodyLoop)
    runner.run(_live(settings, loads, ear, orders, departure))
    if not departure.is_broken:
        loads.say_ended(settings.slot)
    os._exit(departure.exit_code)


async def _live(
    settings: ChildSettings,
    loads: Loads,
    ear: socket.socket,
    orders: Connection,
    departure: "_Departure",
) -> None:
    loop = asyncio.get_running_loop()
    beating = loop.create_task(_beat(loads, settings.slot), name="beat")
    loop.add_reader(orders.fileno(), _take_order, orders, departure)
    loop.add_signal_handler(signal.SIGTERM, departure.hurry)
    premises = Premises(settings.pool.root)
    loop.set_default_executor(LoopThreads(premises))
    with open_workshop(settings.pool) as workshop:
        bodies = Bodies(
            threads=_open_threads("body", premises),
            workshop=workshop,
            root_dir=settings.pool.root,
            on_abandoned=departure.leave_behind,
            premises=premises,
        )
        watching = loop.create_task(_watch(premises, departure), name="watch")
        await _serve(settings, loads, ear, bodies, departure)
    watching.cancel()
    beating.cancel()


def _open_threads(name: str, premises: Premises) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, name, initializer=premises.enter_thread)


class _Departure:
    """This child's way to its end: it claims no more runs, and its own have a time limit or not."""

    def __init__(self, orders: Connection) -> None:
        self.has_begun = asyncio.Event()
        self.is_limited = asyncio.Event()
        self.is_broken = False  # a run is held that is not executed, and may be to blame
        self._orders = orders
        self._left_behind = 0

    @property
    def has_left_behind(self) -> bool:
        """Whether something of a body may still run here."""
        return self._left_behind > 0

    @property
    def exit_code(self) -> int:
        """The process's exit code."""
        if self.is_broken:
            return BROKEN
        return CUT_SHORT if self.has_left_behind else 0

    def leave_behind(self, reason: str) -> None:
        """Retire because of a body that does not stop; after many there may be no thread left for the others."""
        self._left_behind += 1
        if self._left_behind < MAX_LEFT_BEHIND:
            self.retire(reason)
        else:
            self.give_up(reason)

    def retire(self, reason: str) -> None:
        """Finish the present runs; a successor starts now."""
        LOG.warning("child_retires", reason=reason)
        if not self.has_begun.is_set():
            self.has_begun.set()
            with suppress(OSError):  # a body has closed it, or the parent is gone
                self._orders.send(RETIRES)

    def break_down(self, reason: str) -> None:
        """End in a way that counts as a crash, against the run that could not be executed."""
        self.is_broken = True
        self.give_up(reason)

    def give_up(self, reason: str) -> None:
        """Retire, with the time limit of a drain: the present runs should resume elsewhere."""
        self.retire(reason)
        self.hurry()

    def hurry(self) -> None:
        """Limit the present runs to the time of a drain."""
        self.has_begun.set()
        self.is_limited.set()


async def _serve(
    settings: ChildSettings,
    loads: Loads,
    ear: socket.socket,
    bodies: Bodies,
    departure: _Departure,
) -> None:
    pool = settings.pool
    async with open_worker_store(pool.dsn, WorkerId(settings.worker_id)) as store:
        shared = _make_shared(settings, store, bodies)
        claimer = Claimer(
            shared,
            queues=pool.queues,
            limit=pool.runs_per_worker,
            kind=settings.kind,
            loads=loads,
            slot=settings.slot,
            on_broken=departure.break_down,
        )
        listen_to_parent(
            ear, loads, settings.slot, on_due=claimer.hear_due, on_news=claimer.hear_news
        )
        running = asyncio.create_task(claimer.run(), name="claimer")
        await _until_any(running, departure.has_begun)
        claimer.drain()
        await _until_any(running, departure.is_limited)
        if not await _has_ended(running, pool.drain_timeout_s):
            await _give_back(claimer, store, departure)
            await asyncio.wait([running], timeout=1)
    if shared.tracer is not None:
        shared.tracer.close(SEND_SPANS_S)  # the loop has nothing else to do


def _make_shared(settings: ChildSettings, store: WorkerStore, bodies: Bodies) -> Shared:
    meters = ChildMeters(Sheet(settings.sheet_fd).open_page(Role.CHILD))
    premises = bodies.premises
    assert premises is not None
    store.watch(meters.lanes.count)
    return Shared(
        store=store,
        workflows=Workflows(store, replace(bodies, threads=_open_threads("import", premises))),
        bodies=bodies,
        clock=DatabaseClock(),
        guard=lambda timeout_s: premises.around(render_guard(timeout_s)),
        meters=meters,
        tracer=open_tracer(settings.pool.otel, meters.spans_dropped.inc, has_authors=True),
        keeps_queue=settings.pool.keeps_queue,
    )


async def _until_any(running: asyncio.Task[None], event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _has_ended(running: asyncio.Task[None], limit_s: float) -> bool:
    """Wait until the present runs have ended; False: they take longer."""
    ended, _ = await asyncio.wait([running], timeout=limit_s)
    for task in ended:
        task.result()  # a defect of this package ends the process as a crash
    return bool(ended)


async def _give_back(claimer: Claimer, store: WorkerStore, departure: _Departure) -> None:
    """Stop and release the present runs; if something may still run, the parent releases them after our exit."""
    stopped = await claimer.stop_all()
    LOG.info("drain_timeout", stopped=len(stopped), run_ids=stopped[:MAX_NAMED])
    if not departure.has_left_behind:
        try:
            await store.release(stopped)
        except StoreError as error:
            LOG.warning("release_failed", error=str(error))


def _take_order(orders: Connection, departure: _Departure) -> None:
    try:
        if orders.poll() and orders.recv() == DRAIN:
            departure.hurry()
    except (EOFError, OSError):
        # The parent is gone, and nobody would notice our death: our runs are found by our pid.
        os._exit(1)


async def _watch(premises: Premises, departure: _Departure) -> None:
    """Replace this child when bodies have exhausted shared resources, which would make others fail."""
    while True:
        if premises.lacks_descriptors():
            departure.give_up("its bodies have left too many descriptors open")
            return
        await asyncio.sleep(WATCH_EVERY_S)


async def _beat(loads: Loads, slot: int) -> None:
    while True:
        loads.beat(slot)
        await asyncio.sleep(BEAT_EVERY_S)
