"""`smithers up --serve`: one run over HTTP, in the foreground and in the background, from its start to who ends it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.canary import TOKEN
from tests.support.data_dirs import make_data_dir
from tests.support.serving import (
    COMMAND,
    LIMIT_S,
    Talk,
    clean_environment,
    run_command,
    until_none,
    wait_readable,
)
from tests.support.waiting import until

ORDERS = """
from smithers import Approval, Sequence, Task, workflow


@workflow(database="ORDERS")
def orders(ctx):
    return Sequence(Approval("pay", title="Paid?"), Task("send", lambda: "sent"))
"""


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    place = make_data_dir()
    yield place
    until_none(str(place))
    shutil.rmtree(place)


class UpServed:
    """An `up --serve` in the foreground."""

    def __init__(self, flows: Path, data_dir: Path | None, *arguments: str, **env: str) -> None:
        self.mark = f"up-serve-{os.urandom(4).hex()}"
        place = () if data_dir is None else ("--data-dir", str(data_dir))
        self.process = subprocess.Popen(
            [*COMMAND, "up", *arguments, "--serve", "--port", "0", *place],
            cwd=flows,
            env=clean_environment(TEST_MARK=self.mark, **env),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.talk = Talk(self.process)
        self.url = self.talk.until(lambda line: " is served at http" in line).split()[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; return the exit code and what stood on stdout."""
        self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        self.talk.close()
        assert self.process.stdout is not None
        with self.process.stdout as file:
            said = file.read()
        until_none(self.mark)
        return code, said


