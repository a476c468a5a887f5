"""A database as it is after a while: 50,000 runs in all states, 500,000 events; and what a query reads of it."""

import json
from collections.abc import Iterator
from typing import Any

import asyncpg

BIG = (
    "runs",
    "run_requests",
    "events",
    "nodes",
    "approvals",
    "attempts",
    "signals",
    "frames",
    "loops",
)
WORKERS = "SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid"

# Of each 1,000 runs: 100 queued, 4 of them alone and one a suspect, 10 owned, 400 parked until a timer of the future, 40
# of them alone and 100 in a queue where nothing else is, 200 before an approval, 270 finished, 20 failed.
FILL = f"""
INSERT INTO smithers.workers (worker_id, pool_id, boot_id, pid_namespace, pid, process_start, queues, started_at,
    heartbeat_at, dead_at)
SELECT ({WORKERS}), gen_random_uuid(), 'b', 'n', n, 's', '{{default}}', now(), now(), CASE WHEN n > 10 THEN now() END
FROM generate_series(1, 1000) AS n;

INSERT INTO smithers.runs (run_id, status, queue, priority, due_at, owner_id, epoch, commit_no, last_seq, created_at,
    finished_at, is_solo, crash_count)
SELECT 'r' || lpad(n::text, 6, '0'),
    CASE WHEN k < 100 THEN 'queued' WHEN k < 110 THEN 'running' WHEN k < 510 THEN 'waiting-timer'
        WHEN k < 710 THEN 'waiting-approval' WHEN k < 980 THEN 'finished' ELSE 'failed' END,
    CASE WHEN k BETWEEN 400 AND 499 THEN 'asleep' ELSE 'default' END,
    CASE WHEN k % 10 = 0 THEN 5 ELSE 0 END,
    CASE WHEN k < 100 THEN now() - n * interval '1 ms' WHEN k BETWEEN 110 AND 509 THEN now() + interval '30 days' END,
    CASE WHEN k BETWEEN 100 AND 109 THEN ({WORKERS.replace("n::text", "(1 + n % 10)::text")}) END,
    1, 3, 9, now() - (50000 - n) * interval '1 s', CASE WHEN k >= 710 THEN now() END,
    k < 4 OR k BETWEEN 110 AND 149, CASE WHEN k = 5 THEN 1 ELSE 0 END
FROM (SELECT n, n * 7919 % 1000 AS k FROM generate_series(0, 49999) AS n) AS numbers;

INSERT INTO smithers.run_requests (run_id, workflow_name, workflow_path, source_hash, input, config, created_at)
SELECT run_id, CASE WHEN row_number() OVER () % 500 = 0 THEN 'rare' ELSE 'common' END, 'x.py', 'h', '{{}}', '{{}}',
    created_at
FROM smithers.runs;

INSERT INTO smithers.events (run_id, seq, epoch, payload)
SELECT run_id, n, 1, '{{"type":"NodeOutput","text":"' || repeat('x', 60) || '"}}'
FROM smithers.runs, generate_series(0, 9) AS n;

INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, attempt, created_at, output)
SELECT run_id, 'n' || n, 0, 'task', CASE WHEN n = 0 AND owner_id IS NOT NULL THEN 'in-progress' ELSE 'finished' END, 1,
    created_at, '1'
FROM smithers.runs, generate_series(0, 1) AS n WHERE status <> 'queued';
INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, created_at)
SELECT run_id, 'w', 0, 'wait', status, created_at FROM smithers.runs WHERE status LIKE 'waiting%';

INSERT INTO smithers.approvals (run_id, node_id, iteration, status, request, requested_at)
SELECT run_id, 'w', 0, 'requested', '{{}}', created_at FROM smithers.runs WHERE status = 'waiting-approval';
INSERT INTO smithers.approvals (run_id, node_id, iteration, status, request, requested_at, decided_at)
SELECT run_id, 'd', 0, 'approved', '{{}}', created_at, now() FROM smithers.runs WHERE status = 'finished';

INSERT INTO smithers.attempts (run_id, node_id, iteration, attempt, state, finished_at)
SELECT run_id, node_id, 0, 1, 'finished', now() FROM smithers.nodes WHERE state = 'finished';
INSERT INTO smithers.frames (run_id, frame_no, created_at, xml_hash, encoding, body)
SELECT run_id, 1, created_at, 'h', 'keyframe', '{{}}' FROM smithers.runs WHERE status <> 'queued';
INSERT INTO smithers.signals (run_id, seq, signal_name, data, received_at)
SELECT run_id, 0, 's', '1', created_at FROM smithers.runs WHERE status = 'waiting-timer';

INSERT INTO smithers.workflow_sources (source_hash, bundle)
SELECT 'h' || n, repeat('x', 1000) FROM generate_series(1, 2000) AS n;
INSERT INTO smithers.workflow_descriptions (source_hash, workflow_export, description)
SELECT 'h' || n, '', CASE WHEN n > 5 THEN '{{}}' END FROM generate_series(1, 2000) AS n;
"""


async def fill(connection: asyncpg.Connection) -> None:
    """Write the crowd; nothing is analyzed until somebody says so."""
    for table in BIG:
        await connection.execute(f"ALTER TABLE smithers.{table} SET (autovacuum_enabled = false)")
    await connection.execute(FILL)


class Plan:
    """What a query did, node by node."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.nodes = list(_walk(plan))

    @property
    def scanned(self) -> set[str]:
        """The tables that it read from end to end."""
        return {
            node["Relation Name"] for node in self.nodes if node["Node Type"] == "Seq Scan"
        }.intersection(BIG)

    @property
    def row_count(self) -> int:
        """How many rows of the big tables, and entries of their indexes, it looked at."""
        return round(sum(_rows(node) for node in self.nodes if "Scan" in node["Node Type"]))

    @property
    def block_count(self) -> int:
        """How many pages it looked at: also what an index scan passed over shows here."""
        return self.nodes[0]["Shared Hit Blocks"] + self.nodes[0]["Shared Read Blocks"]

    def __str__(self) -> str:
        lines = [f"{self.row_count} rows, {self.block_count} blocks"]
        lines += [
            f"{node['Node Type']} {node.get('Index Name', node.get('Relation Name', ''))}: {_rows(node):.0f}"
            for node in self.nodes
        ]
        return "\n".join(lines)


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _walk(inner)


def _rows(node: dict[str, Any]) -> float:
    removed = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    is_big = node.get("Relation Name") in BIG or node["Node Type"] == "Bitmap Index Scan"
    return (node["Actual Rows"] + removed) * node["Actual Loops"] if is_big else 0


async def explain(connection: asyncpg.Connection, query: str, arguments: str) -> Plan:
    """Run a query as it would be run on this connection, undo it, and say what it did; arguments as SQL has them."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"PREPARE examined AS {query}")
        call = f"examined({arguments})" if arguments else "examined"
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {call}")
        await connection.execute("DEALLOCATE examined")
    finally:
        await transaction.rollback()
    return Plan(json.loads(text)[0]["Plan"])
