"""Counters in shared memory: every process of a server counts on a page of its own, and any of them can read all pages.

The sheet is anonymous memory, created by the process that starts the others and inherited as a descriptor: nothing remains
of it when the last of them has exited. Counts survive their process: the next new process
takes the page over and continues from there, so a counter never falls while the server lives. A gauge is valid
only while its process lives; on a page that was taken over it is NaN until the new process sets it.

Counting is an addition in memory, without a lock: a page has one writer, the loop's thread of its process. A page that is
full drops further series, and counts them.
"""

import fcntl
import math
import mmap
import os
import struct
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Self

import orjson

from smithers.processes import find_process
from smithers.telemetry.names import FAMILIES, MAX_OPEN_SERIES, OTHER, Kind, Metric, Role

PAGE_BYTES: Final = 256 * 1024  # only written pages use memory
PAGE_COUNT: Final = 256  # concurrent processes
_WORD_BYTES: Final = 8
# The words of a page's head; the last one counts on the first page, for the whole sheet.
_USED, _PID, _START, _ROLE, _LOST, _WITHOUT_PAGE = range(6)
_HEAD_WORDS: Final = 8
# The word before a series: bytes of its key, words of its values.
_SERIES: Final = struct.Struct("=ii")
_ROLES: Final = tuple(Role)
_GAUGES: Final = frozenset(metric.name for metric in FAMILIES if metric.kind is Kind.GAUGE)

Key = tuple[str, ...]  # a family's name, and the values of its labels


class Counter:
    """A value that only grows."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: "memoryview[float]", at: int) -> None:
        self._words = words
        self._at = at

    def inc(self, amount: float = 1) -> None:
        """Add."""
        self._words[self._at] += amount


class Gauge(Counter):
    """A value that goes up and down."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Replace."""
        self._words[self._at] = value

    def dec(self) -> None:
        """Take one away."""
        self._words[self._at] -= 1


class Histogram:
    """Counts by bucket: a word for each bound, one for values beyond the last, one for the sum."""

    __slots__ = ("_at", "_bounds", "_sum_at", "_words")

    def __init__(self, words: "memoryview[float]", at: int, bounds: tuple[float, ...]) -> None:
        self._words = words
        self._at = at
        self._bounds = bounds
        self._sum_at = at + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Add a value."""
        self._words[self._at + bisect_left(self._bounds, value)] += 1
        self._words[self._sum_at] += value


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The contents of one page."""

    role: Role
    pid: int
    process_start: int  # in the kernel's ticks since the boot
    lost_count: int  # series that had no room; on the first page also processes that found no page
    series: dict[Key, list[float]]


class Sheet:
    """The pages of one server."""

    def __init__(self, fd: int) -> None:
        """Use an inherited descriptor."""
        self.fd = fd
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)

    @classmethod
    def create(cls, page_count: int = PAGE_COUNT) -> Self:
        """Make empty pages; hand `fd` down to other processes."""
        fd = os.memfd_create("smithers-metrics")
        os.ftruncate(fd, page_count * PAGE_BYTES)
        return cls(fd)

    def open_page(self, role: Role) -> "MetricsPage":
        """Open the first page whose process is gone; if there is none, one that nobody reads."""
        # Against other processes; within this one nothing interleaves.
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        try:
            for page in self._pages():
                if not _is_written(page) or not _is_alive(page):
                    return MetricsPage(self, page, role)
            _head(next(self._pages()))[_WITHOUT_PAGE] += 1
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
        return MetricsPage(self, memoryview(bytearray(PAGE_BYTES)), role)

    def read(self) -> list[Reading]:
        """Read every page that was ever written to; they are allocated from the front."""
        return [_read(page) for page in takewhile(_is_written, self._pages())]

    def _pages(self) -> Iterator[memoryview]:
        memory = memoryview(self._memory)
        for start in range(0, len(memory), PAGE_BYTES):
            yield memory[start : start + PAGE_BYTES]

    def close(self) -> None:
        """Close the descriptor; open pages remain usable."""
        os.close(self.fd)


