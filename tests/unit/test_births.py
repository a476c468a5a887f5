"""What becomes of a child whose birth is interrupted; its process is a pipe here."""

import asyncio
import os
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from smithers.ids import WorkerId
from smithers.store.claims import ClaimKind
from smithers.store.owners import ProcessIdentity
from smithers.store.pool_store import Burial
from worker import children as children_module
from worker import processes
from worker.children import Children
from worker.fork_server import LOST
from worker.forked import Child
from worker.settings import PoolSettings


class Registry:
    """In a store's place: never answers a registration."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.buried: list[WorkerId] = []

    async def register(self, *_given: Any, **_named: Any) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    async def bury(self, worker_id: WorkerId, _death: str) -> Burial:
        self.buried.append(worker_id)
        return Burial(is_all=True)


class Nursery:
    """A pool's children, born without a process."""

    def __init__(self) -> None:
        self.registry = Registry()
        store: Any = self.registry
        self.writer = -1
        self.born: list[Child] = []
        nothing: Any = None
        meters: Any = SimpleNamespace(count_end=lambda *_given: None)
        sheet: Any = SimpleNamespace(fd=-1)
        self.children = Children(
            PoolSettings(dsn="", direct_dsn="", root_dir="/", worker_count=1),
            store=store,
            fork_server=nothing,
            sheet=sheet,
            meters=meters,
            on_left=lambda: None,
        )

    def start_child(self, _fork_server: Any, settings: Any, _fd: int, ear: Any) -> Child:
        ear.close()
        sentinel, self.writer = os.pipe()
        process: Any = SimpleNamespace(
            pid=os.getpid(), sentinel=sentinel, wait=lambda: LOST, close=lambda: os.close(sentinel)
        )
        orders, _ = Pipe()
        outlet: Any = SimpleNamespace(close=lambda: None)
        child = Child(
            worker_id=WorkerId(settings.worker_id),
            slot=settings.slot,
            process=process,
            orders=orders,
            outlet=outlet,
            started_at=0.0,
            kind=settings.kind,
        )
        self.born.append(child)
        return child


@pytest.fixture
async def nursery(monkeypatch: pytest.MonkeyPatch) -> Nursery:
    nursery = Nursery()

    async def leave_alone(_one: WorkerId | ProcessIdentity) -> None:
        pass

    monkeypatch.setattr(children_module, "start_child", nursery.start_child)
    monkeypatch.setattr(processes, "end", leave_alone)
    monkeypatch.setattr(children_module, "sweep", leave_alone)
    return nursery


async def test_a_child_whose_registration_a_drain_interrupts_is_buried(nursery: Nursery) -> None:
    starting = asyncio.create_task(nursery.children.start(ClaimKind.MANY))
    await nursery.registry.asked.wait()
    starting.cancel()
    await asyncio.wait([starting])
    (child,) = nursery.born
    os.close(nursery.writer)  # it ends
    await nursery.children.until_gone()
    assert nursery.registry.buried == [child.worker_id]
