"""One exposition for all processes of a server, in Prometheus' text format, or OpenMetrics if requested.

Counters and histograms are summed over all pages, including those of dead processes. Gauges are taken from living processes
that have set them.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family

from smithers.processes import age_s, find_process
from smithers.telemetry import names
from smithers.telemetry.names import FAMILIES, OF_EVENTS, Kind, Merge, Metric
from smithers.telemetry.sheet import Key, Reading, Sheet

_BY_NAME: Final = {metric.name: metric for metric in FAMILIES}
_EVENT_OF: Final = {metric.name: event for event, metric in OF_EVENTS.items()}
_VERSION: Final = version("smithers-gateway")

Totals = dict[Key, list[float]]


def expose(sheet: Sheet, accept: str, more: Mapping[Key, float] | None = None) -> tuple[bytes, str]:
    """Encode all metrics of a server; return the text and its content type, which the client may choose.

    `more`: gauges that were read elsewhere, by family and label values.
    """
    encode, content_type = choose_encoder(accept)
    totals = merge(sheet.read())
    totals.update((key, [value]) for key, value in (more or {}).items())
    return encode(_Collected(totals)), content_type


def merge(readings: Iterable[Reading]) -> Totals:
    """Merge all pages, and add the kernel's data of their processes."""
    totals: Totals = {(names.BUILD_INFO.name, _VERSION): [1.0], (names.SERIES_LOST.name,): [0.0]}
    for reading in readings:
        process = find_process(reading.pid)
        is_alive = process is not None and process.start == reading.process_start
        for key, values in reading.series.items():
            metric = _BY_NAME[key[0]]
            if metric.kind is Kind.GAUGE and (not is_alive or math.isnan(values[0])):
                continue
            _add(totals, key, _since(values) if metric.is_since else values)
        _add(totals, (names.SERIES_LOST.name,), [float(reading.lost_count)])
        if is_alive and process is not None:
            _add(totals, (names.PROCESSES.name, reading.role), [1.0])
            _add(totals, (names.PROCESS_UPTIME.name, reading.role), [age_s(process.start)])
            memory = float(process.resident_bytes)
            _add(totals, (names.PROCESS_MEMORY.name, reading.role), [memory])
    return totals


def _since(values: Sequence[float]) -> list[float]:
    """Turn timestamps into ages; without a timestamp the age is 0."""
    now = time.monotonic()
    return [now - value if value else 0.0 for value in values]


def _add(totals: Totals, key: Key, values: Sequence[float]) -> None:
    before = totals.get(key)
    if before is None:
        totals[key] = list(values)
        return
    match _BY_NAME[key[0]].merge:
        case Merge.MIN:
            totals[key] = [min(before[0], values[0])]
        case Merge.MAX:
            totals[key] = [max(before[0], values[0])]
        case Merge.SUM:
            totals[key] = [one + other for one, other in zip(before, values, strict=True)]


class _Collected:
    """The interface of a registry for the library's encoders."""

    def __init__(self, totals: Totals) -> None:
        self._series: dict[str, list[tuple[Key, list[float]]]] = {}
        for key in sorted(totals):
            self._series.setdefault(key[0], []).append((key[1:], totals[key]))

    def collect(self) -> Iterator[Family]:
        for metric in FAMILIES:
            family = Family(metric.name.removesuffix("_total"), metric.help, metric.kind)
            for labels, values in self._find(metric):
                _add_samples(family, metric, dict(zip(metric.labels, labels, strict=True)), values)
            yield family

    def _find(self, metric: Metric) -> list[tuple[Key, list[float]]]:
        event = _EVENT_OF.get(metric.name)
        if event is not None:
            counted = dict(self._series.get(names.EVENTS.name, ()))
            return [((), counted.get((event.value,), [0.0]))]
        found = self._series.get(metric.name, [])
        if not found and not metric.labels and metric.kind is Kind.COUNTER:
            return [((), [0.0])]  # a counter that was never incremented is 0
        return found


def _add_samples(
    family: Family, metric: Metric, labels: dict[str, str], values: Sequence[float]
) -> None:
    if metric.kind is not Kind.HISTOGRAM:
        family.add_sample(metric.name, labels, values[0])
        return
    *counts, total = values
    bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
    grown = list(accumulate(counts))
    for bound, count in zip(bounds, grown, strict=True):
        family.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{metric.name}_count", labels, grown[-1])
    family.add_sample(f"{metric.name}_sum", labels, total)
