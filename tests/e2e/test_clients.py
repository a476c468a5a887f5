"""Clients that are none of ours: fetch in Node, as the TypeScript original's clients use it, and a browser's EventSource."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.browsers import CLOSED, Origin, browsing, needs_chromium
from tests.support.canary import TOKEN
from tests.support.data_dirs import scratch
from tests.support.serving import TREE, Serving

CLIENTS = TREE / "tests" / "clients"
ENV = {"SMITHERS_API_KEY": TOKEN}
FLAGS = ("--port", "0", "--workers", "1")


def has_more(seen_count: int, page: Origin) -> bool:
    return len(page.seen) > seen_count


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Check and compile the clients; skip where there is no Node, or no compiler was fetched."""
    compiler = CLIENTS / "node_modules" / "typescript" / "bin" / "tsc"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not compiler.exists():
        pytest.skip("there is no TypeScript compiler: npm ci --prefix tests/clients")
    folder = tmp_path_factory.mktemp("clients")
    done = subprocess.run(
        ["node", str(compiler), "--project", str(CLIENTS), "--outDir", str(folder)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    return folder


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with scratch() as place:
        yield place


def test_a_client_of_the_original_takes_a_run_from_its_start_to_its_end(
    compiled: Path, flows: Path, data_dir: Path
) -> None:
    with Serving(flows, data_dir, *FLAGS, **ENV) as server:
        done = subprocess.run(
            ["node", str(compiled / "follow_run.js"), server.url, TOKEN, "flows.py:asks", "{}"],
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["run"]["status"], told["run"]["output"]) == ("finished", "gone")
    kinds = [event["type"] for event in told["events"]]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunFinished"
    assert kinds.count("ApprovalGranted") == 1
    finished = [event["nodeId"] for event in told["events"] if event["type"] == "NodeFinished"]
    assert finished == ["prepare", "go", "leave"]


def test_a_client_of_the_original_is_told_what_went_wrong(
    compiled: Path, flows: Path, data_dir: Path
) -> None:
    with Serving(flows, data_dir, *FLAGS, **ENV) as server:
        command = ["node", str(compiled / "follow_run.js"), server.url]
        for arguments, word in [
            (["wrong", "flows.py:asks", "{}"], "401 UNAUTHORIZED"),
            ([TOKEN, "nothing.py", "{}"], "400 INVALID_REQUEST"),
        ]:
            done = subprocess.run(
                [*command, *arguments], capture_output=True, check=False, text=True, timeout=60
            )
            assert done.returncode != 0
            assert word in done.stderr


@needs_chromium
def test_an_event_source_follows_a_run_across_a_restart(flows: Path, data_dir: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Serving(flows, data_dir, *FLAGS, **ENV))
        with first.client(TOKEN) as client:
            run_id = client.start("flows.py:asks", {})
        origin = stack.enter_context(Origin(TOKEN, run_id))
        origin.gateways = [first.url]
        stack.enter_context(browsing(origin.url))
        origin.until(lambda page: "NodeWaitingApproval" in page.kinds)
        assert first.stop() == 0
        second = stack.enter_context(Serving(flows, data_dir, *FLAGS, **ENV))
        with second.client(TOKEN) as client:
            client.approve(run_id, "go")
        origin.gateways = [second.url]
        origin.until(lambda page: page.state == CLOSED)  # by a 204: it does not come back
    assert [number for number, _ in origin.seen] == list(range(len(origin.seen)))
    assert origin.kinds[-1] == "RunFinished"


@needs_chromium
def test_an_event_source_misses_nothing_while_gateways_are_restarted_in_turn(
    database: str, flows: Path
) -> None:
    env = {**ENV, "DATABASE_URL": database}
    with ExitStack() as stack:

        def start_gateway() -> Serving:
            return stack.enter_context(
                Serving(flows, None, "--port", "0", command="gateway", **env)
            )

        stack.enter_context(Serving(flows, None, "--workers", "1", command="worker", **env))
        gateways = [start_gateway(), start_gateway()]
        with gateways[0].client(TOKEN) as client:
            run_id = client.start("flows.py:goes_round", {"path": str(flows / "enough")})
        origin = stack.enter_context(Origin(TOKEN, run_id))
        origin.gateways = [gateway.url for gateway in gateways]
        stack.enter_context(browsing(origin.url))
        for _ in range(3):
            origin.until(partial(has_more, len(origin.seen)))
            oldest = gateways.pop(0)
            gateways.append(start_gateway())
            origin.gateways = [gateway.url for gateway in gateways]
            assert oldest.stop() == 0
        (flows / "enough").touch()
        origin.until(lambda page: page.state == CLOSED)
    assert [number for number, _ in origin.seen] == list(range(len(origin.seen)))
    assert origin.kinds[-1] == "RunFinished"
