"""What workflows, tools and models have said reaches a terminal as text, never as orders to it."""

import io
import json
import signal
import unicodedata
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smithers.cli import asking, console, main, progress
from smithers.cli.asking import Answer
from smithers.cli.runs import event_line
from smithers.client import Approval, Event, Node, Run, Why
from smithers.states import RunStatus
from smithers.texts import printable

HOSTILE = "hi\x1b]0;pwned\x07\x1b[2J\x9b31m\r\x7fAPPROVED \u202egnp.exe"
SHOWN = r"hi\u001b]0;pwned\u0007\u001b[2J\u009b31m"  # and on
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def event(event_type: str, **fields: Any) -> Event:
    sent = {"type": event_type, "runId": "r", "timestampMs": 1000, "seq": 0, "iteration": 0}
    return Event.model_validate({**sent, **fields})


def orders_in(text: str) -> set[str]:
    """Find what a terminal does not show: control characters, and turns of the direction of writing."""
    return {
        character
        for character in text
        if unicodedata.category(character) == "Cc"
        or unicodedata.bidirectional(character) in TURNING
    }


def test_no_control_character_and_no_turn_of_direction_is_left_but_newline_and_tab() -> None:
    assert orders_in(printable("".join(map(chr, range(0x3000))))) == {"\n", "\t"}
    assert printable("größe → ✓ עברית \U0001f600") == "größe → ✓ עברית \U0001f600"


