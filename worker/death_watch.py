"""How a pool decides that a worker of another pool is dead, from the database and the kernel.

A process that is gone is dead at once. Silence and a lost session count only if they last: the database's clock
may be set, and then every heartbeat looks old until the next one; a session may be reconnecting. A lost session by itself
shows nothing: only the way to the direct address may be closed. So it counts while no heartbeat comes either, as with a
host that is lost; whether one comes is told by its change, not by its age: a clock that was set back makes the last one
look new for as long. And a pool that has no session itself judges nobody by theirs: behind a pooler that keeps none, nobody
has one. After an outage of the database all workers were silent and none is connected: a server's start time shows that,
but not if a standby is promoted that has been up for days. Therefore the watch's own failed checks count as an outage, too.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID

from smithers.defaults import HEARTBEAT_LIMIT_S
from smithers.ids import WorkerId
from smithers.store.owners import LivingWorker
from worker import processes
from worker.deaths import DeathSign

SILENT_LOOKS: Final = 4  # consecutive checks, one a second, as often as heartbeats
DISCONNECTED_S: Final = 2.0  # without a session and a heartbeat, of which one comes each second
SERVER_GRACE_S: Final = 10.0  # after a restart of Postgres nobody counts as disconnected
LATE_S: Final = 5.0  # since the last check: there was an outage, of the database or of this pool
OUTAGE_GRACE_S: Final = 10.0  # from the first check after an outage, for the others to reconnect


class DeathWatch:
    """One pool's view of other pools' workers, from check to check."""

    def __init__(
        self,
        pool_id: UUID,
        has_session: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`has_session`: whether this pool holds its own liveness lock now."""
        self._pool_id = pool_id
        self._has_session = has_session
        self._monotonic = monotonic
        self._silent_looks: dict[WorkerId, int] = {}
        # Without a session: the last heartbeat, and since when neither has come.
        self._disconnected_since: dict[WorkerId, tuple[datetime, float]] = {}
        self._looked_at = monotonic()
        self._believes_at = float("-inf")  # from then on silence and lost sessions count

    def miss(self) -> None:
        """Record that the database could not be queried."""
        self._looked_at = float("-inf")

    def look(self, living: list[LivingWorker]) -> list[tuple[LivingWorker, str]]:
        """Evaluate the database's answer; return the dead workers, and how each died, or how that was noticed."""
        now = self._monotonic()
        if now - self._looked_at > LATE_S:
            self._believes_at = now + OUTAGE_GRACE_S
        self._looked_at = now
        believed = living if now >= self._believes_at else []
        silent = [worker.worker_id for worker in believed if worker.silent_s > HEARTBEAT_LIMIT_S]
        self._silent_looks = {each: self._silent_looks.get(each, 0) + 1 for each in silent}
        self._disconnected_since = {
            worker.worker_id: (worker.heartbeat_at, self._since(worker, now))
            for worker in believed
            if self._has_session() and self._is_disconnected(worker)
        }
        # A death that is known was found by others, who could not hand back all of its runs.
        found = [(worker, worker.death or self._find_sign(worker, now)) for worker in living]
        return [(worker, death) for worker, death in found if death is not None]

    def _is_disconnected(self, worker: LivingWorker) -> bool:
        is_others = worker.pool_id != self._pool_id
        return is_others and not worker.is_connected and worker.server_up_s >= SERVER_GRACE_S

    def _since(self, worker: LivingWorker, now: float) -> float:
        """Return since when a disconnected worker has had neither a session nor a new heartbeat."""
        heartbeat_at, since = self._disconnected_since.get(worker.worker_id, (None, now))
        return since if heartbeat_at == worker.heartbeat_at else now

    def _find_sign(self, worker: LivingWorker, now: float) -> DeathSign | None:
        """Return how a worker's death is noticed here; None: it may be alive."""
        process = worker.process
        is_here = processes.is_here(process)
        if is_here and processes.identify(process.pid) != process:
            return DeathSign.PROCESS_GONE
        if self._silent_looks.get(worker.worker_id, 0) >= SILENT_LOOKS:
            return DeathSign.SILENT
        _, since = self._disconnected_since.get(worker.worker_id, (None, now))
        return DeathSign.DISCONNECTED if now - since > DISCONNECTED_S else None
