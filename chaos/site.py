"""A whole server in parts that can be hurt one by one: Postgres, gateways and pools, with a proxy before each.

Clients reach a gateway through a proxy, and each gateway and each pool reaches Postgres through a proxy of its own. Ports
stay the same when what serves them is started anew. Everything that is started here is ended here, by pid.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

import asyncpg

from bench import processes
from bench.ports import free_port
from chaos import clocks
from chaos.postgres import PostgresServer
from chaos.proxy import Proxy
from smithers.store.schema import upgrade_schema

TREE = Path(__file__).resolve().parent.parent
FLOWS_DIR = Path(__file__).with_name("flows")
STOP_LIMIT_S = 45.0
START_LIMIT_S = 60.0


class Part:
    """A process of the server, its host's clock, and the proxies before and behind it."""

    def __init__(
        self, name: str, clock: clocks.Clock, database: Proxy, door: Proxy | None = None
    ) -> None:
        self.name = name
        self.clock = clock
        self.database = database
        self.door = door  # of a gateway: what clients connect to
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> list[int]:
        """The process and all below it; none where it is down."""
        if self.process is None or self.process.poll() is not None:
            return []
        return [self.process.pid, *processes.descendants(self.process.pid)]

    def signal(self, number: signal.Signals) -> list[int]:
        """Signal the process and all below it; return their pids."""
        pids = self.pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def kill(self) -> list[int]:
        """Kill it whole."""
        pids = self.signal(signal.SIGKILL)
        self.close()
        return pids

    def close(self) -> None:
        """Wait for the process, and close the pipes to it."""
        if self.process is not None:
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()


class Site:
    """A server of some gateways and pools on a Postgres of its own."""

    def __init__(
        self,
        *,
        gateways: int = 2,
        pools: int = 2,
        children: int = 2,
        tree: Path = TREE,
        trees: dict[str, Path] | None = None,
        flows: Path = FLOWS_DIR,
        environment: dict[str, str] | None = None,
        modules: dict[str, str] | None = None,
    ) -> None:
        """`tree`: whose code is run; `trees`: by part, such as `pool-1`, whose code that part runs.

        `modules`: what to run instead of `bench.gateway` and `worker`.
        """
        self.place = Path(tempfile.mkdtemp(prefix="smithers-chaos-", dir="/tmp"))
        self.place.chmod(0o755)  # run as root, Postgres is another account's
        self.root = self.place / "root"
        shutil.copytree(flows, self.root, ignore=shutil.ignore_patterns("__pycache__"))
        self.log_path = self.place / "site.log"
        self.postgres = PostgresServer(self.place / "postgres")
        self.gateways: list[Part] = []
        self.pools: list[Part] = []
        self._wanted = (gateways, pools)
        self._child_count = children
        self._tree = tree
        self._trees = trees or {}
        self._environment = environment or {}
        self._modules = {"gateway": "bench.gateway", "worker": "worker", **(modules or {})}
        self._clock_library: Path | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.postgres.__enter__)
            await asyncio.to_thread(upgrade_schema, self.postgres.dsn)
            self._clock_library = await asyncio.to_thread(clocks.build, self.place)
            for number in range(self._wanted[0]):
                door = await self._stack.enter_async_context(Proxy(free_port()))
                self.gateways.append(await self._part(f"gateway-{number}", door))
            for number in range(self._wanted[1]):
                self.pools.append(await self._part(f"pool-{number}"))
            await asyncio.gather(*[self.start(part) for part in self.parts])
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for part in self.parts:
            part.kill()
        await self._stack.aclose()
        await asyncio.to_thread(self.postgres.__exit__)

    @property
    def parts(self) -> list[Part]:
        """Gateways and pools."""
        return [*self.gateways, *self.pools]

    @property
    def ledger_path(self) -> Path:
        """What task bodies write to."""
        return self.root / "ledger.jsonl"

    def url(self, number: int) -> str:
        """A gateway's address, as clients know it."""
        door = self.gateways[number].door
        assert door is not None
        return f"http://127.0.0.1:{door.port}"

    async def connect(self) -> asyncpg.Connection:
        """Speak to Postgres, past the proxies."""
        return await asyncpg.connect(self.postgres.dsn)

    async def find_children(self, pool: Part) -> list[int]:
        """Return the pids of a pool's workers, as they are registered."""
        connection = await self.connect()
        try:
            rows = await connection.fetch("SELECT pid FROM smithers.workers WHERE dead_at IS NULL")
        finally:
            await connection.close()
        return sorted({row["pid"] for row in rows}.intersection(pool.pids))

    async def start(self, part: Part) -> None:
        """Start a part that is down; a gateway answers when this returns, where Postgres does."""
        part.close()
        dsn = f"postgresql://postgres@127.0.0.1:{part.database.port}/postgres?sslmode=disable"
        if part.door is None:
            told = {  # what every version knows
                "dsn": dsn,
                "direct_dsn": dsn,
                "root_dir": str(self.root),
                "worker_count": self._child_count,
                "queues": ["default"],
            }
            part.process = self._spawn(
                part, "worker", json.dumps(told).encode(), is_answering=False
            )
            return
        order = {"dsn": dsn, "root_dir": str(self.root), "port": part.door.target[1]}
        part.process = self._spawn(part, "gateway", json.dumps(order).encode(), is_answering=True)
        assert part.process.stdout is not None
        async with asyncio.timeout(START_LIMIT_S):
            line = await asyncio.to_thread(part.process.stdout.readline)
        if not line.strip().isdigit():
            raise RuntimeError(f"{part.name} does not start:\n{self.last_words()}")

    async def drain(self, part: Part) -> None:
        """End a part as an operator does; returns when it has ended."""
        assert part.process is not None
        part.process.terminate()
        try:
            await asyncio.to_thread(part.process.wait, STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{part.name} does not drain:\n{self.last_words()}") from None
        part.close()

    def heal(self) -> None:
        """Let every proxy pass everything, and every clock tell the time."""
        for part in self.parts:
            part.clock.move(0)
            part.database.heal()
            if part.door is not None:
                part.door.heal()

    def last_words(self, count: int = 3_000) -> str:
        """Return the end of the log."""
        return self.log_path.read_text(errors="replace")[-count:]

    def remove(self) -> None:
        """Remove all that the site has left on the disk."""
        shutil.rmtree(self.place, ignore_errors=True)

    async def _part(self, name: str, door: Proxy | None = None) -> Part:
        database = await self._stack.enter_async_context(Proxy(self.postgres.port))
        return Part(name, clocks.Clock(self.place / f"{name}.clock"), database, door)

    def _spawn(
        self, part: Part, kind: str, told: bytes, *, is_answering: bool
    ) -> subprocess.Popen[bytes]:
        inherited: dict[str, Any] = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        }
        tree = self._trees.get(part.name, self._tree)
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._modules[kind]],
                cwd=tree,
                env={
                    **inherited,
                    "PYTHONPATH": str(tree),
                    **part.clock.environment(self._clock_library),
                    **self._environment,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if is_answering else log,
                stderr=log,
            )
        assert process.stdin is not None
        process.stdin.write(told + b"\n")
        process.stdin.flush()  # and stays open: its end is the process's sign to go
        return process
