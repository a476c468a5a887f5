"""Count what goes over the lanes to the database: how large the groups are, how long they wait, how long their calls take."""

from smithers.telemetry import names
from smithers.telemetry.sheet import Histogram, Page


class LaneMeter:
    """The lanes of one process."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._lanes: dict[str, tuple[Histogram, Histogram, Histogram]] = {}

    def count(self, lane: str, items: int, waited_s: float, took_s: float) -> None:
        """Take in that a group's one call has come to its end."""
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
