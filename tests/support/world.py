"""A database, a root with workflow files, and real pools of workers on them; runs are started and watched by SQL.

No gateway stands between: what these tests say is true of the rows, whoever serves them.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import asyncpg

from smithers.events import Envelope, EventType, event_parts
from smithers.ids import RunId, SourceHash
from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceReader
from smithers.store.hints import Channel, Hints
from smithers.store.starts import RunStart, start_runs
from worker.settings import PoolSettings

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 60.0
LEDGER = """
import os
def mark(line):
    fd = os.open(os.environ["LEDGER"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)
"""


async def until(
    condition: Callable[[], Awaitable[Any]], what: str, patience_s: float = PATIENCE_S
) -> Any:
    """Wait for a condition to be true, and return what it gave."""
    try:
        async with asyncio.timeout(patience_s):
            while not (found := await condition()):
                await asyncio.sleep(0.02)
            return found
    except TimeoutError:
        raise AssertionError(f"in {patience_s} s it never came true that {what}") from None


class World:
    """One test's database, root and pools."""

    def __init__(self, dsn: str, root: Path) -> None:
        self.dsn = dsn
        self.root = root
        self.ledger_path = root / "ledger.txt"
        self._root = RootDirectory(root)
        self._reader = SourceReader(self._root)
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        self._log = (self.root / "pool.log").open("ab")
        self.sql = await asyncpg.connect(self.dsn)
        self._hints = Hints(self.dsn, role="test")
        await self._hints.__aenter__()
        (self.root / "ledger.py").write_text(LEDGER)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._log.close()
        self._root.close()
        await self._hints.__aexit__(*exc)
        await self.sql.close()

    def write(self, name: str, source: str) -> None:
        """Write a workflow file, or a helper of one."""
        (self.root / name).write_text(textwrap.dedent(source))

    def start_pool(
        self,
        *,
        workers: int = 2,
        module: str = "worker",
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a pool; it ends with the test at the latest."""
        told = PoolSettings(
            dsn=self.dsn,
            direct_dsn=self.dsn,
            root_dir=str(self.root),
            worker_count=workers,
            **settings,
        )
        return self._spawn(module, told.to_json(), environment)

    async def start_gateway(
        self,
        *,
        port: int = 0,
        module: str = "bench.gateway",
        environment: dict[str, str] | None = None,
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start a gateway; return it and its port when it answers."""
        order = {"dsn": self.dsn, "root_dir": str(self.root), "port": port}
        gateway = self._spawn(module, json.dumps(order).encode(), environment, is_answering=True)
        assert gateway.stdout is not None
        line = await asyncio.to_thread(gateway.stdout.readline)
        assert line.strip().isdigit(), (self.root / "pool.log").read_text()[-3000:]
        return gateway, int(line)

    def _spawn(
        self,
        module: str,
        told: bytes,
        environment: dict[str, str] | None,
        *,
        is_answering: bool = False,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if is_answering else None,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "LEDGER": str(self.ledger_path),
                **(environment or {}),
            },
            stderr=self._log,
        )
        assert process.stdin is not None
        process.stdin.write(told + b"\n")
        process.stdin.flush()
        self._processes.append(process)
        return process

    async def start(self, run_id: str, path: str, given: Any = None, **fields: Any) -> None:
        """Start a run as a gateway does."""
        bundle = self._reader.read(path)
        await self.sql.execute(
            "INSERT INTO smithers.workflow_sources (source_hash, bundle) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            bundle.source_hash,
            bundle.to_json(),
        )
        name = Path(bundle.entry).stem
        envelope = Envelope.of(RunId(run_id), name)
        head, tail = event_parts(EventType.RUN_STARTED, envelope, {})
        start = RunStart(
            **{
                "run_id": RunId(run_id),
                "workflow_name": name,
                "workflow_path": path,
                "workflow_export": bundle.workflow_name,
                "source_hash": SourceHash(bundle.source_hash),
                "input": json.dumps(given or {}),
                "config": "{}",
                "auth": None,
                "trace_context": None,
                "parent_run_id": None,
                "queue": "default",
                "priority": 0,
                "head": head,
                "tail": tail,
                **fields,
            }
        )
        assert await start_runs(self.sql, [start]) == [True]
        self.wake()

    def wake(self) -> None:
        """Hint that something is due."""
        self._hints.send(Channel.DUE, ["default"])

    async def status(self, run_id: str) -> str:
        """Read a run's status."""
        return await self.sql.fetchval("SELECT status FROM smithers.runs WHERE run_id = $1", run_id)

    async def until_status(self, run_id: str, *wanted: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until a run has one of these statuses."""

        async def is_there() -> bool:
            return await self.status(run_id) in wanted

        try:
            await until(is_there, f"run {run_id} is {wanted}", patience_s)
        except AssertionError as error:
            said = await self.lines(run_id)
            log = (self.root / "pool.log").read_text()[-3000:]
            raise AssertionError(f"{error}: {await self.status(run_id)}; {said}\n{log}") from None

    async def until_event(self, run_id: str, line: str) -> None:
        """Wait until a run's history has such a line."""

        async def is_there() -> bool:
            return line in await self.lines(run_id)

        await until(is_there, f"run {run_id} has {line!r}")

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """Read a run's history, checked: gapless from 0, and the epoch never falls."""
        rows = await self.sql.fetch(
            "SELECT seq, epoch, payload FROM smithers.events WHERE run_id = $1 ORDER BY seq", run_id
        )
        assert [row["seq"] for row in rows] == list(range(len(rows)))
        epochs = [row["epoch"] for row in rows]
        assert epochs == sorted(epochs)
        return [json.loads(row["payload"]) for row in rows]

    async def lines(self, run_id: str) -> list[str]:
        """Say a run's history in short: type, node and attempt."""
        return [
            " ".join(
                str(event[part])
                for part in ("type", "nodeId", "attempt", "status")
                if part in event
            )
            for event in await self.events(run_id)
        ]

    def log(self, *events: str) -> list[dict[str, Any]]:
        """Read what the pools have logged of these events so far."""
        lines = (self.root / "pool.log").read_text().splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [line for line in told if line["event"] in events]

    async def until_logged(self, event: str, count: int = 1) -> None:
        """Wait until the pools have logged an event so many times."""

        async def is_there() -> bool:
            return len(self.log(event)) >= count

        await until(is_there, f"{event} is logged {count} times")

    async def error(self, run_id: str) -> dict[str, Any]:
        """Read why a run failed."""
        return json.loads(
            await self.sql.fetchval("SELECT error FROM smithers.runs WHERE run_id = $1", run_id)
        )

    async def outputs(self, run_id: str) -> dict[str, Any]:
        """Read the outputs of a run's nodes, by node id and iteration where that is not the first."""
        rows = await self.sql.fetch(
            "SELECT node_id, iteration, output FROM smithers.nodes WHERE run_id = $1 AND output IS NOT NULL",
            run_id,
        )
        return {
            row["node_id"] + (f"#{row['iteration']}" if row["iteration"] else ""): json.loads(
                row["output"]
            )
            for row in rows
        }

    async def states(self, run_id: str) -> dict[str, str]:
        """Read the states of a run's nodes."""
        rows = await self.sql.fetch(
            "SELECT node_id, state FROM smithers.nodes WHERE run_id = $1", run_id
        )
        return {row["node_id"]: row["state"] for row in rows}

    async def decide(
        self, run_id: str, node_id: str, *, is_approved: bool, iteration: int = 0
    ) -> str:
        """Decide as a gateway does; return the word that the database answers."""
        outcome = await self.sql.fetchval(
            """SELECT (smithers.decide_approval_v5(ROW($1, $2, $3::integer, $4::boolean, NULL, 'tester', NULL, NULL,
                NULL, false)::smithers.decision_v1)).outcome""",
            run_id,
            node_id,
            iteration,
            is_approved,
        )
        self._tell(run_id)
        return outcome

    async def signal(self, run_id: str, name: str, data: Any, signal_id: str | None = None) -> str:
        """Send a signal as a gateway does."""
        outcome = await self.sql.fetchval(
            "SELECT outcome FROM smithers.send_signal_v2($1, $2, NULL, $3, NULL, $4)",
            run_id,
            name,
            json.dumps(data),
            signal_id,
        )
        self._tell(run_id)
        return outcome

    async def cancel(self, run_id: str) -> str:
        """Cancel as a gateway does."""
        outcome = await self.sql.fetchval("SELECT outcome FROM smithers.cancel_run_v1($1)", run_id)
        self._tell(run_id)
        return outcome

    async def resume(self, run_id: str, path: str | None = None) -> str:
        """Resume as a gateway does, with another source where a path is given."""
        source_hash = None
        if path is not None:
            bundle = self._reader.read(path)
            source_hash = bundle.source_hash
            await self.sql.execute(
                "INSERT INTO smithers.workflow_sources (source_hash, bundle) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                source_hash,
                bundle.to_json(),
            )
        outcome = await self.sql.fetchval(
            "SELECT outcome FROM smithers.resume_run_v3($1, $2, $3, NULL, NULL, NULL)",
            run_id,
            source_hash,
            path,
        )
        self._tell(run_id)
        return outcome

    def _tell(self, run_id: str) -> None:
        self._hints.send(Channel.NEWS, [run_id])
        self.wake()

    def ledger(self) -> Counter[str]:
        """Count the lines that task bodies have written down."""
        try:
            return Counter(self.ledger_path.read_text().splitlines())
        except FileNotFoundError:
            return Counter()

    async def until_ledger(self, line: str, count: int = 1) -> None:
        """Wait until task bodies have written a line so often."""

        async def is_there() -> bool:
            return self.ledger()[line] >= count

        await until(is_there, f"the ledger has {line!r} {count} times")

    async def owner_pid(self, run_id: str) -> int:
        """Find the process that has a run."""

        async def find() -> int | None:
            return await self.sql.fetchval(
                "SELECT w.pid FROM smithers.runs r JOIN smithers.workers w ON w.worker_id = r.owner_id WHERE r.run_id = $1",
                run_id,
            )

        return await until(find, f"run {run_id} has an owner")


def kill(pid: int) -> None:
    """End a process that this test started, at once."""
    os.kill(pid, signal.SIGKILL)


__all__ = ["PATIENCE_S", "World", "kill", "until"]