@pytest.mark.parametrize(
    "say",
    [
        console.print_line,
        console.note,
        lambda text: console.print_fields([("output", text)]),
        lambda text: console.print_table(("NODE", "OUTPUT"), [("a", text)], empty=""),
        lambda text: console.complain(text, None),
        lambda text: console.complain("it failed", text),
        lambda text: console.print_line(event_line(event("NodeOutput", nodeId="n", text=text))),
    ],
)
def test_what_is_printed_gives_a_terminal_no_orders(
    say: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    say(HOSTILE)
    told = "".join(capfd.readouterr())
    assert SHOWN in told
    assert orders_in(told) == {"\n"}


def test_json_is_the_same_value_and_gives_a_terminal_no_orders(
    capfd: pytest.CaptureFixture[str],
) -> None:
    value = {"text": HOSTILE, HOSTILE: ["\\u001b", "\t\n"]}
    console.print_json(value)
    console.print_json(value, is_line=True)
    whole = capfd.readouterr().out
    assert [json.loads(line) for line in whole.splitlines()] == [value, value]
    assert orders_in(whole) == {"\n"}


@pytest.mark.parametrize("is_live", [False, True])
def test_a_runs_progress_gives_a_terminal_no_orders(
    is_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=is_live, width=500, color_system=None)
    monkeypatch.setattr(progress, "open_console", lambda **_: terminal)
    display = progress.LiveDisplay(HOSTILE) if is_live else progress.PlainDisplay()
    with display:
        display.say(HOSTILE)
        display.show(event("NodeOutput", nodeId=HOSTILE, text=HOSTILE))
        display.show(event("NodeStarted", nodeId=HOSTILE, attempt=1))
        error = {"name": HOSTILE, "message": HOSTILE}
        display.show(event("NodeFailed", nodeId=HOSTILE, attempt=1, error=error))
        display.show(event("RunFailed", error=error))
    told = screen.getvalue()
    assert SHOWN in told
    assert "\x1b]" not in told
    assert orders_in(told) <= {"\n", "\r", "\x1b"}  # the live display's own


async def test_a_question_gives_a_terminal_no_orders(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def end_of_input(_prompt: str) -> None:
        return None

    monkeypatch.setattr(asking, "_read_line", end_of_input)
    asked = Approval.model_validate(
        {"runId": "r", "nodeId": "n", "iteration": 0, "workflowName": "w", "runStatus": "running"}
        | {"requestTitle": HOSTILE, "requestSummary": HOSTILE, "requestedAtMs": 1, "waitingMs": 1}
    )
    assert await asking.ask_at_terminal(asked) is None
    told = capfd.readouterr().err
    assert told.count("pwned") == 2
    assert orders_in(told) == {"\n"}


def question(**more: Any) -> Approval:
    asked = {
        "runId": "r",
        "nodeId": "n",
        "iteration": 0,
        "workflowName": "w",
        "runStatus": "running",
    }
    return Approval.model_validate({**asked, "requestedAtMs": 1, "waitingMs": 1, **more})


def test_inspect_lists_what_ended_without_beginning_where_it_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def node(name: str, state: str, *, began: int | None = None, ended: int | None = None) -> Node:
        place = {"runId": "r", "nodeId": name, "iteration": 0, "kind": "task"}
        fate = {"state": state, "attempt": 1, "startedAtMs": began, "finishedAtMs": ended}
        return Node.model_validate({**place, **fate})

    class Server:
        def get(self, run: str) -> Run:
            return Run(run_id=run, workflow_name="w", status=RunStatus.RUNNING, last_seq=0)

        def list_nodes(self, _run: str) -> list[Node]:
            return [
                node("last", "pending"),
                node("third", "in-progress", began=30),
                node("second", "finished", ended=20),
                node("first", "finished", began=10, ended=40),
            ]

    monkeypatch.setattr("smithers.cli.options.open_client", lambda *_: nullcontext(Server()))
    assert main.run(["inspect", "r"]) == 0
    listed = [line.split()[0] for line in capfd.readouterr().out.splitlines()[-4:]]
    assert listed == ["first", "second", "third", "last"]


@pytest.mark.parametrize(
    ("text", "ranked"),
    [("red,white", ["red", "white"]), ('["red, dry", "white"]', ["red, dry", "white"])],
)
def test_options_with_commas_are_ranked_as_json(
    text: str, ranked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    class Server:
        def approve(self, _run: str, _node: str, **told: Any) -> None:
            sent.append(told["ranked"])

    monkeypatch.setattr("smithers.cli.options.open_client", lambda *_: nullcontext(Server()))
    assert main.run(["approve", "r", "n", "--rank", text]) == 0
    assert sent == [ranked]


def test_a_printed_command_asks_the_server_that_was_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "approve": {"command": "smithers approve r -a", "request": "POST /v1"},
        "worker": {"command": "smithers worker --queue q"},
    }

    class Server:
        def why(self, run: str) -> Why:
            reasons = [
                {"kind": "approval", "text": "t", "unblock": one} for one in commands.values()
            ]
            return Why.model_validate(
                {
                    "runId": run,
                    "status": "queued",
                    "computedAt": "",
                    "summary": "",
                    "reasons": reasons,
                }
            )

        def start(self, *_: object, **__: object) -> str:
            return "r"

        def list_approvals(self) -> list[object]:
            return []

    monkeypatch.setattr("smithers.cli.options.open_client", lambda *_: nullcontext(Server()))
    named = ["--server", "http://[::1]:1"]
    assert main.run(["start", "flow.py", *named]) == main.run(["why", "r", *named]) == 0
    told = capfd.readouterr()
    there = "SMITHERS_URL='http://[::1]:1' smithers"
    assert f"{there} events r --follow" in told.err
    assert f"{there} approvals r" in told.err
    assert told.out.splitlines()[2::2] == [f"  {there} approve r -a", "  smithers worker --queue q"]


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_a_table_loses_no_word_on_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    rows = [
        (f"node-{number}-" + "x" * 40, "waiting-approval", "a few words " * 9) for number in (1, 2)
    ]
    console.print_table(("NODE", "STATE", "OUTPUT"), rows, empty="none")
    told = capsys.readouterr().out
    for name, state, _ in rows:
        assert sum(name in line and state in line for line in told.splitlines()) == 1
    assert told.split().count("words") == 18


@pytest.mark.parametrize("words", [[], ["r"]])
def test_a_question_of_a_loop_is_listed_with_the_flag_that_names_its_iteration(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Server:
        def list_approvals(self) -> list[Approval]:
            return [question(), question(iteration=2)]

    monkeypatch.setattr("smithers.cli.options.open_client", lambda *_: nullcontext(Server()))
    assert main.run(["approvals", *words]) == 0
    listed = capfd.readouterr().out
    assert listed.count("--iteration") == listed.count("n --iteration 2") == 1


@pytest.mark.parametrize(
    ("mode", "lines", "answer"),
    [
        ("approve", ["maybe", "y", ""], Answer(is_approved=True)),
        ("approve", ["N", "not yet"], Answer(is_approved=False, note="not yet")),
        ("select", ["blue", "3", "0", "1 2", "2", ""], Answer(is_approved=True, selected="blue")),
        ("select", ["n", "neither"], Answer(is_approved=False, note="neither")),
        ("rank", ["1", "1 1", "2, 1", ""], Answer(is_approved=True, ranked=("blue", "red"))),
        ("rank", [], None),
        ("form", [], None),
    ],
)
async def test_a_question_is_asked_until_the_answer_is_one(
    mode: str,
    lines: list[str],
    answer: Answer | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def next_line(_prompt: str) -> str | None:
        return lines.pop(0) if lines else None

    monkeypatch.setattr(asking, "_read_line", next_line)
    options = None if mode in {"approve", "form"} else ["red", "blue"]
    assert (
        await asking.ask_at_terminal(question(requestMode=mode, requestOptions=options)) == answer
    )
    assert lines == []
    assert ("2  blue" in capfd.readouterr().err) == (options is not None)


@pytest.mark.parametrize(
    "command",
    [
        ["answer", "r1", "form", "--value"],
        ["signal", "r1", "paid", "--data"],
        ["graph", "flow.py", "--input"],
        ["up", "flow.py", "--input"],
    ],
)
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("@missing.json", "cannot be read: [Errno 2]"),
        ("@.", "cannot be read: [Errno 21]"),
        ("@binary", "cannot be read: 'utf-8' codec can't decode"),
        ("@text", "is not JSON: Expecting value"),
        ("{", "is not JSON: Expecting property name"),
        ("[" * 100_000, "is not JSON: "),  # the rest is Python's, by version
    ],
)
def test_a_flag_that_is_no_json_is_refused_by_its_name(
    command: list[str],
    given: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flow.py").touch()
    Path("binary").write_bytes(b"\xff\xfe")
    Path("text").write_text("yes", encoding="utf-8")
    assert main.run([*command, given]) == console.Exit.USAGE
    assert f"error: {command[-1]} {told}" in capfd.readouterr().err


def test_graph_says_once_where_an_input_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flow.py").write_text(
        "from pydantic import BaseModel\n"
        "from smithers import workflow\n\n\n"
        "class Order(BaseModel):\n    item: str\n\n\n"
        "@workflow(input=Order)\ndef order(ctx):\n    return []\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main.run(["graph", "flow.py"]) == 4
    told = capfd.readouterr().err
    assert told.splitlines()[0] == "error: the input does not fit order: item: Field required"


def test_graph_says_at_which_line_a_builder_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flow.py").write_text(
        "from smithers import workflow\n\n\n@workflow\ndef order(ctx):\n    return tasks\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main.run(["graph", "flow.py"]) == 1
    assert "name 'tasks' is not defined (flow.py, line 6)" in capfd.readouterr().err


def test_a_flag_that_is_json_may_be_in_a_file_or_on_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "value.json"
    file.write_text('{"word": "größe"}', encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("[1]"))
    assert console.read_json("--value", f"@{file}", example="1") == {"word": "größe"}
    assert console.read_json("--value", "@-", example="1") == [1]
    assert console.read_json("--value", "7", example="1") == 7


def test_a_hangup_that_nohup_had_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert console.heeded_signals(signal.SIGTERM, signal.SIGHUP) == (signal.SIGTERM,)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert console.heeded_signals(signal.SIGTERM, signal.SIGHUP) == (
            signal.SIGTERM,
            signal.SIGHUP,
        )
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("words", [[], ["db"]])
def test_who_names_no_command_is_told_which_there_are(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == console.Exit.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("Usage: smithers ")
    assert "error:" not in told.err
    assert "hint:" not in told.err
