"""A child as its parent sees it, and its start as a fork of the fork server."""

import asyncio
import socket
import time
from dataclasses import dataclass, field, replace
from math import inf
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from smithers.ids import WorkerId
from smithers.store.claims import ClaimKind
from smithers.store.owners import ProcessIdentity
from worker.child import run_child
from worker.deaths import ChildEnd
from worker.fork_server import Fork, ForkServer
from worker.loads import Loads
from worker.outlets import Outlet
from worker.settings import ChildSettings


@dataclass(eq=False, slots=True)
class Child:
    """A child as its parent sees it."""

    worker_id: WorkerId
    slot: int
    process: Fork
    orders: Connection
    outlet: Outlet
    started_at: float
    kind: ClaimKind  # what it is for: MANY, ISOLATED or SUSPECT
    identity: ProcessIdentity | None = None  # None: it exited before it could be identified
    is_registered: bool = False  # before this it can claim nothing
    must_be_buried: bool = False  # it is registered, or may be
    is_retired: bool = False  # it claims no more runs, and ends when its own are finished
    end_by: float = inf  # by time.monotonic(); set when it is told to drain
    killed_for: ChildEnd | None = None
    has_left: asyncio.Event = field(default_factory=asyncio.Event)  # its slot is free


def start_child(
    fork_server: ForkServer, settings: ChildSettings, loads_fd: int, ear: socket.socket
) -> Child:
    """Start a child; it takes over `ear`, the socket of its parent's hints."""
    with ear:
        orders, childs_orders = Pipe()
        outlet, childs_outlet = Pipe(duplex=False)
        with childs_orders, childs_outlet:
            handed = [settings.sheet_fd, loads_fd]
            handed += [one.fileno() for one in (ear, childs_orders, childs_outlet)]
            process = fork_server.fork(_be_child, settings, handed=handed)
    return Child(
        worker_id=WorkerId(settings.worker_id),
        slot=settings.slot,
        process=process,
        orders=orders,
        outlet=Outlet(outlet),
        started_at=time.monotonic(),
        kind=settings.kind,
    )


def _be_child(
    settings: ChildSettings, sheet_fd: int, loads_fd: int, ear: int, orders: int, outlet: int
) -> None:
    """Run a child until told to end, in a fork."""
    run_child(
        replace(settings, sheet_fd=sheet_fd),
        Loads.within(loads_fd),
        socket.socket(fileno=ear),
        Connection(orders),
        Connection(outlet, readable=False),
    )
