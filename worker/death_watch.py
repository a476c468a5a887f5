"""How a pool knows that a worker of another pool is dead, by what the database and the kernel say of it.

A process that is gone is dead at once. Silence and a lost session are believed only when they last: the database's clock
may be set, and then every heartbeat looks old until the next one; a session may be on its way back.
"""

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from smithers.ids import WorkerId
from smithers.store.owners import HEARTBEAT_LIMIT_S, LivingWorker
from worker import processes

SILENT_LOOKS: Final = 4  # in a row, of one a second; workers beat as often
DISCONNECTED_S: Final = 2.0
SERVER_GRACE_S: Final = 10.0  # after a restart of Postgres nobody counts as disconnected


class DeathWatch:
    """One pool's view of the workers of others, from look to look."""

    def __init__(self, pool_id: UUID, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pool_id = pool_id
        self._monotonic = monotonic
        self._silent_looks: dict[WorkerId, int] = {}
        self._disconnected_since: dict[WorkerId, float] = {}

    def look(self, living: list[LivingWorker]) -> list[tuple[LivingWorker, str]]:
        """Take in what the database says now; return who is dead, and how that is known."""
        silent = [worker.worker_id for worker in living if worker.silent_s > HEARTBEAT_LIMIT_S]
        self._silent_looks = {each: self._silent_looks.get(each, 0) + 1 for each in silent}
        now = self._monotonic()
        self._disconnected_since = {
            worker.worker_id: self._disconnected_since.get(worker.worker_id, now)
            for worker in living
            if self._is_disconnected(worker)
        }
        found = [(worker, self._find_death(worker, now)) for worker in living]
        return [(worker, death) for worker, death in found if death is not None]

    def _is_disconnected(self, worker: LivingWorker) -> bool:
        is_others = worker.pool_id != self._pool_id
        return is_others and not worker.is_connected and worker.server_up_s >= SERVER_GRACE_S

    def _find_death(self, worker: LivingWorker, now: float) -> str | None:
        """Say how it is known that a worker is dead; None: it may live."""
        process = worker.process
        is_here = processes.is_here(process)
        if is_here and processes.find_process_start(process.pid) != process.process_start:
            return "process-gone"
        if self._silent_looks.get(worker.worker_id, 0) >= SILENT_LOOKS:
            return "silent"
        since = self._disconnected_since.get(worker.worker_id, now)
        return "disconnected" if now - since > DISCONNECTED_S else None
