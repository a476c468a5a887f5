"""Read what the rows say in the end, as the checker wants it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import asyncpg

from chaos.checker import Event, Runs, StoredRun

READ_RUNS = """
    SELECT r.run_id, r.status, r.era, q.run_id IS NOT NULL AS has_request
    FROM smithers.runs AS r LEFT JOIN smithers.run_requests AS q USING (run_id)
"""
READ_EVENTS = "SELECT run_id, seq, epoch, payload FROM smithers.events ORDER BY run_id, seq"
READ_APPROVALS = "SELECT run_id, node_id, iteration, status, decided_by FROM smithers.approvals"
READ_SIGNALS = """
    SELECT run_id, seq, signal_id, data, consumed_by, consumed_iteration FROM smithers.signals ORDER BY run_id, seq
"""
READ_OUTPUTS = """
    SELECT run_id, node_id, iteration, output FROM smithers.nodes WHERE state = 'finished' AND output IS NOT NULL
"""


async def read_runs(connection: asyncpg.Connection) -> Runs:
    """Read all runs of a database, whole."""
    runs = {
        row["run_id"]: StoredRun(row["status"], row["era"], row["has_request"])
        for row in await connection.fetch(READ_RUNS)
    }
    for row in await connection.fetch(READ_EVENTS):
        payload: str = row["payload"]
        sha = hashlib.sha256(payload.encode()).hexdigest()[:16]
        event = Event(row["seq"], row["epoch"], sha, json.loads(payload))
        runs[row["run_id"]].events.append(event)
    for row in await connection.fetch(READ_APPROVALS):
        node = (row["node_id"], row["iteration"])
        runs[row["run_id"]].approvals[node] = dict(row)
    for row in await connection.fetch(READ_SIGNALS):
        signal = dict(row) | {"data": json.loads(row["data"])}
        runs[row["run_id"]].signals.append(signal)
    for row in await connection.fetch(READ_OUTPUTS):
        node = (row["node_id"], row["iteration"])
        runs[row["run_id"]].outputs[node] = json.loads(row["output"])
    return runs


def write_runs(runs: Runs, path: Path) -> None:
    """Keep them beside the history, for whoever looks into a verdict."""

    def plain(run: StoredRun) -> dict[str, Any]:
        events = [[event.seq, event.epoch, event.body] for event in run.events]
        approvals = list(run.approvals.values())
        return {
            "status": run.status,
            "events": events,
            "approvals": approvals,
            "signals": run.signals,
        }

    with path.open("w", encoding="utf-8") as file:
        for run_id, run in sorted(runs.items()):
            file.write(json.dumps({"run": run_id, **plain(run)}) + "\n")
