"""A child: one process, one event loop, many runs. It owns the runs that it claims, under an id made at its start.

It ends when its parent says so, when the pipe to its parent closes, or when it can no longer be trusted: where a body does
not stop it claims no more, and ends when it has finished what else it has. It beats into shared memory from its event loop:
a loop that is blocked is silent, and the parent kills it.
"""

import asyncio
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

import structlog
import uvloop

from smithers.errors import StoreError
from smithers.ids import WorkerId
from smithers.store.worker_store import WorkerStore, open_worker_store
from smithers.telemetry.logs import configure_logging
from smithers.telemetry.names import Role
from smithers.telemetry.tracing import open_tracer
from worker.bodies import Bodies
from worker.claimer import Claimer
from worker.clock import DatabaseClock
from worker.descendants import mark_this_process
from worker.executor import Tools
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
from worker.toolboxes import open_workshop
from worker.workflows import Workflows

BEAT_EVERY_S: Final = 0.25
WATCH_EVERY_S: Final = 1.0
SEND_SPANS_S: Final = 2.0  # for what a collector that is slow has not taken at the end
MAX_THREADS: Final = 512
MAX_LEFT_BEHIND: Final = 64  # bodies that do not stop: each may hold one of the threads

log = structlog.get_logger("worker.child")


def run_child(
    settings: ChildSettings,
    loads: Loads,
    ear: socket.socket,
    orders: Connection,
    outlet: Connection,
) -> None:
    """Be a child until told to end; what its code writes to descriptors 1 and 2 goes to `outlet`."""
    die_with_parent()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole group: the parent decides
    install_alarm()
    configure_logging(settings.pool.log_format, settings.pool.log_level, divert(outlet))
    route_prints()
    os.chdir(settings.pool.root_dir)
    mark_this_process(WorkerId(settings.worker_id))
    volunteer_for_oom()
    uvloop.run(_live(settings, loads, ear, orders), loop_factory=BodyLoop)
    loads.bid_farewell(settings.slot)
    # Threads that do not stop must not keep the process: everything that counts is in the database.
    os._exit(0)


async def _live(
    settings: ChildSettings, loads: Loads, ear: socket.socket, orders: Connection
) -> None:
    loop = asyncio.get_running_loop()
    beating = loop.create_task(_beat(loads, settings.slot), name="beat")
    departure = _Departure(orders)
    loop.add_reader(orders.fileno(), _take_order, orders, departure)
    loop.add_signal_handler(signal.SIGTERM, departure.hurry)
    premises = Premises(settings.pool.root)
    threads = ThreadPoolExecutor(
        max_workers=MAX_THREADS, thread_name_prefix="body", initializer=premises.enter_thread
    )

    with open_workshop(settings.pool) as workshop:
        bodies = Bodies(
            threads=threads,
            workshop=workshop,
            root_dir=settings.pool.root,
            on_abandoned=departure.leave_behind,
            premises=premises,
        )
        watching = loop.create_task(_watch(premises, departure), name="watch")
        await _serve(settings, loads, ear, bodies, departure)
    watching.cancel()
    beating.cancel()


class _Departure:
    """How this child comes to its end: it claims no more, and what it has may take its time or has a limit."""

    def __init__(self, orders: Connection) -> None:
        self.has_begun = asyncio.Event()
        self.is_limited = asyncio.Event()
        self._orders = orders
        self._left_behind = 0

    def leave_behind(self, reason: str) -> None:
        """Retire for a body that does not stop; after many there may be no thread left for the others."""
        self._left_behind += 1
        if self._left_behind < MAX_LEFT_BEHIND:
            self.retire(reason)
        else:
            self.give_up(reason)

    def retire(self, reason: str) -> None:
        """Finish what is here, and have a successor from now on."""
        log.warning("child_retires", reason=reason)
        if not self.has_begun.is_set():
            self.has_begun.set()
            with suppress(OSError):  # a body has closed it, or the parent is gone
                self._orders.send(RETIRES)

    def give_up(self, reason: str) -> None:
        """The same where what is here had better go on elsewhere: it has a drain's time."""
        self.retire(reason)
        self.hurry()

    def hurry(self) -> None:
        """Let what is here end within the time that a drain has."""
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
        tools = _make_tools(settings, store, bodies)
        claimer = Claimer(
            tools,
            queues=pool.queues,
            limit=pool.runs_per_worker,
            is_solo=settings.is_solo,
            loads=loads,
            slot=settings.slot,
            on_broken=departure.give_up,
        )
        listen_to_parent(
            ear, loads, settings.slot, on_due=claimer.hear_due, on_news=claimer.hear_news
        )
        running = asyncio.create_task(claimer.run(), name="claimer")
        await _until_any(running, departure.has_begun)
        claimer.drain()
        await _until_any(running, departure.is_limited)
        await _end(claimer, running, pool.drain_timeout_s)
    if tools.tracer is not None:
        await asyncio.to_thread(tools.tracer.close, SEND_SPANS_S)


def _make_tools(settings: ChildSettings, store: WorkerStore, bodies: Bodies) -> Tools:
    meters = ChildMeters(settings.sheet.open_page(Role.CHILD))
    premises = bodies.premises
    assert premises is not None
    store.watch(meters.lanes.count)
    return Tools(
        store=store,
        workflows=Workflows(store, bodies),
        bodies=bodies,
        clock=DatabaseClock(),
        guard=lambda timeout_s: premises.around(render_guard(timeout_s)),
        meters=meters,
        tracer=open_tracer(settings.pool.otel, meters.spans_dropped.inc, has_authors=True),
    )


async def _until_any(running: asyncio.Task[None], event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _end(claimer: Claimer, running: asyncio.Task[None], timeout_s: float) -> None:
    """Let what is under way come to its end within the time there is; give back the rest."""
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(running)
    except TimeoutError:
        log.info("drain_timeout", released=claimer.active_count)
        try:
            await claimer.release_all()
        except StoreError as error:
            log.warning(
                "release_failed", error=str(error)
            )  # the parent buries this worker at its end
        await asyncio.wait([running], timeout=1)


def _take_order(orders: Connection, departure: _Departure) -> None:
    try:
        if orders.poll() and orders.recv() == DRAIN:
            departure.hurry()
    except (EOFError, OSError):
        # The parent is gone, and nobody would notice our death: what we hold is found by our pid.
        os._exit(1)


async def _watch(premises: Premises, departure: _Departure) -> None:
    """Have this child replaced when bodies have used up what it lives on: the others would fail for that."""
    while True:
        if premises.lacks_descriptors():
            departure.give_up("its bodies have left too many descriptors open")
            return
        await asyncio.sleep(WATCH_EVERY_S)


async def _beat(loads: Loads, slot: int) -> None:
    while True:
        loads.beat(slot)
        await asyncio.sleep(BEAT_EVERY_S)
