"""Log the consequences of a worker's death: which runs resume elsewhere, and which failed."""

from typing import Final

import structlog

from smithers.ids import WorkerId
from smithers.store.pool_store import Burial

LOG: Final = structlog.get_logger(__name__)


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
