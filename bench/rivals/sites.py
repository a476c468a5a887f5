"""Rivals as servers: each with the processes that ours has, on the same embedded Postgres where it wants one.

`pids`, `kill` and `restart` are those of bench.server.Server. Everything that is started here is ended here, by pid.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from bench import processes
from bench.rivals.environments import find_python, find_restate_server
from smithers.store.embedded import EmbeddedPostgres, open_embedded_postgres

HERE = Path(__file__).parent
WORKER_COUNT = 2  # as many as ours has children
STARTED_WITHIN_S = 60.0


class Site:
    """A rival's folder, its processes, and its Postgres."""

    def __init__(self, name: str, start: Callable[["Site"], int], *, has_postgres: bool) -> None:
        """`start` starts the processes, on the port that they had before if there was one, and returns it."""
        self.name = name
        self.data_dir = Path(tempfile.mkdtemp(prefix=f"smithers-{name}-", dir="/tmp"))
        self.data_dir.chmod(0o755)  # run as root, Postgres is another account's
        self.port = 0
        self._start = start
        self._has_postgres = has_postgres
        self._parts: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._shares: list[EmbeddedPostgres] = []

    def __enter__(self) -> Self:
        try:
            self.restart()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end(pid for name, pids in self.pids().items() if name != "postgres" for pid in pids)
        while self._shares:
            self._shares.pop().close()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """Its database's address, if it has one."""
        return self._shares[-1].dsn

    @property
    def log(self) -> str:
        """What its processes said."""
        return (self.data_dir / "log").read_text(errors="replace")

    def restart(self) -> None:
        """Start, or start again on the same data and the same port."""
        if self._has_postgres:
            self._shares.append(open_embedded_postgres(self.data_dir / "postgres"))
        self._parts = {}
        self.port = self._start(self)

    def pids(self) -> dict[str, list[int]]:
        """All processes, by part."""
        found = {
            part: [pid for one in ours for pid in (one.pid, *processes.descendants(one.pid))]
            for part, ours in self._parts.items()
        }
        if self._shares:
            postmaster = self._postmaster_pid
            found["postgres"] = [postmaster, *processes.descendants(postmaster)]
        return found

    def kill(self) -> None:
        """Kill everything at once: the keeper of Postgres first, or it would start another."""
        pids = [pid for part in self.pids().values() for pid in part]
        keepers = [processes.parent(self._postmaster_pid)] if self._shares else []
        self._end([*keepers, *pids])

    def launch(
        self, part: str, command: list[str], *, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process of a part; what a front says is for `hear`."""
        with (self.data_dir / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=HERE,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if part == "front" else log,
                stderr=log,
            )
        self._parts.setdefault(part, []).append(process)
        return process

    def tell(self, part: str, script: str, name: str, port: int = 0) -> subprocess.Popen[bytes]:
        """Start a script of this folder in the rival's environment, and tell it where."""
        process = self.launch(part, [str(find_python(self.name)), str(HERE / script)])
        order = {"dsn": self.dsn, "port": port, "name": name}
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()  # and stays open: its end is the process's
        return process

    def hear(self, process: subprocess.Popen[bytes]) -> int:
        """Read the port that a front says when it serves."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"{self.name} does not start:\n{self.log[-3000:]}")
        return int(line)

    @property
    def _postmaster_pid(self) -> int:
        pid_file = self.data_dir / "postgres" / "pgdata" / "postmaster.pid"
        return int(pid_file.read_text().split("\n", 1)[0])

    def _end(self, pids: Iterable[int]) -> None:
        for pid in list(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (process for part in self._parts.values() for process in part):
            with process:  # closes its pipes, and waits
                pass


def dbos() -> Site:
    """Two processes, each of which serves HTTP and moves the runs that it started."""

    def start(site: Site) -> int:
        port = site.port
        for number in range(WORKER_COUNT):
            port = site.hear(site.tell("front", "on_dbos.py", str(number), port))
        return port

    return Site("dbos", start, has_postgres=True)


def absurd() -> Site:
    """A front and two workers."""

    def start(site: Site) -> int:
        port = site.hear(site.tell("front", "on_absurd.py", "front", site.port))
        for number in range(WORKER_COUNT):
            site.tell("workers", "on_absurd.py", f"worker-{number}")
        return port

    return Site("absurd", start, has_postgres=True)


def restate() -> Site:
    """Its server, which has a log of its own instead of Postgres, and two processes with the services."""
    ingress, admin, node, services = _free_ports(4)

    def start(site: Site) -> int:
        site.launch(
            "services",
            [
                *(str(find_python(site.name)), "-m", "hypercorn", "--workers", str(WORKER_COUNT)),
                *("--worker-class", "uvloop", "--bind", f"127.0.0.1:{services}", "on_restate:app"),
            ],
        )
        at = {
            "RESTATE_BASE_DIR": str(site.data_dir / "restate"),
            "RESTATE_NODE_NAME": "bench",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_BIND_PORT": str(node),
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RUST_LOG": "warn",
        }
        site.launch("server", [str(find_restate_server()), "--no-logo"], environment=at)
        _register(site, admin, services)
        return ingress

    return Site("restate", start, has_postgres=False)


def _register(site: Site, admin_port: int, services_port: int) -> None:
    """Tell Restate's server of the services, as soon as both answer; again after a restart, which changes nothing."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{admin_port}/deployments",
        json.dumps({"uri": f"http://127.0.0.1:{services_port}", "force": False}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + STARTED_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except OSError as refusal:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Restate does not start:\n{site.log[-3000:]}") from refusal
            time.sleep(0.02)
        else:
            return


def _free_ports(count: int) -> list[int]:
    """Find ports that nobody has at the moment: Restate does not say which it took."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


SITES = {"dbos": dbos, "absurd": absurd, "restate": restate}
