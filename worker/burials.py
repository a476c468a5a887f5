"""Bury a worker of another pool, and log the consequences of a death: which runs resume elsewhere, and which failed."""

from typing import Final

import structlog

from smithers.ids import WorkerId
from smithers.store.owners import LivingWorker
from smithers.store.pool_store import Burial, PoolStore
from worker import processes
from worker.deaths import DeathSign
from worker.descendants import sweep

LOG: Final = structlog.get_logger(__name__)


async def bury_found(store: PoolStore, worker: LivingWorker, death: str) -> Burial:
    """Kill what is left on this host of a worker that was found dead, and then hand its runs back; raises StoreError."""
    if processes.is_here(worker.process):
        if death != DeathSign.PROCESS_GONE:
            # Its parent may live, and only have no way to the database: it would take this for a crash, and suspect the runs.
            await store.condemn(worker.worker_id, death)
        # Before others resume its runs in flight.
        await processes.end(worker.process)
        await sweep(worker.worker_id)
    return await store.bury(worker.worker_id, death)


def log_burial(worker_id: WorkerId, death: str, burial: Burial) -> None:
    """Log a finished burial; `run_ids` are a few of the runs that were handed back."""
    LOG.warning(
        "worker_buried",
        worker_id=str(worker_id),
        death=death,
        runs_handed_back=burial.handed_back,
        run_ids=[run_id for run_id in burial.held if run_id not in burial.failed],
    )
    for run_id in burial.failed:
        LOG.error("run_failed", run_id=run_id, code="WORKER_CRASHED")
