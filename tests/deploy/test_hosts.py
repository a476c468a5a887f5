"""Two gateways and two worker hosts, each with a network of its own, on one Postgres behind one balancer, under one load.

The hosts are network namespaces on a bridge that stands in a namespace as well: nothing of this machine's own network is
touched. Worker hosts have a pid namespace of their own besides: no worker can look whether another host's process lives.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.support.balancers import HAPROXY_FILE, addresses, find_program
from tests.support.canary import TOKEN
from tests.support.data_dirs import scratch
from tests.support.plain_postgres import PlainPostgres
from tests.support.serving import COMMAND, TREE, clean_environment
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)  # real processes, on machines that are busy
HOSTS = ("postgres", "gateway-1", "gateway-2", "worker-1", "worker-2", "balancer", "caller")
FLOW = """
from smithers import Sequence, Task, workflow


@workflow
def three(ctx):
    return Sequence(Task("a", lambda: 1), Task("b", lambda: 2), Task("c", lambda: 3))
"""
RUNS = 200
LIMIT_S = 90


class Network:
    """Hosts on one bridge."""

    def __init__(self) -> None:
        self._mark = f"smithers-{os.getpid()}"
        self.bridge = f"{self._mark}-bridge"

    def name(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def address(self, host: str) -> str:
        return f"10.77.0.{HOSTS.index(host) + 1}"

    def words(self, host: str) -> list[str]:
        """What stands before a command that is to run on a host."""
        return ["ip", "netns", "exec", self.name(host)]

    def __enter__(self) -> Self:
        ip("netns", "add", self.bridge)
        ip("-n", self.bridge, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "bridge", "up")
        for number, host in enumerate(HOSTS):
            ip("netns", "add", self.name(host))
            peer = ("peer", "name", f"port{number}", "netns", self.bridge)
            ip("link", "add", "eth0", "netns", self.name(host), "type", "veth", *peer)
            ip("-n", self.bridge, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", self.name(host), "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", self.name(host), "link", "set", device, "up")
        return self

    def __exit__(self, *_exc: object) -> None:
        for host in (*map(self.name, HOSTS), self.bridge):
            ip("netns", "delete", host, is_checked=False)


def ip(*words: str, is_checked: bool = True) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert not is_checked or done.returncode == 0, (words, done.stderr)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    network = Network()
    try:
        ip("netns", "add", network.name("probe"))
    except AssertionError as error:
        pytest.skip(f"no network namespaces here: {error}")
    ip("netns", "delete", network.name("probe"))
    with network:
        yield network


@contextmanager
def process(words: list[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block is left, and end it as a deploy does."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            words, env=clean_environment(**env), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield started
    finally:
        # What unshare started as well: it does not hand the signal on.
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        for pid in (started.pid, *map(int, children)):
            os.kill(pid, signal.SIGTERM)
        started.wait(LIMIT_S)


def until_said(log: Path, text: str, count: int) -> None:
    until(lambda: log.read_text(encoding="utf-8").count(text) >= count, text, LIMIT_S)


def test_two_gateways_and_two_worker_hosts_share_one_load(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "three.py").write_text(FLOW, encoding="utf-8")
    with scratch() as folder, ExitStack() as stack:
        postgres = PlainPostgres(
            folder, host=network.address("postgres"), port=5432, prefix=network.words("postgres")
        )
        postgres.create()
        postgres.start()
        stack.callback(postgres.kill)
        env = {
            "DATABASE_URL": postgres.dsn(),
            "SMITHERS_API_KEY": TOKEN,
            "SMITHERS_ROOT_DIR": str(root),
            "SMITHERS_LOG_FORMAT": "json",
        }
        migrated = subprocess.run(
            [*network.words("gateway-1"), *COMMAND, "db", "upgrade"],
            check=False,
            capture_output=True,
            env=clean_environment(**env),
        )
        assert migrated.returncode == 0, migrated.stderr

        log = tmp_path / "hosts.log"
        for host in ("gateway-1", "gateway-2"):
            serve = ["gateway", "--host", "0.0.0.0", "--port", "7331"]
            stack.enter_context(process([*network.words(host), *COMMAND, *serve], log, **env))
        for host in ("worker-1", "worker-2"):
            alone = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]
            words = [*network.words(host), *alone, *COMMAND, "worker", "--workers", "1"]
            stack.enter_context(process(words, log, **env))
        until_said(log, '"server_started"', 2)
        until_said(log, '"child_started"', 2)

        gateways = (f"{network.address('gateway-1')}:7331", f"{network.address('gateway-2')}:7331")
        variables = addresses("0.0.0.0:8080", gateways)
        balancer = [find_program("haproxy"), "-db", "-f", str(HAPROXY_FILE)]
        balancer_log = tmp_path / "haproxy.log"
        stack.enter_context(
            process([*network.words("balancer"), *balancer], balancer_log, **variables)
        )

        url = f"http://{network.address('balancer')}:8080"
        load = [sys.executable, "-m", "tests.support.following", url, "three.py", str(RUNS)]
        done = subprocess.run(
            [*network.words("caller"), *load],
            check=False,
            capture_output=True,
            cwd=TREE,
            env=clean_environment(TOKEN=TOKEN),
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr.decode()
        seen = json.loads(done.stdout)
        shares = read_shares(postgres, folder / "shares.csv")
        served = [
            balancer_log.read_text(encoding="utf-8").count(f"gateways/gateway-{n}") for n in (1, 2)
        ]

    assert set(seen["answers"]) == {"200"}
    assert seen["followed"] >= RUNS
    assert len(shares) == 2, "both worker hosts took part"
    assert min(shares) > RUNS * 3 * 0.05, shares
    assert min(served) > RUNS * 0.2, served


def read_shares(postgres: PlainPostgres, file: Path) -> list[int]:
    """Count the attempts that each worker made; asked on Postgres' own host."""
    count = "SELECT count(*) FROM smithers.attempts WHERE worker_id IS NOT NULL GROUP BY worker_id"
    postgres.run_tool("psql", "-d", "postgres", "-At", "-o", str(file), "-c", count)
    return [int(line) for line in file.read_text(encoding="utf-8").split()]
