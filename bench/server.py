"""The server under test: Postgres, a pool with two children, a gateway; each a process of its own, as in production.

Everything that is started here is ended here, by pid: nothing is searched for by name.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Self

from bench import processes
from smithers.store.embedded import EmbeddedPostgres, open_embedded_postgres
from smithers.store.schema import upgrade_schema
from worker.settings import PoolSettings

ROOT_DIR = Path(__file__).resolve().parent.parent
FLOWS_DIR = Path(__file__).with_name("flows")
WORKER_COUNT = 2
STOP_LIMIT_S = 20.0


class Server:
    """A server on a new database; it can be killed whole and started again."""

    def __init__(
        self, *, otel: dict[str, str] | None = None, environment: dict[str, str] | None = None
    ) -> None:
        """`otel`: the OTEL_* variables of one that is traced; `environment`: more of it for its processes."""
        self._otel = otel
        self._more = environment or {}
        self.data_dir = Path(tempfile.mkdtemp(prefix="smithers-bench-", dir="/tmp"))
        self.data_dir.chmod(0o755)  # run as root, Postgres is another account's
        self.log_file = self.data_dir / "server.log"
        self.port = 0
        self._shares: list[EmbeddedPostgres] = []
        self._pool: subprocess.Popen[bytes] | None = None
        self._gateway: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._load_pool()
            self._open_database()
            upgrade_schema(self.dsn)
            self._start_processes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in (self._gateway, self._pool):
            if process is not None and process.poll() is None:
                _stop(process)
        while self._shares:
            self._shares.pop().close()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """The database's address."""
        return self._shares[-1].dsn

    @property
    def gateway_pid(self) -> int:
        """The process that speaks HTTP."""
        assert self._gateway is not None
        return self._gateway.pid

    @property
    def pool_pid(self) -> int:
        """The parent of the children."""
        assert self._pool is not None
        return self._pool.pid

    @property
    def child_pids(self) -> list[int]:
        """The processes that move runs forward."""
        return processes.children_of_pool(self.pool_pid)

    @property
    def postmaster_pid(self) -> int:
        """The parent of Postgres' processes."""
        pid_file = self.data_dir / "postgres" / "pgdata" / "postmaster.pid"
        return int(pid_file.read_text().split("\n", 1)[0])

    def pids(self) -> dict[str, list[int]]:
        """All processes of the server, by part."""
        return {
            "gateway": [self.gateway_pid, *processes.descendants(self.gateway_pid)],
            "pool": [
                self.pool_pid,
                *set(processes.descendants(self.pool_pid)).difference(self.child_pids),
            ],
            "children": self.child_pids,
            "postgres": [self.postmaster_pid, *processes.descendants(self.postmaster_pid)],
        }

    def kill(self) -> None:
        """Kill everything at once: the keeper of Postgres first, or it would start another."""
        assert self._gateway is not None
        assert self._pool is not None
        pids = [pid for part in self.pids().values() for pid in part]
        for pid in (processes.parent(self.postmaster_pid), *pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._gateway.wait()
        self._pool.wait()

    def restart(self) -> None:
        """Start again on the same data and the same port, in the order of `smithers serve`."""
        self._load_pool()
        self._open_database()
        self._start_processes()

    def _open_database(self) -> None:
        self._shares.append(open_embedded_postgres(self.data_dir / "postgres"))

    def _load_pool(self) -> None:
        with self.log_file.open("ab") as log:
            self._pool = _load("worker", log, self._more, stdout=log)

    def _start_processes(self) -> None:
        settings = PoolSettings(
            dsn=self.dsn,
            direct_dsn=self.dsn,
            root_dir=str(FLOWS_DIR),
            worker_count=WORKER_COUNT,
            otel=self._otel,
        )
        order = {
            "dsn": self.dsn,
            "root_dir": str(FLOWS_DIR),
            "port": self.port,
            "otel": self._otel,
        }
        assert self._pool is not None
        _tell(self._pool, settings.to_json())
        with self.log_file.open("ab") as log:
            self._gateway = _load("bench.gateway", log, self._more, stdout=subprocess.PIPE)
        _tell(self._gateway, json.dumps(order).encode())
        assert self._gateway.stdout is not None
        line = self._gateway.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"the gateway does not start:\n{self.log_file.read_text()[-3000:]}")
        self.port = int(line)


def _load(
    module: str, log: IO[bytes], more: dict[str, str], *, stdout: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        cwd=ROOT_DIR,
        env={**_environment(), **more},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=log,
    )


def _tell(process: subprocess.Popen[bytes], settings: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(settings + b"\n")
    process.stdin.flush()  # and stays open: its end is the pool's sign to go


def _environment() -> dict[str, str]:
    # An installed wheel is compiled; without its caches a start costs twice as much.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(ROOT_DIR)}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    deadline = time.monotonic() + STOP_LIMIT_S
    try:
        process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
