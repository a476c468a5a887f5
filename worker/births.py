"""Start a child. Apart from worker.child, so that the parent need not import what a child runs."""

import asyncio
import socket
import time
from dataclasses import dataclass, field
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess

from smithers.ids import WorkerId
from smithers.store.owners import ProcessIdentity
from worker.loads import Loads
from worker.outlets import Outlet
from worker.settings import ChildSettings


@dataclass(eq=False, slots=True)
class Child:
    """A child as its parent sees it."""

    worker_id: WorkerId
    slot: int
    process: ForkServerProcess
    orders: Connection
    outlet: Outlet
    started_at: float
    is_solo: bool  # for one run that wants a child of its own, or for suspects
    identity: ProcessIdentity | None = None  # None: it exited before it could be identified
    is_registered: bool = False  # before this it can claim nothing
    is_retired: bool = False  # it claims no more runs, and ends when its own are finished
    end_by: float = inf  # by time.monotonic(); set when it is told to drain
    killed_for: str | None = None
    has_left: asyncio.Event = field(default_factory=asyncio.Event)  # its slot is free


def start_child(
    fork_server: ForkServerContext, settings: ChildSettings, loads: Loads, ear: socket.socket
) -> Child:
    """Start a child; it takes over `ear`, the socket of its parent's hints."""
    with ear:
        orders, childs_orders = fork_server.Pipe()
        outlet, childs_outlet = fork_server.Pipe(duplex=False)
        with childs_orders, childs_outlet:
            process = fork_server.Process(
                target=be_child,
                args=(settings, loads, ear, childs_orders, childs_outlet),
                name=f"child-{settings.slot}",
            )
            process.start()
    return Child(
        worker_id=WorkerId(settings.worker_id),
        slot=settings.slot,
        process=process,
        orders=orders,
        outlet=Outlet(outlet),
        started_at=time.monotonic(),
        is_solo=settings.is_solo,
    )


def be_child(
    settings: ChildSettings,
    loads: Loads,
    ear: socket.socket,
    orders: Connection,
    outlet: Connection,
) -> None:
    """Run a child until told to end; the entry point of the process, for which the fork server has loaded everything."""
    from worker.child import run_child

    run_child(settings, loads, ear, orders, outlet)
