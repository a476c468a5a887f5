"""A server as `smithers serve` starts it, a Prometheus that scrapes it, and a load that gives panels something to show."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import processes
from bench.ports import free_port
from smithers.client import AsyncClient, ClientError

FLOWS = Path(__file__).with_name("flows")
TOKEN = "of-the-dashboards"
LIMIT_S = 60.0


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Have a server; yields its URL and pid."""
    words = ["serve", "--root-dir", str(FLOWS), "--port", "0", "--data-dir", str(folder / "data")]
    words += ["--workers", "2", "--runs-per-worker", "64", "--log-format", "json"]
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "smithers.cli.main", *words],
            env={**os.environ, "SMITHERS_API_KEY": TOKEN},
            stderr=file,
        )
    try:
        until(lambda: find_url(log) or process.poll() is not None, "the server starts")
        url = find_url(log)
        if url is None:
            raise SystemExit(log.read_text(encoding="utf-8")[-3000:])
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def find_url(log: Path) -> str | None:
    for line in log.read_text(encoding="utf-8").splitlines():
        if '"server_started"' in line:
            return str(json.loads(line)["url"])
    return None


class Prometheus:
    """A Prometheus that scrapes a server each second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **asked: str) -> Any:
        """Ask its API; None while it does not answer."""
        query = urllib.parse.urlencode(asked)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=30) as got:
                return json.load(got)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            return None


@contextmanager
def watching(url: str, folder: Path) -> Iterator[Prometheus]:
    """Have a Prometheus."""
    address = f"127.0.0.1:{free_port()}"
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    told = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "gateway",
                "authorization": {"credentials_file": str(folder / "token")},
                "static_configs": [{"targets": [urllib.parse.urlsplit(url).netloc]}],
            }
        ],
    }
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(told), encoding="utf-8")  # which is YAML
    flags = (f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}")
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("needs Debian's prometheus")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *flags, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
    try:
        prometheus = Prometheus(f"http://{address}")
        until(lambda: prometheus.ask("query", query="up == 1"), "Prometheus scrapes the server")
        yield prometheus
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def until(condition: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.1)
    raise SystemExit(f"it never came true that {what}")


async def exercise(url: str, server_pid: int, seconds: float) -> None:
    """Have the server do all that there is a panel for, for so long."""
    ends = asyncio.get_running_loop().time() + seconds
    async with (
        asyncio.timeout(seconds + LIMIT_S),
        AsyncClient(url, token=TOKEN) as client,
        asyncio.TaskGroup() as group,
    ):
        acts: list[tuple[Callable[[AsyncClient], Awaitable[object]], float]] = [
            (lambda one: follow(one, "fleet.py:steps"), 0.1),
            (lambda one: follow(one, "fleet.py:steps"), 0.1),
            (lambda one: follow(one, "fleet.py:retries"), 0.5),
            (lambda one: follow(one, "fleet.py:tools"), 0.3),
            (lambda one: follow(one, "judging.py:judges"), 0.5),
            (lambda one: follow(one, "fleet.py:naps"), 0.2),
            (break_and_resume, 2.0),
            (decide, 0.5),
            (decide, 1.0),
            (tell, 1.0),
            (give_up, 1.5),
            (mistake, 1.0),
        ]
        for act, pause_s in acts:
            group.create_task(repeat(client, act, pause_s, ends))
        group.create_task(trouble(client, server_pid, seconds / 3))


async def repeat(
    client: AsyncClient,
    act: Callable[[AsyncClient], Awaitable[object]],
    pause_s: float,
    ends: float,
) -> None:
    while (loop := asyncio.get_running_loop()).time() < ends:
        # A server under load may refuse; what a panel lacks for it is seen.
        with suppress(ClientError):
            await act(client)
        await asyncio.sleep(min(pause_s * random.uniform(0.5, 1.5), max(0, ends - loop.time())))


async def follow(client: AsyncClient, workflow: str) -> str:
    run_id = await client.start(workflow, {})
    async for _event in client.stream(run_id):
        pass
    return run_id


async def break_and_resume(client: AsyncClient) -> None:
    await client.resume(await follow(client, "fleet.py:breaks"))


async def decide(client: AsyncClient) -> None:
    """Let somebody be asked, and take some time to answer."""
    run_id = await client.start("fleet.py:asks", {})
    while (await client.get(run_id)).status != "waiting-approval":
        await asyncio.sleep(0.5)
    await asyncio.sleep(random.uniform(2, 10))
    if random.random() < 0.3:
        await client.deny(run_id, "go")
    else:
        await client.approve(run_id, "go")


async def tell(client: AsyncClient) -> None:
    run_id = await client.start("fleet.py:listens", {})
    await asyncio.sleep(1)
    await client.signal(run_id, "paid", {})


async def give_up(client: AsyncClient) -> None:
    await client.cancel(await client.start("fleet.py:listens", {}))


async def mistake(client: AsyncClient) -> None:
    await client.get("nobody")


async def trouble(client: AsyncClient, server_pid: int, after_s: float) -> None:
    """Start more at once than all workers may hold, and kill one of them in the midst of it."""
    await asyncio.sleep(after_s)
    await asyncio.gather(*[client.start("fleet.py:takes_long", {}) for _ in range(700)])
    pool_pid = next(
        pid
        for pid in processes.descendants(server_pid)
        if "-m worker" in processes.command_line(pid)
    )
    os.kill(processes.children_of_pool(pool_pid)[0], signal.SIGKILL)


@contextmanager
def scratch() -> Iterator[Path]:
    """Have a folder that Postgres' account, too, can reach."""
    folder = Path(tempfile.mkdtemp(prefix="smithers-dashboards-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
