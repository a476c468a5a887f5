"""Two gateways behind each balancer, by the files of deploy/: refused, streamed, restarted one after the other under load."""

import asyncio
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import sub
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from bench.ports import free_port
from bench.processes import pss_bytes
from bench.server import FLOWS_DIR
from bench.storm import Storm, Weather, read_digest
from tests.support.balancers import KINDS, addresses, balancing, command
from tests.support.canary import TOKEN
from tests.support.following import Load
from tests.support.serving import Serving
from tests.support.world import until

pytestmark = pytest.mark.timeout(300)  # real processes, on machines that are busy
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
FLOW = """
from smithers import Sequence, Task, workflow


@workflow
def three(ctx):
    return Sequence(Task("a", lambda: 1), Task("b", lambda: 2), Task("c", lambda: 3))
"""
STARTERS = 4
CHECKED = re.compile(
    rb'smithers_http_requests_total{method="GET",route="/ready",status="200"} (\d+)'
)
RUNS_MOVED = 30  # answered through the balancer before, between and after the restarts
SEED = 20261122
STORM_RUNS = 4
WEATHER = Weather(viewers=60, mean_cut_bytes=12_000, slow=40)
MAX_GROWTH_BYTES = 64 * 2**20


class Fleet:
    """Two gateways, which can be restarted, and a worker."""

    def __init__(self, root: Path, dsn: str, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._env = {"DATABASE_URL": dsn, "SMITHERS_API_KEY": TOKEN}
        self.ports = (free_port(), free_port())
        self._gateways = [self._open(port) for port in self.ports]
        stack.enter_context(Serving(root, None, "--workers", "1", command="worker", **self._env))

    @property
    def addresses(self) -> tuple[str, str]:
        return (f"127.0.0.1:{self.ports[0]}", f"127.0.0.1:{self.ports[1]}")

    @property
    def pids(self) -> list[int]:
        """The gateways' processes."""
        return [gateway.process.pid for gateway in self._gateways]

    def restart(self, number: int) -> None:
        """Stop a gateway as a deploy does, and start it again on its port."""
        assert self._gateways[number].stop() == 0
        self._gateways[number] = self._open(self.ports[number])

    async def until_checked(self, number: int) -> None:
        """Wait until HAProxy has seen that a gateway is ready: its second check comes after the first one's answer."""

        async def is_checked() -> bool:
            async with session.get(f"{self._gateways[number].url}/metrics") as answer:
                found = CHECKED.search(await answer.read())
            return found is not None and int(found[1]) >= 2

        async with aiohttp.ClientSession(headers=HEADERS) as session:
            await until(is_checked, f"gateway {number} was checked")

    def _open(self, port: int) -> Serving:
        flags = ("--port", str(port), "--drain-timeout", "10")
        return self._stack.enter_context(
            Serving(self._root, None, *flags, command="gateway", **self._env)
        )


@contextmanager
def fleet(root: Path, dsn: str) -> Iterator[Fleet]:
    (root / "three.py").write_text(FLOW, encoding="utf-8")
    with ExitStack() as stack:
        yield Fleet(root, dsn, stack)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_the_balancers_own_check_accepts_the_file(kind: str, tmp_path: Path) -> None:
    variables = addresses("127.0.0.1:18080", ("127.0.0.1:18001", "127.0.0.1:18002"))
    words = command(kind, tmp_path, variables)
    checking = [*words[:1], "-t", *words[1:-2]] if kind == "nginx" else [words[0], "-c", *words[2:]]
    done = subprocess.run(
        checking, check=False, capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("kind", KINDS)
async def test_where_no_gateway_answers_a_caller_is_told_as_a_gateway_does(
    kind: str, tmp_path: Path
) -> None:
    nobody = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    with balancing(kind, tmp_path, nobody) as url:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/runs") as answer:
            assert (answer.status, answer.content_type) == (503, "application/json")
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "UNAVAILABLE"


async def restart_under_load(
    gateways: Fleet, url: str, *, kind: str, count: int, moved: int
) -> Load:
    """Restart one gateway after the other, so often in all, with so many runs between two; return what clients saw."""
    load = Load(url, "three.py")
    async with aiohttp.ClientSession(headers=HEADERS) as session, asyncio.TaskGroup() as group:
        for _ in range(STARTERS):
            group.create_task(load.start_and_follow(session))
        await load.go_on(moved)
        for number in range(count):
            await asyncio.to_thread(gateways.restart, number % 2)
            # nginx checks nobody: it asks the other gateway where one is not to be reached.
            if kind == "haproxy":
                await gateways.until_checked(number % 2)
            await load.go_on(moved)
        load.is_over = True
    return load


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rolling_restart_under_load_fails_no_request_and_loses_no_event(
    kind: str, root: Path, tmp_path: Path, database: str
) -> None:
    with fleet(root, database) as gateways, balancing(kind, tmp_path, gateways.addresses) as url:
        load = await restart_under_load(gateways, url, kind=kind, count=2, moved=RUNS_MOVED)
        assert load.answers == {200: load.followed}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_hundred_rolling_restarts_under_load_fail_no_request_and_lose_no_event(
    kind: str, root: Path, tmp_path: Path, database: str
) -> None:
    with fleet(root, database) as gateways, balancing(kind, tmp_path, gateways.addresses) as url:
        load = await restart_under_load(gateways, url, kind=kind, count=100, moved=10)
        assert load.answers == {200: load.followed}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_storm_of_viewers_behind_a_balancer_harms_nobody(
    kind: str, root: Path, tmp_path: Path, database: str
) -> None:
    """Cut at random bytes and back again, beside some that read a byte a second or nothing."""
    shutil.copy(FLOWS_DIR / "ticks.py", root)
    with fleet(root, database) as gateways, balancing(kind, tmp_path, gateways.addresses) as url:
        before = [pss_bytes(pid) for pid in gateways.pids]
        storm = Storm(port=urlsplit(url).port or 0, chance=random.Random(SEED), headers=HEADERS)
        async with aiohttp.ClientSession(headers=HEADERS) as session:
            runs = [await start_ticks(session, url) for _ in range(STORM_RUNS)]
            steady, cut = await storm.rage(runs, WEATHER)
        after = [pss_bytes(pid) for pid in gateways.pids]
    assert storm.faults == []
    sql = await asyncpg.connect(database)
    try:
        stored = {run_id: await read_digest(sql, run_id) for run_id in runs}
    finally:
        await sql.close()
    assert all(viewer.seen.hexdigest() == stored[viewer.run_id] for viewer in (*steady, *cut))
    assert storm.counts["cut"] > WEATHER.viewers * STORM_RUNS
    assert storm.counts["broken"] == storm.counts["silent"] == storm.counts["refused"] == 0
    assert max(map(sub, after, before)) < MAX_GROWTH_BYTES


async def start_ticks(session: aiohttp.ClientSession, url: str) -> str:
    body = {"workflowPath": "ticks.py", "input": {"count": 300, "pause_s": 0.02}}
    async with session.post(f"{url}/v1/runs", json=body) as answer:
        return (await answer.json())["runId"]