def ask(url: str, body: Any = None, *, method: str = "GET", token: str | None = None) -> Any:
    """Send a request; return the answer's JSON, that of an error included."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


def until_status(url: str, status: str, **asked: Any) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        run: dict[str, Any] = ask(f"{url}/", **asked)
        return run if run["status"] == status else None

    return until(find, f"the run is {status}")


def until_counted(url: str, line: str) -> None:
    """Wait until /metrics, which is that of the gateway, the pool and its child, has a line."""

    def is_counted() -> bool:
        with urllib.request.urlopen(f"{url}/metrics", timeout=LIMIT_S) as answer:
            return line in answer.read().decode().splitlines()

    until(is_counted, line)


def read_events(url: str) -> list[dict[str, Any]]:
    """Read a stream to its end."""
    with urllib.request.urlopen(f"{url}/events", timeout=LIMIT_S) as stream:
        lines = stream.read().decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_a_run_is_steered_over_http_and_stays_to_be_read(flows: Path, data_dir: Path) -> None:
    with UpServed(flows, data_dir, "flows.py:asks") as up:
        until_status(up.url, "waiting-approval")
        assert ask(f"{up.url}/v1/runs")["error"]["code"] == "NOT_FOUND"
        assert "runId" in ask(f"{up.url}/approve/go", {"note": "yes"}, method="POST")
        assert until_status(up.url, "finished")["output"] == "gone"
        up.talk.until(lambda line: "run finished; it stays served" in line)
        kinds = [event["type"] for event in read_events(up.url)]
        assert [kinds[0], kinds[-1]] == ["RunStarted", "RunFinished"]
        assert ask(f"{up.url}/frames")[0]["frameNo"] >= 1
        assert ask(f"{up.url}/cancel", method="POST")["error"]["code"] == "RUN_NOT_ACTIVE"
        until_counted(up.url, "smithers_runs_finished_total 1.0")
        assert up.end(signal.SIGINT) == (0, '"gone"\n')


def test_commands_steer_a_run_that_is_served_as_any_other(flows: Path, data_dir: Path) -> None:
    with UpServed(flows, data_dir, "flows.py:invites", "--run-id", "party") as up:
        until_status(up.url, "waiting-approval")
        why = run_command("why", "party", "--server", up.url, cwd=flows)
        assert "smithers answer party guest" in why.stdout
        asked = run_command("approvals", "party", "--server", up.url, cwd=flows)
        assert '"properties": {"name"' in asked.stdout
        value = ("--value", '{"name": "Ann"}')
        answered = run_command("answer", "party", "guest", *value, "--server", up.url, cwd=flows)
        assert (answered.returncode, answered.stderr) == (0, "guest of run party: answered\n")
        until_status(up.url, "finished")
        up.talk.until(lambda line: "run finished; it stays served" in line)
        assert up.end(signal.SIGINT) == (0, '"hello"\n')


def test_why_says_that_a_given_database_must_be_named_and_not_its_url(
    flows: Path, database: str
) -> None:
    named = ("flows.py:breaks", "--run-id", "r")
    with UpServed(flows, None, *named, DATABASE_URL=database) as up:
        until_status(up.url, "failed")
        why = run_command("why", "r", "--server", up.url, cwd=flows)
    assert "\n  DATABASE_URL=URL smithers up flows.py:breaks --run-id r --resume\n" in why.stdout
    assert database not in why.stdout


def test_what_the_run_goes_on_as_is_served_in_its_place(flows: Path, data_dir: Path) -> None:
    with UpServed(flows, data_dir, "flows.py:counts_down", "--run-id", "down") as up:
        assert until_status(up.url, "waiting-approval")["runId"] == "down+1"
        assert ask(f"{up.url}/approve/last", method="POST") == {"runId": "down+1"}
        up.talk.until(lambda line: "run finished; it stays served" in line)
        assert {event["runId"] for event in read_events(up.url)} == {"down+1"}
        assert up.end(signal.SIGINT) == (0, "1\n")


def test_ctrl_c_cancels_the_run_and_sigterm_releases_it(flows: Path, data_dir: Path) -> None:
    run = ("flows.py:asks", "--run-id", "served-1")
    with UpServed(flows, data_dir, *run) as released:
        until_status(released.url, "waiting-approval")
        assert released.end(signal.SIGTERM)[0] == 143
    with UpServed(flows, data_dir, *run, "--resume") as cancelled:
        until_status(cancelled.url, "waiting-approval")
        assert cancelled.end(signal.SIGINT)[0] == 130
    with UpServed(flows, data_dir, *run, "--resume", "--yes") as last:
        assert until_status(last.url, "finished")["output"] == "gone"
        last.talk.until(lambda line: "run finished; it stays served" in line)
        kinds = [event["type"] for event in read_events(last.url)]
        assert kinds.count("RunCancelled") == 1
        assert last.end(signal.SIGTERM)[0] == 0


def test_a_run_that_was_cancelled_over_http_stays_to_be_read(flows: Path, data_dir: Path) -> None:
    with UpServed(flows, data_dir, "flows.py:hangs") as up:
        ask(f"{up.url}/cancel", method="POST")
        until_status(up.url, "cancelled")
        up.talk.until(lambda line: "run cancelled; it stays served" in line)
        assert up.end(signal.SIGINT)[0] == 2


def test_a_run_in_its_workflows_own_database_is_steered_where_it_lives(
    flows: Path, data_dir: Path, database: str
) -> None:
    (flows / "orders.py").write_text(ORDERS, encoding="utf-8")
    with UpServed(flows, data_dir, "orders.py", ORDERS=database) as up:
        until_status(up.url, "waiting-approval")
        assert "runId" in ask(f"{up.url}/approve/pay", method="POST")
        up.talk.until(lambda line: "run finished; it stays served" in line)
        assert up.end(signal.SIGINT) == (0, '"sent"\n')


def test_the_token_is_asked_for_and_metrics_can_be_left_out(flows: Path, data_dir: Path) -> None:
    env = {"SMITHERS_API_KEY": TOKEN}
    with UpServed(flows, data_dir, "flows.py:asks", "--no-metrics", **env) as up:
        assert ask(f"{up.url}/health") == {"ok": True}
        assert ask(f"{up.url}/")["error"]["code"] == "UNAUTHORIZED"
        until_status(up.url, "waiting-approval", token=TOKEN)
        assert ask(f"{up.url}/metrics", token=TOKEN)["error"]["code"] == "NOT_FOUND"


def detached(flows: Path, data_dir: Path, *arguments: str, **env: str) -> Any:
    state = {"XDG_STATE_HOME": str(flows / "state")}
    place = ("--data-dir", str(data_dir))
    return run_command("up", *arguments, *place, cwd=flows, **{**state, **env})


def test_in_the_background_it_answers_when_the_command_returns(flows: Path, data_dir: Path) -> None:
    started = detached(flows, data_dir, "flows.py:asks", "--serve", "--port", "0", "-d")
    assert started.returncode == 0, started.stderr
    told = dict(line.split(maxsplit=1) for line in started.stdout.splitlines())
    pid = int(told["pid"])
    try:
        run = until_status(told["url"], "waiting-approval")
        assert run["runId"] == told["run"]
        assert os.getsid(pid) == pid  # no terminal's end ends it
        ask(f"{told['url']}/approve/go", method="POST")
        until_status(told["url"], "finished")
        log = Path(told["log"])
        until_said(log, "run finished; it stays served")
        assert log.stat().st_mode & 0o077 == 0
    finally:
        descriptor = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        with os.fdopen(descriptor) as file:
            wait_readable(file.fileno())
    assert log.read_text(encoding="utf-8").splitlines()[-1] == '"gone"'


def until_said(log: Path, text: str) -> None:
    until(lambda: text in log.read_text(encoding="utf-8"), text)


def test_what_keeps_it_from_the_background_is_told(flows: Path, data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = detached(flows, data_dir, "flows.py:asks", "--serve", "--port", port, "-d")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Address already in use" in refused.stderr
    misfit = detached(flows, data_dir, "flows.py:repeats", "--serve", "--port", "0", "-d")
    assert misfit.returncode == 4
    assert "word" in misfit.stderr
    assert "Traceback" not in refused.stderr + misfit.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-d"], "--detach is for a run that is served"),
        (["--port", "8080"], "--port is for a run that is served"),
        (["--no-metrics"], "--no-metrics is for a run that is served"),
        (["--serve", "--host", "0.0.0.0"], "SMITHERS_API_KEY"),
        (["--serve", "--port", "x"], "--port: must be a whole number"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flows: Path, arguments: list[str], word: str) -> None:
    result = run_command("up", "flows.py:asks", *arguments, cwd=flows)
    assert result.returncode == 4
    assert word in result.stderr
