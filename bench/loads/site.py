"""Where a load runs: an embedded Postgres, as many pools and gateways as it wants, each a process of its own.

Unlike bench.server.Server its pools come and go one by one: what is killed here is replaced by another.
Everything that is started here is ended here, by pid.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bench import processes
from bench.server import ROOT_DIR
from smithers.store.embedded import EmbeddedPostgres, open_embedded_postgres
from smithers.store.schema import upgrade_schema
from worker.settings import PoolSettings

FLOWS_DIR = Path(__file__).with_name("flows")
STOP_LIMIT_S = 20.0


class Site:
    """A server on a new database; `pids` has the shape that bench.meters reads."""

    def __init__(
        self,
        *,
        pools: int = 1,
        children: int = 2,
        gateways: int = 1,
        flows: Path = FLOWS_DIR,
        memory_mib: int | None = None,
    ) -> None:
        """`flows`: the folder of the workflows that its runs are of; `memory_mib`: what a child may have of it."""
        self.data_dir = Path(tempfile.mkdtemp(prefix="smithers-loads-", dir="/tmp"))
        self.data_dir.chmod(0o755)  # run as root, Postgres is another account's
        self.log_file = self.data_dir / "server.log"
        self.ports: list[int] = []
        self.pools: list[subprocess.Popen[bytes]] = []
        self._wanted = (pools, gateways)
        self._children = children
        self._flows = str(flows)
        self._memory_mib = memory_mib
        self._gateways: list[subprocess.Popen[bytes]] = []
        self._share: EmbeddedPostgres | None = None

    def __enter__(self) -> Self:
        try:
            self._share = open_embedded_postgres(self.data_dir / "postgres")
            upgrade_schema(self.dsn)
            pools, gateways = self._wanted
            for _ in range(pools):
                self.start_pool()
            for _ in range(gateways):
                self._start_gateway()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in (*self._gateways, *self.pools):
            with process:  # closes its pipes
                if process.poll() is None:
                    _stop(process)
        if self._share is not None:
            self._share.close()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """The database's address."""
        assert self._share is not None
        return self._share.dsn

    @property
    def port(self) -> int:
        """The first gateway's."""
        return self.ports[0]

    @property
    def child_count(self) -> int:
        """How many children there are when all is well."""
        return len(self.pools) * self._children

    def start_pool(self) -> subprocess.Popen[bytes]:
        """Start one more pool."""
        settings = PoolSettings(
            dsn=self.dsn,
            direct_dsn=self.dsn,
            root_dir=self._flows,
            worker_count=self._children,
            worker_memory_mib=self._memory_mib,
        )
        pool = self._start("worker", settings.to_json(), is_answering=False)
        self.pools.append(pool)
        return pool

    def kill_pool(self, pool: subprocess.Popen[bytes]) -> None:
        """Kill a pool whole, parent first: nothing of it is left to say anything."""
        for pid in (pool.pid, *processes.descendants(pool.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pool.wait()
        self.pools.remove(pool)

    def find_pool(self, pid: int) -> subprocess.Popen[bytes]:
        """Return the pool that has such a child."""
        return next(pool for pool in self.pools if pid in processes.descendants(pool.pid))

    def pids(self) -> dict[str, list[int]]:
        """All processes of the server, by part."""
        below = [pid for pool in self.pools for pid in processes.descendants(pool.pid)]
        children = [pid for pool in self.pools for pid in processes.children_of_pool(pool.pid)]
        return {
            "gateway": list(_whole(process.pid for process in self._gateways)),
            "pool": [pool.pid for pool in self.pools] + [p for p in below if p not in children],
            "children": children,
            "postgres": list(_whole([self._postmaster_pid])),
        }

    @property
    def _postmaster_pid(self) -> int:
        pid_file = self.data_dir / "postgres" / "pgdata" / "postmaster.pid"
        return int(pid_file.read_text().split("\n", 1)[0])

    def _start_gateway(self) -> None:
        order = {"dsn": self.dsn, "root_dir": self._flows, "port": 0}
        process = self._start("bench.gateway", json.dumps(order).encode(), is_answering=True)
        self._gateways.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"a gateway does not start:\n{self.log_file.read_text()[-3000:]}")
        self.ports.append(int(line))

    def _start(self, module: str, told: bytes, *, is_answering: bool) -> subprocess.Popen[bytes]:
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                cwd=ROOT_DIR,
                env={**inherited, "PYTHONPATH": str(ROOT_DIR)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if is_answering else log,
                stderr=log,
            )
        assert process.stdin is not None
        process.stdin.write(told + b"\n")
        process.stdin.flush()  # and stays open: its end is the pool's sign to go
        return process


def pss_mib(site: Site) -> dict[str, float]:
    """Return the memory of each part, what is shared counted in parts."""
    return {part: sum(map(processes.pss_bytes, pids)) / 2**20 for part, pids in site.pids().items()}


def _whole(pids: Any) -> Iterator[int]:
    for pid in pids:
        yield pid
        yield from processes.descendants(pid)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        for pid in (process.pid, *processes.descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
