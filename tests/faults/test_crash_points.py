"""A process dies at either side of a commit, at its first to third time there: nothing is lost, nothing is done twice.

Real processes, ended by `os._exit` where tests/support/crashing.py says. Clients ask again what they do not know the
outcome of; what died is started anew by its parent, or here as an operator would. The checker judges all that was said
and seen. The gate takes some of the cases, `make faults` the others.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from bench.ports import free_port
from chaos.checker import History, check, read_ledger
from chaos.dump import read_runs
from chaos.load import Clients, Life, Script
from chaos.recorder import Recorder
from tests.support.crashing import CODE, POINTS
from tests.support.world import World, kill, until

FLOWS = Path(__file__).parents[2] / "chaos" / "flows"
CRASHING = "tests.support.crashing"
MAX_ROUNDS = 6
# A worker with a body under way.
BUSY = """
    SELECT w.pid FROM smithers.runs r JOIN smithers.workers w ON w.worker_id = r.owner_id JOIN smithers.nodes n USING (run_id)
    WHERE n.state = 'in-progress' AND w.dead_at IS NULL
"""

QUICK = {"width": 1, "length": 1, "step_s": 0.05}
STARTED = Script(given={**QUICK, "nap_s": 0.2}, rival_count=3, is_cutting=True)
ASKED = Script(given={**QUICK, "is_asking": True}, verdicts=("approve", "deny"))
# Nobody approves: whoever is first decides, and only what was denied is surely resumed.
DENIED = Script(
    given={**QUICK, "is_asking": True, "letter_count": 1},
    verdicts=("deny",),
    max_resumes=3,
    letter_count=1,
    has_late_viewer=True,
)
WRITTEN = Script(given={**QUICK, "letter_count": 3}, letter_count=3, letters_within_s=0.3)
CANCELLED = Script(given={**QUICK, "step_s": 0.7}, cancel_after_s=0.1)
PATIENT = Script(given={**QUICK, "is_asking": True, "patience_s": 0.3}, verdicts=())
# Longer than a suspect is tried alone.
SLOW = Script(given={"width": 1, "length": 0, "step_s": 3.0})
# In a coroutine: what a thread may still be at is not released.
STOPPED = Script(given={"width": 0, "length": 1, "step_s": 3.0})

SCRIPTS: dict[str, tuple[Script, ...]] = {
    "gateway start": (STARTED,),
    "gateway decide": (ASKED, ASKED),
    "gateway signal": (WRITTEN,),
    "gateway cancel": (CANCELLED, CANCELLED, CANCELLED),
    "gateway resume": (DENIED,),
    "child time-out": (PATIENT, PATIENT, PATIENT),
    "child release": (STOPPED,),
    "child acquit": (SLOW,),
    "pool bury": (SLOW,),
}
OF_ALL = (STARTED, ASKED, WRITTEN)
IN_THE_GATE = {
    *("gateway start after 1", "gateway start-with-key after 2", "gateway decide before 1"),
    *("child claim after 1", "child commit after 2", "child park before 1", "child end after 1"),
    *("pool register after 1", "pool bury before 1"),
}
CASES = [
    pytest.param(
        f"{name} {side}",
        hit,
        marks=() if f"{name} {side} {hit}" in IN_THE_GATE else pytest.mark.slow,
        id=f"{name} {side} {hit}",
    )
    for name in POINTS
    for side in ("before", "after")
    for hit in (1, 2, 3)
]


class Scene:
    """A gateway and a pool, one of them made to die; whatever dies is started again."""

    def __init__(self, world: World, point: str, hit: int) -> None:
        self.world = world
        self.part = point.partition(" ")[0]
        self.hits_path = world.root / "hits"
        self.codes: list[int] = []
        self._crash = {
            "CRASH_POINT": point,
            "CRASH_HITS": str(self.hits_path),
            "CRASH_AT": str(hit),
        }
        self._hit = hit
        self.port = free_port()
        self.pool: subprocess.Popen[bytes]
        self.gateway: subprocess.Popen[bytes]

    @property
    def hits(self) -> int:
        """How often the point was passed."""
        return self.hits_path.stat().st_size if self.hits_path.exists() else 0

    @property
    def has_crashed(self) -> bool:
        """The point was passed so often."""
        return self.hits >= self._hit

    async def is_crash_seen(self) -> bool:
        """Whoever keeps the process that crashed has noticed."""
        buried = "SELECT count(*) FROM smithers.workers WHERE death = $1"
        return CODE in self.codes or bool(await self.world.sql.fetchval(buried, f"exit-{CODE}"))

    async def start_gateway(self) -> None:
        is_it = self.part == "gateway"
        self.gateway, self.port = await self.world.start_gateway(
            port=self.port,
            module=CRASHING if is_it else "bench.gateway",
            environment=self._crash if is_it else {},
        )

    async def start_pool(self) -> None:
        is_it = self.part != "gateway"
        self.pool = self.world.start_pool(
            workers=1,
            module=CRASHING if is_it else "worker",
            environment=self._crash if is_it else {},
            drain_timeout_s=0.3,
        )

    async def keep(self) -> None:
        """Start again what has died."""
        while True:
            await asyncio.sleep(0.05)
            for process, start in (
                (self.gateway, self.start_gateway),
                (self.pool, self.start_pool),
            ):
                if process.poll() is not None:
                    self.codes.append(process.returncode)
                    await start()


@asynccontextmanager
async def playing(world: World, point: str, hit: int) -> AsyncIterator[Scene]:
    shutil.copytree(FLOWS, world.root, dirs_exist_ok=True)
    scene = Scene(world, point, hit)
    await scene.start_gateway()
    await scene.start_pool()
    keeping = asyncio.create_task(scene.keep())
    try:
        yield scene
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def provoke(scene: Scene, point: str) -> None:
    """Do what brings a pool to a commit that it makes in need only."""
    sql, hits = scene.world.sql, scene.hits
    while point.startswith("pool beat") and scene.hits == hits:  # once a second, whatever is done
        await asyncio.sleep(0.02)
    with suppress(ProcessLookupError):
        if point.startswith(("pool bury", "child release", "child acquit")):
            while not (pid := await sql.fetchval(BUSY)):
                await asyncio.sleep(0.02)
            if not point.startswith("child release"):
                kill(pid)
        if point.startswith(("child release", "pool register")):
            os.kill(scene.pool.pid, signal.SIGTERM)


async def start_with_key(clients: Clients, run_id: str) -> None:
    """Start a run under an idempotency key, as often as it takes; the answer is always the same run."""
    body = {"workflowPath": "life.py", "runId": run_id, "input": QUICK}
    while True:
        with suppress(aiohttp.ClientError, TimeoutError):
            with clients.recorder.operation("client", "start", run=run_id, gateway=0) as end:
                async with clients.http.post(
                    f"{clients.urls[0]}/v1/runs", json=body, headers={"Idempotency-Key": run_id}
                ) as response:
                    answer = await response.json()
            if response.status < 500:
                assert (response.status, answer) == (200, {"runId": run_id})
                end["phase"] = "ok"
                return
        await asyncio.sleep(0.1)


async def play(scene: Scene, clients: Clients, point: str) -> None:
    """Have lives until the crash has happened; each comes to its end."""
    scripts = SCRIPTS.get(point.rpartition(" ")[0], OF_ALL)
    for number in range(MAX_ROUNDS):
        if point.startswith("gateway start-with-key"):
            await start_with_key(clients, f"key-{number}")
        else:
            lives = [
                Life(f"r{number}-{each}", script, random.Random(number), clients).live()
                for each, script in enumerate(scripts)
            ]
            await asyncio.gather(*lives, provoke(scene, point))
        if scene.has_crashed:
            return
    raise AssertionError(f"{point} was never passed so often")


@pytest.mark.parametrize(("point", "hit"), CASES)
async def test_a_process_that_dies_beside_a_commit_loses_and_repeats_nothing(
    world: World, point: str, hit: int
) -> None:
    history_path = world.root / "history.jsonl"
    async with playing(world, point, hit) as scene:
        url = f"http://127.0.0.1:{scene.port}"
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        with Recorder(history_path) as recorder:
            async with aiohttp.ClientSession(connector=connector) as http, asyncio.timeout(100):
                clients = Clients(http=http, urls=[url], recorder=recorder)
                await play(scene, clients, point)
        await until_all_have_ended(world)
        await until(scene.is_crash_seen, "the crash is noticed")
        runs = await read_runs(world.sql)
    ledger = read_ledger(world.root / "ledger.jsonl")
    assert [str(one) for one in check(History.read(history_path), runs, ledger)] == []


async def until_all_have_ended(world: World) -> None:
    """Wait for what no client follows."""
    open_runs = "SELECT count(*) FROM smithers.runs WHERE finished_at IS NULL"
    async with asyncio.timeout(60):
        while await world.sql.fetchval(open_runs):
            await asyncio.sleep(0.05)
