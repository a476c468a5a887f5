"""Count what goes over the lanes to the database: how large groups are, how long they wait and take, how often they fail."""

from typing import Final

from smithers.errors import DiskFull, ReadOnly, StoreUnavailable
from smithers.telemetry import names
from smithers.telemetry.names import CallFailure
from smithers.telemetry.sheet import Histogram, MetricsPage

POOL: Final = "pool"  # in the place of a lane: the connections that cold queries share


class LaneMeter:
    """The lanes of one process."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._lanes: dict[str, tuple[Histogram, Histogram, Histogram]] = {}
        self._pool_waits = page.histogram(names.DB_WAIT, POOL)
        self._failures = {
            reason: page.counter(names.DB_CALLS_FAILED, reason.value) for reason in CallFailure
        }

    def count(
        self,
        lane: str,
        items: int,
        waited_s: float,
        took_s: float,
        failure: StoreUnavailable | None,
    ) -> None:
        """Count a group's finished call; `failure`: why the database did not execute it."""
        histograms = self._lanes.get(lane)
        if histograms is None:
            histograms = self._lanes[lane] = (
                self._page.histogram(names.DB_GROUP_SIZE, lane),
                self._page.histogram(names.DB_WAIT, lane),
                self._page.histogram(names.DB_TRANSACTION, lane),
            )
        sizes, waits, calls = histograms
        sizes.observe(items)
        waits.observe(waited_s)
        calls.observe(took_s)
        if failure is not None:
            self._failures[_reason_of(failure)].inc()

    def count_wait(self, waited_s: float) -> None:
        """Count a cold query's wait for a connection of the pool, successful or not."""
        self._pool_waits.observe(waited_s)


def _reason_of(failure: StoreUnavailable) -> CallFailure:
    match failure:
        case DiskFull():
            return CallFailure.DISK_FULL
        case ReadOnly():
            return CallFailure.READ_ONLY
        case _:
            return CallFailure.UNAVAILABLE
