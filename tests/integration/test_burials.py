"""A worker that another pool on its host found dead: its end, and whom it is blamed on."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast
from uuid import uuid4

import pytest

from smithers.ids import WorkerId
from smithers.store import owners
from smithers.store.pool_store import Burial, PoolStore
from tests.support.turns import Ground, as_pool
from worker import processes
from worker.burials import bury_found


@dataclass
class Burying:
    """A pool's calls; when the process has ended, its parent is always first with a burial of its own."""

    ground: Ground
    process: owners.ProcessIdentity
    alive: list[bool] = field(default_factory=list)  # at each call, whether the process was

    async def condemn(self, worker_id: WorkerId, death: str) -> None:
        self._look()
        await owners.condemn_worker(as_pool(self.ground.sql), worker_id, death)

    async def bury(self, worker_id: WorkerId, death: str) -> Burial:
        self._look()
        await owners.bury_worker(as_pool(self.ground.sql), worker_id, "exit--9")  # its parent
        return Burial(
            is_all=(await owners.bury_worker(as_pool(self.ground.sql), worker_id, death)).is_all
        )

    def as_store(self) -> PoolStore:
        return cast("PoolStore", self)

    def _look(self) -> None:
        self.alive.append(processes.identify(self.process.pid) == self.process)


@contextmanager
def sleeping() -> Iterator[owners.ProcessIdentity]:
    """Run a process that ends when it is killed."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            identity = processes.identify(process.pid)
            assert identity is not None
            yield identity
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("found", "crashes"), [("silent", 0), ("disconnected", 0), ("process-gone", 1)]
)
async def test_a_worker_that_another_pool_kills_leaves_no_run_under_suspicion(
    database: str, found: str, crashes: int
) -> None:
    async with Ground(database) as ground:
        with sleeping() as process:
            worker = WorkerId(uuid4())
            await owners.register_worker(
                as_pool(ground.sql), worker, pool_id=uuid4(), process=process, queues=("default",)
            )
            await ground.owned(worker, "r")
            (living,) = await owners.list_living(ground.sql)
            burying = Burying(ground, process)
            await bury_found(burying.as_store(), living, found)
        assert burying.alive == ([True, False] if crashes == 0 else [False])
        row = await ground.run("r")
        assert (row["owner_id"], row["crash_count"]) == (None, crashes)


async def test_a_worker_of_another_host_is_not_looked_for_here(database: str) -> None:
    async with Ground(database) as ground:
        with sleeping() as process:
            there = replace(process, boot_id="another")
            await owners.register_worker(
                as_pool(ground.sql),
                WorkerId(uuid4()),
                pool_id=uuid4(),
                process=there,
                queues=("default",),
            )
            (living,) = await owners.list_living(ground.sql)
            burying = Burying(ground, process)
            assert (await bury_found(burying.as_store(), living, "silent")).is_all
            assert burying.alive == [True]
