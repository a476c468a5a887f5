"""How a pool knows that a worker of another pool is dead, by what the database and the kernel say of it.

A process that is gone is dead at once. Silence and a lost session are believed only when they last: the database's clock
may be set, and then every heartbeat looks old until the next one; a session may be on its way back. After an outage of the
database everybody was silent and nobody is connected: a server's own start tells of it, but not that of a standby which
has been up for days and is promoted. So what the watch itself could not see counts, too.
"""

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from smithers.defaults import HEARTBEAT_LIMIT_S
from smithers.ids import WorkerId
from smithers.store.owners import LivingWorker
from worker import processes

SILENT_LOOKS: Final = 4  # in a row, of one a second; workers beat as often
DISCONNECTED_S: Final = 2.0
SERVER_GRACE_S: Final = 10.0  # after a restart of Postgres nobody counts as disconnected
LATE_S: Final = 5.0  # after the last look: there was an outage, of the database or of this pool
OUTAGE_GRACE_S: Final = 10.0  # from the first look after an outage, for the others to come back


class DeathWatch:
    """One pool's view of the workers of others, from look to look."""

    def __init__(self, pool_id: UUID, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pool_id = pool_id
        self._monotonic = monotonic
        self._silent_looks: dict[WorkerId, int] = {}
        self._disconnected_since: dict[WorkerId, float] = {}
        self._looked_at = monotonic()
        self._believes_at = float("-inf")  # from then on silence and lost sessions count

    def miss(self) -> None:
        """Take in that the database could not be asked."""
        self._looked_at = float("-inf")

    def look(self, living: list[LivingWorker]) -> list[tuple[LivingWorker, str]]:
        """Take in what the database says now; return who is dead, and how that is known."""
        now = self._monotonic()
        if now - self._looked_at > LATE_S:
            self._believes_at = now + OUTAGE_GRACE_S
        self._looked_at = now
        believed = living if now >= self._believes_at else []
        silent = [worker.worker_id for worker in believed if worker.silent_s > HEARTBEAT_LIMIT_S]
        self._silent_looks = {each: self._silent_looks.get(each, 0) + 1 for each in silent}
        self._disconnected_since = {
            worker.worker_id: self._disconnected_since.get(worker.worker_id, now)
            for worker in believed
            if self._is_disconnected(worker)
        }
        found = [(worker, self._find_death(worker, now)) for worker in living]
        return [(worker, death) for worker, death in found if death is not None]

    def _is_disconnected(self, worker: LivingWorker) -> bool:
        is_others = worker.pool_id != self._pool_id
        return is_others and not worker.is_connected and worker.server_up_s >= SERVER_GRACE_S

    def _find_death(self, worker: LivingWorker, now: float) -> str | None:
        """Say how it is known that a worker is dead; None: it may live."""
        if worker.death is not None:  # found by others, and not all of its runs were handed back
            return worker.death
        process = worker.process
        is_here = processes.is_here(process)
        if is_here and processes.identify(process.pid) != process:
            return "process-gone"
        if self._silent_looks.get(worker.worker_id, 0) >= SILENT_LOOKS:
            return "silent"
        since = self._disconnected_since.get(worker.worker_id, now)
        return "disconnected" if now - since > DISCONNECTED_S else None
