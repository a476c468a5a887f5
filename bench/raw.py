"""What Postgres itself does on this machine, in the same minute: the limit beside which a figure is to be read."""

import time
from typing import Any

import asyncpg

from bench.numbers import percentile

COMMITS_PER_RUN = 5  # start; first turn; one for each node's end, the last with the run's end


async def measure(dsn: str, *, commit_count: int, group_size: int) -> dict[str, Any]:
    """Measure bare commits on one connection: of one row, and of a group of rows."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS bench_raw (id bigserial PRIMARY KEY, payload text NOT NULL)"
        )
        single = await _commits(connection, commit_count, 1)
        grouped = await _commits(connection, commit_count, group_size)
    finally:
        await connection.close()
    group_s = sum(grouped) / len(grouped)
    return {
        "commit_p50_ms": percentile(single, 50),
        "commit_p99_ms": percentile(single, 99),
        "commit_mean_ms": sum(single) / len(single) * 1000,
        "group_mean_ms": group_s * 1000,
        "grouped_runs_per_s": group_size / (group_s * COMMITS_PER_RUN),
    }


async def _commits(connection: asyncpg.Connection, count: int, rows: int) -> list[float]:
    insert = await connection.prepare("INSERT INTO bench_raw (payload) SELECT unnest($1::text[])")
    payloads = ["x" * 200] * rows
    took_s = []
    for _ in range(count):
        began = time.perf_counter()
        await insert.fetch(payloads)
        took_s.append(time.perf_counter() - began)
    return took_s