class MetricsPage:
    """A process's own page of metrics."""

    def __init__(self, sheet: Sheet, page: memoryview, role: Role) -> None:
        """Use Sheet.open_page instead."""
        self.sheet = sheet
        self._bytes = page
        self._words = page.cast("d")
        self._head = _head(page)
        self._places: dict[Key, int] = {}
        self._series_counts: Tally[str] = Tally()
        for key, at, count in _walk(self._bytes):
            self._places[key] = at
            self._series_counts[key[0]] += 1
            if key[0] in _GAUGES:  # its setter is gone
                for word in range(at, at + count):
                    self._words[word] = math.nan
        self._head[_USED] = self._head[_USED] or _HEAD_WORDS
        self._head[_ROLE] = _ROLES.index(role)
        process = find_process(os.getpid())
        self._head[_START] = 0 if process is None else process.start
        self._head[_PID] = os.getpid()

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """Return a counter; keep it: looking it up costs more than counting."""
        return Counter(*self._place(metric, labels, 1))

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        """Return a gauge; keep it: it begins at 0, or, if it is an age, as NaN until it is set."""
        words, at = self._place(metric, labels, 1)
        if math.isnan(words[at]) and not metric.is_since:
            words[at] = 0.0
        return Gauge(words, at)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Return a histogram; keep it."""
        words, at = self._place(metric, labels, len(metric.buckets) + 2)
        return Histogram(words, at, metric.buckets)

    def _place(
        self, metric: Metric, labels: tuple[str, ...], count: int
    ) -> "tuple[memoryview[float], int]":
        """Find or make room for a series."""
        key = (metric.name, *labels)
        if key not in self._places:
            if metric.is_open and self._series_counts[metric.name] >= MAX_OPEN_SERIES:
                key = (metric.name, *(OTHER for _ in labels))
            if key not in self._places and not self._append(key, count):
                return memoryview(bytearray(count * _WORD_BYTES)).cast("d"), 0
        return self._words, self._places[key]

    def _append(self, key: Key, count: int) -> bool:
        text = orjson.dumps(key)
        used = self._head[_USED]
        at = used + 1 + -(-len(text) // _WORD_BYTES)
        if at + count > len(self._words):
            self._head[_LOST] += 1
            return False
        start = used * _WORD_BYTES
        _SERIES.pack_into(self._bytes, start, len(text), count)
        start += _WORD_BYTES
        self._bytes[start : start + len(text)] = text
        if key[0] in _GAUGES:
            self._words[at] = math.nan
        self._head[_USED] = at + count  # last: a reader sees all of it, or nothing
        self._places[key] = at
        self._series_counts[key[0]] += 1
        return True


def _head(page: memoryview) -> "memoryview[int]":
    return page[: _HEAD_WORDS * _WORD_BYTES].cast("q")


def _is_written(page: memoryview) -> bool:
    return bool(_head(page)[_USED])


def _is_alive(page: memoryview) -> bool:
    head = _head(page)
    process = find_process(head[_PID])
    return process is not None and process.start == head[_START]


def _read(page: memoryview) -> Reading:
    head = _head(page)
    words: memoryview[float] = page.cast("d")
    return Reading(
        role=_ROLES[head[_ROLE]],
        pid=head[_PID],
        process_start=head[_START],
        lost_count=head[_LOST] + head[_WITHOUT_PAGE],
        series={key: list(words[at : at + count]) for key, at, count in _walk(page)},
    )


def _walk(page: memoryview) -> Iterator[tuple[Key, int, int]]:
    """Yield each series: its key, its first word, and how many words it has."""
    used = _head(page)[_USED]
    place = _HEAD_WORDS
    while place < used:
        size, count = _SERIES.unpack_from(page, place * _WORD_BYTES)
        start = (place + 1) * _WORD_BYTES
        at = place + 1 + -(-size // _WORD_BYTES)
        yield tuple(orjson.loads(page[start : start + size])), at, count
        place = at + count
