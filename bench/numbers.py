"""Percentiles and medians, over what the workloads return."""

import statistics
from collections.abc import Sequence
from typing import Any


def percentile(seconds: Sequence[float], rank: int) -> float:
    """Return a percentile of durations, in milliseconds (nearest rank)."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, len(ordered) * rank // 100)] * 1000


def median_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take the median of each number over several runs of the same workload; tables within are taken key by key."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for result in results for key in result):
        values = [result[key] for result in results if key in result]
        if all(isinstance(value, dict) for value in values):
            merged[key] = median_of(values)
        elif all(isinstance(value, int | float) for value in values):
            merged[key] = statistics.median(values)
        else:
            merged[key] = values[0]
    return merged
