"""`smithers serve` as a process: how it starts, what ends it, and what it leaves behind."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from bench.ports import free_port
from smithers.client import AccessRefused, Client, Event
from tests.support.data_dirs import make_data_dir
from tests.support.repositories import make_repository
from tests.support.serving import (
    TREE,
    Serving,
    find_fork_server,
    find_modules,
    find_processes,
    is_event,
    run_command,
    serving,
    until_none,
)

FLAGS = ("--port", "0", "--workers", "1", "--drain-timeout", "1")
STATISTICS_AGAIN = ("NodeStarted", "statistics", 2)
COUNTS = "    authors = Counter("
WAITS_AND_COUNTS = f"""
    while current_task().attempt == 2:
        current_task().cancelled.wait(60)
{COUNTS}"""


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """One database for all servers here: each has its own runs, and finds those of the others ended or parked."""
    place = make_data_dir()
    yield place
    until_none(str(place))  # the keeper stops a Postgres whose users were killed
    shutil.rmtree(place)


def start_hanging(client: Client) -> str:
    run_id = client.start("flows.py:hangs", {})
    until_started(client.stream(run_id), "hang")
    return run_id


def cancel_unowned(server: Serving, run_id: str) -> None:
    """Cancel a run that was given back: nobody holds it, so that this is done at once."""
    with server.client() as client:
        assert client.get(run_id).status == "running"
        client.cancel(run_id)
        assert client.get(run_id).status == "cancelled"


def until_started(events: Iterator[Event], node_id: str) -> None:
    for event in events:
        if event.type == "NodeStarted" and event.node_id == node_id:
            return


def test_it_says_where_everything_is_and_drains_on_sigterm(flows: Path, data_dir: Path) -> None:
    with Serving(flows, data_dir, *FLAGS) as server:
        assert server.started["root"] == str(flows)
        assert server.started["data"] == str(data_dir)
        with server.client() as client:
            assert client.is_ready()
            ready = httpx2.get(f"{server.url}/ready").json()
            assert ready["sandbox"].startswith(("jailed", "unavailable: "))
            run_id = client.start("flows.py:repeats", {"word": "ho", "count": 3})
            assert client.wait(run_id).output == "ho ho ho"
        assert server.stop() == 0
    until_none(server.mark)
    until_none(str(data_dir))  # nor a Postgres


def test_ctrl_c_gives_back_what_does_not_end(flows: Path, data_dir: Path) -> None:
    with Serving(flows, data_dir, *FLAGS) as server, server.client() as client:
        run_id = start_hanging(client)
        assert server.stop(signal.SIGINT) == 0
    until_none(server.mark)
    with Serving(flows, data_dir, *FLAGS, "--workers", "0") as next_one:
        cancel_unowned(next_one, run_id)


def test_a_signal_to_all_of_its_processes_lets_what_is_under_way_end(
    flows: Path, data_dir: Path, tmp_path: Path
) -> None:
    """A service manager tells every process of a group, the fork server and the children too."""
    flag = tmp_path / "flag"
    patient = (*FLAGS, "--drain-timeout", "60")
    with Serving(flows, data_dir, *patient) as server, server.client() as client:
        run_id = client.start("flows.py:sleeps_once", {"path": str(flag)})
        until_started(client.stream(run_id), "wait")
        for pid in find_processes(server.mark):
            if b"postgres" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
        server.talk.until(is_event("pool_drains"))
        flag.touch()
        assert server.process.wait(60) == 0
        server.talk.close()
    ended = [json.loads(line) for line in server.talk.lines if is_event("child_ended")(line)]
    assert [child["exit_code"] for child in ended] == [0]
    assert not any(map(is_event("process_died"), server.talk.lines))
    with (
        Serving(flows, data_dir, *FLAGS, "--workers", "0") as next_one,
        next_one.client() as client,
    ):
        assert client.get(run_id).status == "finished"


def test_a_second_signal_does_not_wait(flows: Path, data_dir: Path) -> None:
    with Serving(flows, data_dir, *FLAGS, "--drain-timeout", "600") as server:
        with server.client() as client:
            run_id = start_hanging(client)
        server.process.send_signal(signal.SIGTERM)
        server.talk.until(is_event("server_stops"))
        assert server.stop() == 0
    until_none(server.mark)
    with Serving(flows, data_dir, *FLAGS) as next_one, next_one.client() as client:
        client.cancel(run_id)
        assert client.wait(run_id).status == "cancelled"


def test_after_kill_9_the_pool_drains_and_a_restart_goes_on(
    flows: Path, data_dir: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    with Serving(flows, data_dir, *FLAGS) as first, first.client() as client:
        run_id = client.start("flows.py:sleeps_once", {"path": str(flag)})
        until_started(client.stream(run_id), "wait")
        pid = client.get_node(run_id, "first").output
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    until_none(first.mark)  # the pool noticed the end of its stdin
    flag.touch()
    with Serving(flows, data_dir, *FLAGS) as second, second.client() as client:
        assert client.wait(run_id).status == "finished"
        assert client.get_node(run_id, "first").output == pid  # it was not run again


def test_a_pool_that_was_killed_is_started_again(
    flows: Path, data_dir: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    with Serving(flows, data_dir, *FLAGS) as server, server.client() as client:
        run_id = client.start("flows.py:sleeps_once", {"path": str(flag)})
        until_started(client.stream(run_id), "wait")
        (pool,) = find_modules(server.mark, "worker")
        os.kill(pool, signal.SIGKILL)
        died = json.loads(server.talk.until(is_event("process_died")))
        assert died["exit_code"] == -signal.SIGKILL
        flag.touch()
        assert client.wait(run_id).status == "finished"


def test_a_pool_whose_fork_server_was_killed_is_started_again(
    flows: Path, data_dir: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    with Serving(flows, data_dir, *FLAGS) as server, server.client() as client:
        run_id = client.start("flows.py:sleeps_once", {"path": str(flag)})
        until_started(client.stream(run_id), "wait")
        os.kill(find_fork_server(server.mark), signal.SIGKILL)
        server.talk.until(is_event("process_died"))
        flag.touch()
        assert client.wait(run_id).status == "finished"


def test_a_stream_goes_on_where_it_was_after_a_restart(flows: Path, data_dir: Path) -> None:
    flags = (*FLAGS, "--port", str(free_port()))
    with Serving(flows, data_dir, *flags) as first, first.client() as client:
        run_id = client.start("flows.py:listens", {})
        events = client.stream(run_id)
        seen = []
        for event in events:
            seen.append(event.seq)
            if event.type == "NodeWaitingEvent":
                break
        assert first.stop() == 0
        with Serving(flows, data_dir, *flags):
            client.signal(run_id, "paid", {"amount": 3})
            seen += [event.seq for event in events]
            assert client.get(run_id).output == {"amount": 3}
    assert seen == list(range(len(seen)))


def test_workers_do_not_see_the_servers_secrets(flows: Path) -> None:
    env = {
        "SMITHERS_API_KEY": "hush",
        "OTHER_URL": "postgresql://me:hush@there/db",
        "PLAIN_URL": "https://example.org",
        "KEPT_URL": "redis://me:hush@there",
    }
    with (
        serving(flows, "--pass-env", "KEPT_URL", **env) as server,
        server.client(token="hush") as client,
    ):
        names = client.wait(client.start("flows.py:tells_environment", {})).output
        with server.client() as stranger, pytest.raises(AccessRefused):
            stranger.list_runs()
    assert {"PLAIN_URL", "KEPT_URL", "PATH"} <= set(names)
    assert not {"SMITHERS_API_KEY", "SMITHERS_LOG_FORMAT", "OTHER_URL"} & set(names)


def test_a_port_that_others_reach_needs_a_token(flows: Path, tmp_path: Path) -> None:
    unborn = tmp_path.parent / f"{tmp_path.name}-data"
    result = run_command(
        "serve", "--host", "0.0.0.0", "--root-dir", str(flows), "--data-dir", str(unborn)
    )
    assert result.returncode == 4
    assert "SMITHERS_API_KEY" in result.stderr
    assert not unborn.exists()  # nothing was started


def test_an_old_schema_is_refused_with_the_command_that_mends_it(
    postgres_server: str, flows: Path
) -> None:
    refused = run_command("serve", "--root-dir", str(flows), DATABASE_URL=postgres_server)
    assert refused.returncode == 1
    assert "smithers db upgrade" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_worker_on_a_bare_directory_runs_what_only_the_gateway_has(
    database: str, flows: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bare, env = tmp_path_factory.mktemp("bare"), {"DATABASE_URL": database}
    (flows / "words.py").write_text("from flows import repeats\n\nworkflow = repeats\n")
    with (
        Serving(flows, None, "--port", "0", command="gateway", **env) as gateway,
        Serving(bare, None, "--workers", "1", command="worker", **env) as worker,
        gateway.client() as client,
    ):
        run_id = client.start("words.py", {"word": "ho"})
        assert client.wait(run_id).output == "ho"
        assert list(bare.iterdir()) == []
        assert worker.stop() == 0
        assert gateway.stop() == 0
    until_none(worker.mark)


@pytest.mark.parametrize("half", ["gateway", "worker"])
def test_a_half_needs_a_database(half: str) -> None:
    result = run_command(half)
    assert result.returncode == 4
    assert "DATABASE_URL: must be set" in result.stderr


def test_kill_9_of_everything_in_the_middle_costs_no_node_and_no_event(tmp_path: Path) -> None:
    """The release notes of a repository, with server, workers and Postgres killed while they are written."""
    repository = make_repository(tmp_path, *[f"feat: thing {number}" for number in range(30)])
    notes = (TREE / "examples" / "release_notes.py").read_text(encoding="utf-8")
    assert notes.count(COUNTS) == 1
    (tmp_path / "release_notes.py").write_text(notes.replace(COUNTS, WAITS_AND_COUNTS))
    data_dir = make_data_dir()
    request = {"repository": str(repository), "output": "NOTES.md"}
    try:
        with Serving(tmp_path, data_dir, *FLAGS) as first, first.client() as client:
            run_id = client.start("release_notes.py", request)
            for event in client.stream(run_id):
                # The statistics, which fail once: all is under way, and stays so.
                if (event.type, event.node_id, event.attempt) == STATISTICS_AGAIN:
                    break
            for pid in {*find_processes(first.mark), *find_processes(str(data_dir))}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            first.process.wait()
            first.talk.close()
        with Serving(tmp_path, data_dir, *FLAGS) as second, second.client() as client:
            events = []
            for event in client.stream(run_id):
                events.append(event)
                if event.type == "NodeWaitingApproval":
                    client.approve(run_id, "publish")
            assert client.get(run_id).status == "finished"
            assert second.stop() == 0
        until_none(str(data_dir))
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    assert [event.seq for event in events] == list(range(len(events)))
    done = Counter((e.node_id, e.iteration) for e in events if e.type == "NodeFinished")
    assert set(done.values()) == {1}
    assert {"read-history", "statistics", "draft-features", "publish", "write"} <= {
        node_id for node_id, _ in done
    }
    assert "RunAutoResumed" in {event.type for event in events}
    assert "Thing 29" in (tmp_path / "NOTES.md").read_text(encoding="utf-8")
