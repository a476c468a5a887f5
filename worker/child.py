"""A child: one process, one event loop, many runs. It owns the runs that it claims, under an id made at its start.

It ends when its parent says so, when the pipe to its parent closes, or when it can no longer be trusted (a body that does
not stop). It beats into shared memory from its event loop: a loop that is blocked is silent, and the parent kills it.
"""

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final
from uuid import UUID

import structlog
import uvloop

from smithers.errors import StoreError
from smithers.ids import WorkerId
from smithers.store.hints import Channel
from smithers.store.worker_store import open_worker_store
from smithers.telemetry.logs import configure_logging
from worker.attempts import Bodies
from worker.claimer import Claimer
from worker.clock import DatabaseClock
from worker.executor import Tools
from worker.prints import route_prints
from worker.processes import die_with_parent
from worker.rendering import install_alarm
from worker.settings import PoolSettings
from worker.workflows import Workflows

BEAT_EVERY_S: Final = 0.25
MAX_THREADS: Final = 512
DRAIN: Final = "drain"  # what the parent says through the pipe

log = structlog.get_logger("worker.child")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What a child is told through the pipe."""

    worker_id: UUID
    slot: int  # where in the shared array it beats
    is_solo: bool  # for one run that wants a child of its own
    pool: PoolSettings


def run_child(settings: ChildSettings, beats: Any, orders: Connection) -> None:
    """Be a child until told to end; the entry point of the process."""
    die_with_parent()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole group: the parent decides
    install_alarm()
    configure_logging(settings.pool.log_format, settings.pool.log_level)
    route_prints()
    os.chdir(settings.pool.root_dir)
    uvloop.run(_live(settings, beats, orders))
    # Threads that do not stop must not keep the process: everything that counts is in the database.
    os._exit(0)


async def _live(settings: ChildSettings, beats: Any, orders: Connection) -> None:
    loop = asyncio.get_running_loop()
    beating = loop.create_task(_beat(beats, settings.slot), name="beat")
    draining = asyncio.Event()
    loop.add_reader(orders.fileno(), _take_order, orders, draining)
    loop.add_signal_handler(signal.SIGTERM, draining.set)
    threads = ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="body")

    def retire(reason: str) -> None:
        log.warning("child_retires", reason=reason)
        draining.set()

    bodies = Bodies(threads=threads, root_dir=settings.pool.root, on_abandoned=retire)
    await _serve(settings, bodies, draining)
    beating.cancel()


async def _serve(settings: ChildSettings, bodies: Bodies, draining: asyncio.Event) -> None:
    pool = settings.pool
    claimers: list[Claimer] = []  # hints may come before the claimer is there

    def hear_due(names: frozenset[str] | None) -> None:
        for claimer in claimers:
            claimer.hear_due(names)

    def hear_news(names: frozenset[str] | None) -> None:
        for claimer in claimers:
            claimer.hear_news(names)

    listeners = {Channel.DUE: hear_due, Channel.NEWS: hear_news}
    worker_id = WorkerId(settings.worker_id)
    async with open_worker_store(pool.dsn, pool.direct_dsn, worker_id, listeners) as store:
        tools = Tools(store=store, workflows=Workflows(store), bodies=bodies, clock=DatabaseClock())
        claimer = Claimer(
            tools,
            queues=pool.queues,
            limit=pool.runs_per_worker,
            is_solo=settings.is_solo,
        )
        claimers.append(claimer)
        running = asyncio.create_task(claimer.run(), name="claimer")
        stopping = asyncio.create_task(draining.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        claimer.drain()
        await _end(claimer, running, pool.drain_timeout_s)


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


def _take_order(orders: Connection, draining: asyncio.Event) -> None:
    try:
        if orders.poll() and orders.recv() == DRAIN:
            draining.set()
    except (EOFError, OSError):
        # The parent is gone, and nobody would notice our death: what we hold is found by our pid.
        os._exit(1)


async def _beat(beats: Any, slot: int) -> None:
    while True:
        beats[slot] = time.monotonic()
        await asyncio.sleep(BEAT_EVERY_S)
