"""The command: what each part of it says, prints and returns, against a real server."""

import json
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smithers.cli.main import app, run
from smithers.client import Client
from tests.support.serving import (
    COMMAND,
    LIMIT_S,
    Serving,
    Talk,
    clean_environment,
    run_command,
    until_none,
)

COMMANDS = sorted(
    [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]  # each has one
    + ["db upgrade", "db current"]
)
# It is loaded for as long as somebody wants, and would then run for ever.
SLOW = """
import asyncio, pathlib, time
from smithers import Task, workflow

HERE = pathlib.Path("FLOWS")
(HERE / "loading").touch()
while not (HERE / "go").exists():
    time.sleep(0.02)

@workflow
def slow(ctx):
    return Task("a", lambda: asyncio.sleep(600))
"""
INTERRUPTED = """
import os, signal, sys
from smithers.cli import command

class CtrlC:
    def find_spec(self, name, *_):
        if name == "smithers.cli.runs":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
command()
"""
READING = [
    ["ps"],
    ["inspect", "RUN"],
    ["why", "RUN"],
    ["events", "RUN"],
    ["frames", "RUN"],
    ["approvals"],
]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    server: Serving,
    own_logs: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    """Run a command in this process against the server: exit code, stdout, stderr."""
    for name in [name for name in os.environ if name.startswith(("SMITHERS_", "DATABASE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SMITHERS_URL", server.url)

    def call_it(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call_it


@pytest.fixture(scope="session")
def finished(server: Serving) -> str:
    """The id of a run that has finished."""
    with server.client() as client:
        return client.wait(client.start("examples/hello.py", {"name": "Ada"})).run_id


@pytest.fixture
def asking(client: Client) -> str:
    """The id of a run that waits for an approval."""
    run_id = client.start("tests/e2e/flows.py:asks", {})
    for event in client.stream(run_id):
        if event.type == "RunStatusChanged":
            break
    return run_id


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples(command: str, call: Call) -> None:
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert out.startswith(f"Usage: smithers {command}")
    assert out.index("Examples:\n\n    ") < out.index("Options:")


def test_help_and_version_are_quick_to_have(call: Call) -> None:
    assert call("--version")[1].startswith("smithers 0.")
    heavy = "import sys; import smithers.cli.main; print([m for m in {!r} if m in sys.modules])"
    names = ["aiohttp", "alembic", "asyncpg", "httpx2", "rich", "sqlalchemy", "uvloop"]
    result = subprocess.run(
        [COMMAND[0], "-c", heavy.format(names)],
        capture_output=True,
        check=True,
        env=clean_environment(),
        text=True,
    )
    assert result.stdout == "[]\n"


def test_ctrl_c_while_modules_load_is_no_traceback() -> None:
    result = subprocess.run(
        [COMMAND[0], "-c", INTERRUPTED],
        capture_output=True,
        check=False,
        env=clean_environment(),
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bogus"],
        ["pss"],
        ["inspect"],
        ["ps", "--limit", "0"],
        ["ps", "--status", "bogus"],
        ["start", "../outside.py"],
        ["start", "examples/hello.py", "--run-id", "a b"],
        ["start", "examples/hello.py", "--key", ""],
        ["ps", "--server", "nowhere"],
        ["ps", "--token", " "],
        ["up"],
        ["serve", "--port", "x"],
    ],
)
def test_a_usage_error_is_4_and_a_sentence(arguments: list[str], call: Call) -> None:
    code, out, err = call(*arguments)
    assert code == 4
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", READING)
def test_what_reads_prints_json_when_asked(arguments: list[str], call: Call, finished: str) -> None:
    spelled = [finished if word == "RUN" else word for word in arguments]
    code, out, err = call(*spelled, "--json")
    assert (code, err) == (0, "")
    values = [json.loads(line) for line in out.splitlines()]
    assert values
    if arguments[0] != "events":
        assert len(values) == 1  # one document


@pytest.mark.parametrize("arguments", READING)
def test_what_reads_prints_plain_lines_where_no_terminal_is(
    arguments: list[str], call: Call, finished: str
) -> None:
    spelled = [finished if word == "RUN" else word for word in arguments]
    code, out, _ = call(*spelled)
    assert code == 0
    assert "\x1b" not in out


def test_ps_lists_the_newest_run_first(call: Call, client: Client) -> None:
    run_id = client.wait(client.start("examples/hello.py", {})).run_id
    lines = call("ps", "--workflow", "hello")[1].splitlines()
    assert lines[0].split() == ["RUN", "WORKFLOW", "STATUS", "AGE", "TOOK", "BLOCKED", "BY"]
    assert lines[1].split()[:3] == [run_id, "hello", "finished"]
    assert call("ps", "--status", "failed", "--workflow", "hello")[2] == "no runs\n"


def test_inspect_shows_the_output_of_each_node(call: Call, finished: str) -> None:
    _, out, _ = call("inspect", finished)
    assert "output    HELLO, ADA!" in out
    assert [line.split()[:2] for line in out.splitlines()[-2:]] == [
        ["greet", "finished"],
        ["shout", "finished"],
    ]


def test_inspect_shows_where_a_run_failed(call: Call, client: Client) -> None:
    run_id = client.wait(client.start("tests/e2e/flows.py:breaks", {})).run_id
    lines = call("inspect", run_id)[1].splitlines()
    assert lines[-1] == "RuntimeError: the bridge is out"
    assert 'raise RuntimeError("the bridge is out")' in lines[-2]
    assert "in break_down" in lines[-3]


def test_events_are_chosen_by_node_and_type(call: Call, finished: str) -> None:
    _, out, _ = call("events", finished, "--json", "--node", "shout", "--type", "NodeFinished")
    (event,) = map(json.loads, out.splitlines())
    assert (event["type"], event["nodeId"]) == ("NodeFinished", "shout")
    assert "there is no event type Foo" in call("events", finished, "--type", "Foo")[2]


def test_events_of_a_run_that_goes_on_end_without_follow(call: Call, asking: str) -> None:
    _, out, _ = call("events", asking, "--json")
    assert json.loads(out.splitlines()[-1])["status"] == "waiting-approval"


def test_a_run_is_started_on_the_server(call: Call, client: Client) -> None:
    given = ("examples/hello.py", "--input", '{"name": "Ada"}')
    code, out, err = call("start", *given, "--run-id", "started-7", "--key", "k-7")
    assert (code, out) == (0, "started-7\n")
    assert "smithers events started-7 --follow" in err
    assert client.wait("started-7").status == "finished"
    assert json.loads(
        call("start", *given, "--run-id", "started-7", "--key", "k-7", "--json")[1]
    ) == {"runId": "started-7"}
    code, _, err = call("start", "examples/fan_out.py", "--input", '{"count": "many"}')
    assert code == 4
    assert '{"path": ["count"]' in err


def test_a_question_is_shown_in_full(call: Call, client: Client) -> None:
    run_id = client.start("tests/e2e/flows.py:invites", {})
    for event in client.stream(run_id):
        if event.type == "ApprovalRequested":
            break
    _, out, err = call("why", run_id)
    assert "smithers answer" in out
    assert f"smithers approvals {run_id}" in err
    assert '"properties": {"name"' in call("approvals", run_id)[1]
    assert call("approvals", "nobody")[1] == ""
    code, _, err = call("answer", run_id, "guest", "--value", "{}")
    assert code == 4
    assert '\\"name\\" is a required property' in err
    client.answer(run_id, "guest", {"name": "Ann"})
    client.wait(run_id)


def test_a_run_that_is_over_does_not_go_on(call: Call, finished: str, asking: str) -> None:
    code, _, err = call("resume", finished)
    assert code == 1
    assert "is finished: nothing is left to do" in err
    assert "is waiting-approval" in call("resume", asking)[2]
    call("cancel", asking)


def test_an_approval_is_listed_and_given(call: Call, asking: str) -> None:
    assert re.search(rf"{asking}  go +[0-9.]+ s +Shall we go\?", call("approvals")[1])
    assert call("approve", asking, "go", "--note", "yes", "--by", "Ann")[0] == 0
    _, out, _ = call("events", asking, "--follow", "--json", "--type", "ApprovalGranted")
    granted = json.loads(out)
    assert (granted["note"], granted["decidedBy"]) == ("yes", "Ann")
    assert '"gone"' in call("inspect", asking, "--json")[1]


def test_a_choice_that_nobody_asked_for_is_refused(call: Call, asking: str) -> None:
    code, _, err = call("approve", asking, "go", "--select", "left")
    assert code == 4
    assert "This asks for a yes or a no: there are no options to choose from." in err
    assert call("approve", asking, "go")[0] == 0


def test_why_names_the_command_that_unblocks(call: Call, asking: str) -> None:
    out = call("why", asking)[1]
    assert f"\n  smithers approve {asking} go\n" in out
    call("cancel", asking)


def test_what_is_denied_fails_and_cannot_be_approved(call: Call, asking: str) -> None:
    assert call("deny", asking, "go")[0] == 0
    assert call("events", asking, "--follow")[0] == 0
    assert call("inspect", asking, "--json")[1].count('"failed"') >= 1
    code, _, err = call("approve", asking, "go")
    assert code == 1
    assert err.startswith("error: ")
    assert f"hint: smithers inspect {asking}" in err


def test_a_signal_carries_json(call: Call, client: Client) -> None:
    run_id = client.start("tests/e2e/flows.py:listens", {})
    assert json.loads(call("signal", run_id, "paid", "--data", "[1]", "--json")[1])["seq"] == 0
    assert client.wait(run_id).output == [1]
    events = [json.loads(line) for line in call("events", run_id, "--json")[1].splitlines()]
    assert [event["id"] for event in events] == list(range(len(events)))
    assert [event["seq"] for event in events if event["type"] == "SignalReceived"] == [0]
    assert call("signal", run_id, "paid", "--data", "{")[0] == 4
    for sent, output in (((), {}), (("--data", "null"), None)):
        run_id = client.start("tests/e2e/flows.py:listens", {})
        assert call("signal", run_id, "paid", *sent)[0] == 0
        assert client.wait(run_id).output == output


def test_a_run_is_cancelled_and_resumed(call: Call, client: Client, asking: str) -> None:
    assert call("cancel", asking)[0] == 0
    assert client.wait(asking).status == "cancelled"
    assert call("cancel", asking)[0] == 1
    assert call("resume", asking)[0] == 0
    assert client.get(asking).status != "cancelled"
    call("cancel", asking)


@pytest.mark.parametrize(
    "command", ["inspect", "events", "frames", "approvals", "cancel", "resume"]
)
@pytest.mark.parametrize("run_id", ["nobody", "."])
def test_a_run_that_is_not_there_is_1_with_a_hint(command: str, run_id: str, call: Call) -> None:
    code, out, err = call(command, run_id)
    assert (code, out) == (1, "")
    assert "hint: `smithers ps`" in err


def test_a_run_that_asks_nothing_has_no_approvals(call: Call, finished: str) -> None:
    assert call("approvals", finished) == (0, "", "nothing waits for an approval\n")


def test_a_server_that_is_not_there_is_1_with_a_hint(call: Call) -> None:
    code, _, err = call("ps", "--server", "http://127.0.0.1:9")
    assert code == 1
    assert "no server answers at http://127.0.0.1:9" in err
    assert "hint: start one with `smithers serve`" in err


def test_graph_renders_without_running(call: Call) -> None:
    code, out, _ = call("graph", "examples/fan_out.py", "--input", '{"count": 2}')
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["word-0", "word-1", "sum"]
    tree = json.loads(call("graph", "examples/hello.py", "--json")[1])
    assert tree["tag"] == "smithers:workflow"
    code, _, err = call("graph", "examples/fan_out.py", "--input", '{"count": "many"}')
    assert (code, "count" in err) == (4, True)


def test_doctor_and_db_look_at_the_servers_database(call: Call, server: Serving) -> None:
    place = ("--data-dir", str(server.data_dir))
    findings = json.loads(call("doctor", *place, "--json")[1])
    assert {finding["verdict"] for finding in findings} == {"ok"}
    assert {"schema", "commit", "notifications", "server"} <= {each["name"] for each in findings}
    assert call("db", "upgrade", *place)[0] == 0
    assert json.loads(call("db", "current", *place, "--json")[1])["isCurrent"]


@pytest.mark.parametrize("command", ["check", "db current", "db prune --older-than 1d"])
def test_who_only_looks_makes_no_database(command: str, call: Call, tmp_path: Path) -> None:
    root, place = tmp_path / "root", tmp_path / "data"
    root.mkdir()
    code, _, err = call(*command.split(), "--root-dir", str(root), "--data-dir", str(place))
    assert code == 1
    assert f"none is in {place}" in err
    assert "hint: use the server's --data-dir" in err
    assert not place.exists()


def up(server: Serving, flows: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("up", *arguments, "--data-dir", str(server.data_dir), cwd=flows)


def test_up_prints_the_result_on_stdout_and_the_talk_on_stderr(
    server: Serving, flows: Path
) -> None:
    given = '{"word": "ho", "count": 2}'
    result = up(server, flows, "flows.py:repeats", "--input", given)
    assert (result.returncode, result.stdout) == (0, '"ho ho"\n')
    assert "run finished" in result.stderr


def test_up_says_how_a_failed_run_goes_on(server: Serving, flows: Path) -> None:
    result = up(server, flows, "flows.py:breaks", "--run-id", "breaks-1")
    assert (result.returncode, result.stdout) == (1, "")
    assert "the bridge is out" in result.stderr
    assert re.search(r'File "flows.py@\w+", line \d+, in ', result.stderr)
    assert "smithers up flows.py:breaks --run-id breaks-1 --resume" in result.stderr


def test_up_leaves_a_question_open_where_nobody_sits_and_takes_it_up_again(
    server: Serving, flows: Path
) -> None:
    (flows / "flows.py").rename(flows / "my flows.py")
    left = up(server, flows, "my flows.py:asks", "--run-id", "asks-1")
    assert (left.returncode, left.stdout) == (3, "")
    (hint,) = [line for line in left.stderr.splitlines() if "smithers up" in line]
    assert "--resume --yes" in hint
    done = run_command(*shlex.split(hint)[1:], cwd=flows)
    assert (done.returncode, done.stdout) == (0, '"gone"\n')


def test_up_approves_what_is_asked_after_a_sleep_when_it_resumes(
    server: Serving, flows: Path
) -> None:
    left = up(server, flows, "flows.py:naps", "--run-id", "naps-1")
    assert left.returncode == 3
    assert "run waiting-timer" in left.stderr
    again = up(server, flows, "flows.py:naps", "--run-id", "naps-1", "--resume")
    assert again.returncode == 3
    assert "go waiting-approval" in again.stderr  # the old events were shown, to the last
    done = up(server, flows, "flows.py:naps", "--run-id", "naps-1", "--resume", "--yes")
    assert (done.returncode, done.stdout) == (0, '"gone"\n')


def test_up_with_yes_takes_the_first_choice_and_the_declared_order(
    server: Serving, flows: Path
) -> None:
    left = up(server, flows, "flows.py:chooses", "--run-id", "chooses-1")
    assert left.returncode == 3
    assert "its options are: red, white; --yes takes the first" in left.stderr
    done = up(server, flows, "flows.py:chooses", "--run-id", "chooses-1", "--resume", "--yes")
    assert (done.returncode, json.loads(done.stdout)) == (0, ["red", ["Ann", "Bob"]])


def test_up_with_yes_leaves_a_form_to_a_person_and_says_how(server: Serving, flows: Path) -> None:
    left = up(server, flows, "flows.py:invites", "--run-id", "invites-1", "--yes")
    assert (left.returncode, left.stdout) == (3, "")
    assert "smithers answer invites-1 guest --value JSON" in left.stderr
    with server.client() as client:
        client.answer("invites-1", "guest", {"name": "Ann"})
    done = up(server, flows, "flows.py:invites", "--run-id", "invites-1", "--resume")
    assert (done.returncode, done.stdout) == (0, '"hello"\n')


class Terminal:
    """An `up` that somebody sits at."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._mine, theirs = os.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "up", *arguments],
            cwd=cwd,
            env=clean_environment(TERM="dumb"),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self._unread = ""

    def until(self, text: str) -> None:
        """Wait until a text has been shown, after the one before."""
        while text not in self._unread:
            is_there, _, _ = select.select([self._mine], [], [], LIMIT_S)
            assert is_there, self._unread
            self._unread += os.read(self._mine, 65_536).decode()
        self._unread = self._unread.partition(text)[2]

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._mine, text.encode())

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the result."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        os.close(self._mine)
        return self.process.returncode, out


def test_a_prompt_whose_time_is_over_makes_way_for_the_next_one(
    server: Serving, flows: Path
) -> None:
    place = ("--data-dir", str(server.data_dir))
    terminal = Terminal("flows.py:moves_on", *place, cwd=flows)
    terminal.until("Approve? [y/n] ")
    terminal.type("2")  # not entered: it answers no other question
    terminal.until("the question now was denied by its time-out")
    terminal.until("Which one? [1-2, n to deny] ")
    terminal.type("1\n")
    terminal.until("Note (may be empty): ")
    terminal.type("\n")
    assert terminal.end() == (0, '"red"\n')


def test_ctrl_c_at_a_prompt_cancels_the_run(server: Serving, flows: Path) -> None:
    terminal = Terminal("flows.py:asks", "--data-dir", str(server.data_dir), cwd=flows)
    terminal.until("Approve? [y/n] ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("cancelled; go on with")
    assert terminal.end() == (130, "")


def test_up_moves_a_subflow_whose_workflow_names_another_queue(
    server: Serving, flows: Path
) -> None:
    done = up(server, flows, "flows.py:sends")
    assert (done.returncode, done.stdout) == (0, "3\n")


def test_up_follows_a_run_to_what_it_goes_on_as(server: Serving, flows: Path) -> None:
    left = up(server, flows, "flows.py:counts_down", "--run-id", "rounds")
    assert left.returncode == 3
    assert "run rounds continues as rounds+1" in left.stderr
    hint = "smithers up flows.py:counts_down --run-id rounds+1 --resume --yes"
    assert hint in left.stderr
    first = "flows.py:counts_down", "--run-id", "rounds", "--resume"
    again = up(server, flows, *first)
    assert again.returncode == 3
    assert "run rounds continues as rounds+1" in again.stderr
    assert hint in again.stderr
    done = up(server, flows, *hint.split()[2:])
    assert (done.returncode, done.stdout) == (0, "1\n")
    shown = up(server, flows, *first)
    assert (shown.returncode, shown.stdout) == (0, "1\n")


def test_up_says_what_the_runs_below_its_run_wait_for_and_goes_on_with_them(
    server: Serving, flows: Path
) -> None:
    left = up(server, flows, "flows.py:asks_twice", "--run-id", "twice")
    assert (left.returncode, left.stdout) == (3, "")
    child = re.search(r"run (twice\.\w+) waits for an approval: go", left.stderr)
    assert child is not None
    assert f"waiting-event: waits for its run {child[1]} to end" in left.stderr
    again = up(server, flows, "flows.py:asks_twice", "--run-id", "twice", "--resume", "--yes")
    assert again.returncode == 3
    (command,) = re.findall(r"smithers (signal twice\.\w+ paid)", again.stderr)
    with server.client() as client:
        client.signal(*command.split()[1:])
    done = up(server, flows, "flows.py:asks_twice", "--run-id", "twice", "--resume")
    assert (done.returncode, done.stdout) == (0, '"both"\n')


def test_up_asks_for_what_a_subflow_goes_on_as(server: Serving, flows: Path) -> None:
    done = up(server, flows, "flows.py:hands_over", "--yes")
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nothing.py"], "there is no file nothing.py"),
        (["flows.py:repeats", "--input", "{"], "--input is not JSON"),
        (["flows.py:repeats", "--input", "[]"], "must be a JSON object"),
        (["flows.py:repeats", "--input", "@nothing.json"], "nothing.json"),
        (["flows.py:asks", "--resume"], "--run-id"),
        (["flows.py:asks", "--run-id", "/"], "a run's id has"),
        (["flows.py:asks", "--workers", "x"], "--workers"),
    ],
)
def test_up_refuses_bad_input_before_anything_is_started(
    arguments: list[str], word: str, call: Call, flows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flows)
    code, _, err = call("up", *arguments)
    assert code == 4
    assert word in err


def test_up_says_where_an_input_does_not_fit(server: Serving, flows: Path) -> None:
    result = up(server, flows, "flows.py:repeats", "--input", '{"count": "many"}')
    assert result.returncode == 4
    assert "word" in result.stderr
    assert "count" in result.stderr
    assert "Traceback" not in result.stderr


def test_up_does_not_take_over_what_a_server_began(
    server: Serving, flows: Path, finished: str
) -> None:
    result = up(server, flows, "flows.py:asks", "--run-id", finished, "--resume")
    assert result.returncode == 4
    assert f"hint: smithers resume {finished}" in result.stderr


@pytest.fixture
def hanging(server: Serving, flows: Path) -> Iterator[tuple[subprocess.Popen[str], Talk]]:
    """An `up` whose second task hangs."""
    process = subprocess.Popen(
        [*COMMAND, "up", "flows.py:hangs", "--data-dir", str(server.data_dir)],
        cwd=flows,
        env=clean_environment(TEST_MARK=f"up-{os.getpid()}"),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    talk = Talk(process)
    talk.until(lambda line: "hang in-progress" in line)
    yield process, talk
    process.wait(LIMIT_S)
    talk.close()
    until_none(f"TEST_MARK=up-{os.getpid()}")


def test_ctrl_c_cancels_what_is_up(hanging: tuple[subprocess.Popen[str], Talk]) -> None:
    process, talk = hanging
    process.send_signal(signal.SIGINT)
    talk.until(lambda line: line.startswith("cancelled; go on with"))
    assert process.wait(LIMIT_S) == 130


def test_ctrl_c_cancels_what_is_still_being_loaded(server: Serving, flows: Path) -> None:
    (flows / "slow.py").write_text(SLOW.replace("FLOWS", str(flows)), encoding="utf-8")
    process = subprocess.Popen(
        [*COMMAND, "up", "slow.py", "--data-dir", str(server.data_dir)],
        cwd=flows,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    talk = Talk(process)
    while not (flows / "loading").exists():
        time.sleep(0.02)
        assert process.poll() is None, talk.lines
    process.send_signal(signal.SIGINT)
    talk.until(lambda line: "cancelling the run" in line)
    (flows / "go").touch()
    talk.until(lambda line: line.startswith("cancelled; go on with"))
    assert process.wait(LIMIT_S) == 130
    talk.close()
    assert not any("never retrieved" in line for line in talk.lines)


def test_sigterm_releases_what_is_up(
    hanging: tuple[subprocess.Popen[str], Talk], client: Client
) -> None:
    process, talk = hanging
    process.send_signal(signal.SIGTERM)
    command = talk.until(lambda line: line.strip().startswith("smithers up"))
    assert process.wait(LIMIT_S) == 143
    run_id = command.split("--run-id ")[1].split()[0]
    assert client.get(run_id).status == "running"  # its own queue keeps it for --resume
    client.cancel(run_id)


def test_the_doc_names_every_command_and_exit_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"`smithers {command}" in text, command
    rows: list[Any] = [line.split("|")[1].strip() for line in text.splitlines() if "|" in line]
    assert {"0", "1", "2", "3", "4", "130", "143"} <= set(rows)
