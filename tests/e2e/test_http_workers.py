"""Several HTTP processes on one port: they are one server to whoever speaks to it, whichever of them is killed."""

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serving import (
    LIMIT_S,
    Serving,
    find_modules,
    is_event,
    run_command,
    serving,
    until_none,
)

FLAGS = ("--http-workers", "2", "--port", "0", "--workers", "1", "--drain-timeout", "30")


@pytest.fixture
def pair(flows: Path, database: str) -> Iterator[Serving]:
    with Serving(flows, None, *FLAGS, DATABASE_URL=database) as server:
        yield server


def read_metric(server: Serving, pattern: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=LIMIT_S) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


STARTED = r'smithers_http_requests_total\{method="POST",route="/v1/runs",status="200"\}'
GATEWAYS = r'smithers_processes\{role="gateway"\}'


def until_two(server: Serving, *, without: int | None = None) -> list[int]:
    """Wait until two HTTP processes serve, the one that was told to end not being one of them; return their pids."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        pids = find_modules(server.mark, "gateway")
        if len(pids) == 2 and without not in pids and read_metric(server, GATEWAYS) == 2:
            return pids
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def test_they_are_one_server_and_its_metrics_are_those_of_all(pair: Serving) -> None:
    until_two(pair)
    run_ids = []
    for _ in range(20):  # each on a connection of its own: whoever is free takes it
        with pair.client() as client:
            run_ids.append(client.start("flows.py:repeats", {"word": "ho"}))
    with pair.client() as client:
        assert {client.wait(run_id).output for run_id in run_ids} == {"ho"}
    assert read_metric(pair, STARTED) == 20
    assert read_metric(pair, "smithers_runs_finished_total") == 20


def test_one_that_is_killed_is_replaced_and_nothing_accepted_or_counted_is_lost(
    pair: Serving,
) -> None:
    stop = threading.Event()
    outcomes: Counter[str] = Counter()
    accepted: list[str] = []

    def start_runs() -> None:
        body = json.dumps({"workflowPath": "flows.py:repeats", "input": {"word": "ho"}}).encode()
        while not stop.wait(0.05):
            try:
                request = urllib.request.Request(f"{pair.url}/v1/runs", body, method="POST")
                with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
                    accepted.append(json.load(answer)["runId"])
                    outcomes["accepted"] += 1
            except urllib.error.HTTPError as error:
                error.close()
                outcomes[f"status {error.code}"] += 1
            except OSError:  # what the killed one had in its hands
                outcomes["cut"] += 1

    threads = [threading.Thread(target=start_runs) for _ in range(4)]
    for thread in threads:
        thread.start()
    kill_count = 3
    try:
        for _ in range(kill_count):
            victim = until_two(pair)[0]
            before = read_metric(pair, STARTED)
            os.kill(victim, signal.SIGKILL)
            until_two(pair, without=victim)
            assert read_metric(pair, STARTED) >= before
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert outcomes["cut"] <= kill_count * len(threads)
    assert set(outcomes) <= {"accepted", "cut"}
    deadline = time.monotonic() + LIMIT_S
    with pair.client() as client:
        while accepted := [each for each in accepted if client.get(each).status != "finished"]:
            assert time.monotonic() < deadline, accepted
    assert read_metric(pair, r'smithers_processes_died_total\{module="gateway"\}') == kill_count
    died = json.loads(pair.talk.until(is_event("process_died")))
    assert (died["module"], died["exit_code"]) == ("gateway", -signal.SIGKILL)


def test_one_that_is_told_to_end_ends_its_streams_cleanly_and_is_replaced(pair: Serving) -> None:
    with pair.client() as client:
        run_id = client.start("flows.py:listens", {})
        events = client.stream(run_id)
        seen = []
        for event in events:
            seen.append(event.seq)
            if event.type == "NodeWaitingEvent":
                break
        for victim in until_two(pair):
            os.kill(victim, signal.SIGTERM)
            until_two(pair, without=victim)
        client.signal(run_id, "paid", 1)
        seen += [event.seq for event in events]
    assert seen == list(range(len(seen)))


def test_all_of_them_drain_with_the_server(pair: Serving) -> None:
    with pair.client() as client:
        run_id = client.start("flows.py:listens", {})
        streams = [urllib.request.urlopen(f"{pair.url}/v1/runs/{run_id}/events") for _ in range(6)]
    assert pair.stop() == 0
    for stream in streams:
        with stream:
            text = stream.read()  # to its clean end: a cut would raise
        assert text.endswith(b"\n\n")
    until_none(pair.mark)


def test_after_kill_9_of_the_server_none_of_them_is_left(flows: Path) -> None:
    with serving(flows, *FLAGS) as server:
        until_two(server)
        server.stop(signal.SIGKILL)
        until_none(server.mark)


def test_what_is_wrong_is_said_once_and_before_they_are_started(
    flows: Path, database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = tmp_path_factory.mktemp("kept") / "tokens"
    tokens.write_text("nonsense\n", encoding="utf-8")
    result = run_command(
        "gateway",
        *FLAGS[:2],
        "--tokens-file",
        str(tokens),
        cwd=flows,
        DATABASE_URL=database,
    )
    assert result.returncode == 1
    assert result.stderr.count("line 1 of the tokens file") == 1
    assert "Traceback" not in result.stderr
