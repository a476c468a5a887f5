"""`smithers up`: what its server is told, and the command that goes on with its run."""

import asyncio
import shlex
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smithers.cli import asking, following
from smithers.cli.errand import Errand
from smithers.cli.main import run
from smithers.client import Approval, Event
from smithers.client.wire import STREAM_SEQ
from smithers.settings import ServerOptions
from smithers.states import RunStatus

FLOW = "my flow.py"
Chosen = list[tuple[Errand, ServerOptions]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a workflow, which is the current directory; nothing of the outside's settings."""
    (tmp_path / FLOW).touch()
    monkeypatch.chdir(tmp_path)
    for name in ("SMITHERS_ROOT_DIR", "SMITHERS_API_KEY", "DATABASE_URL", "DATABASE_DIRECT_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def told(place: Path, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """What would be run, instead of running it."""
    seen: Chosen = []

    def keep(errand: Errand, options: ServerOptions) -> int:
        seen.append((errand, options))
        return 0

    monkeypatch.setattr("smithers.cli.up.run_errand", keep)
    return seen


def test_up_removes_no_runs_and_takes_no_other_tokens_whatever_the_environment_wants(
    told: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMITHERS_RETENTION", "1s")
    monkeypatch.setenv("SMITHERS_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("SMITHERS_TOKENS_FILE", FLOW)
    assert run(["up", FLOW, "--workers", "2"]) == 0
    ((_, options),) = told
    assert (options.retention, options.tokens_file) == (None, None)
    assert (options.log_level, options.workers) == ("DEBUG", 2)  # those are only defaults


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--data-dir", "/tmp/some place"],
        ["--root-dir", "."],
        ["--database-url", "postgresql:///app?host=/run/place", "--migrate"],
        ["--pass-env", "A", "--pass-env", "B;C", "--allow-network"],
        ["--serve", "--port", "0", "--no-metrics"],
        ["--yes"],
    ],
)
def test_the_command_that_goes_on_is_for_a_shell_and_repeats_the_flags(
    told: Chosen, flags: list[str]
) -> None:
    assert run(["up", FLOW, "--run-id", "r1", "--input", "{}", *flags]) == 0
    command = shlex.split(told[0][0].command("--resume", "--yes"))
    assert command[:2] == ["smithers", "up"]
    assert command.count("--yes") == 1
    assert run(command[1:]) == 0
    (first, options), (second, again) = told
    assert (second.file, second.run_id, second.is_resume, second.is_yes) == (FLOW, "r1", True, True)
    assert second.serve == first.serve
    # One for each server.
    assert replace(again, auth_token=None) == replace(options, auth_token=None)


def test_the_command_that_goes_on_names_the_variables_of_secrets(told: Chosen) -> None:
    secret = "postgresql://me:hush@there/app"
    flags = ["--database-url", secret, "--database-direct-url", secret]
    serving = ["--serve", "--auth-token", "hush"]
    assert run(["up", FLOW, "--run-id", "r1", *flags, *serving]) == 0
    command = told[0][0].command("--resume", run_id="r1+1")
    assert command == (
        "DATABASE_URL=… DATABASE_DIRECT_URL=… SMITHERS_API_KEY=… "
        "smithers up 'my flow.py' --run-id r1+1 --resume --serve"
    )


def test_the_command_that_goes_on_tells_a_file_from_a_flag(told: Chosen, place: Path) -> None:
    (place / "-flow.py").touch()
    assert run(["up", "--run-id", "r1", "--", "-flow.py"]) == 0
    assert run(shlex.split(told[0][0].command("--resume"))[1:]) == 0
    assert [errand.file for errand, _ in told] == ["-flow.py"] * 2


def test_a_run_that_nobody_would_run_is_refused(
    told: Chosen, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", FLOW, "--workers", "0"]) == 4
    assert "--workers 0: there would be no worker" in capfd.readouterr().err
    assert told == []


@pytest.mark.parametrize("command", ["up", "graph", "check"])
def test_a_file_that_is_a_loop_of_links_is_refused(
    command: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "loop.py").symlink_to("loop.py")
    assert run([command, "loop.py:one"]) == 4
    assert "error: loop.py leads through too many links" in capfd.readouterr().err


def test_the_help_of_up_names_its_own_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    for told in (
        "[default: 1]",
        "default: WARNING]",
        "default: the current one, or that of a FILE",
    ):
        assert told in text


def test_a_resume_with_an_input_is_refused(told: Chosen, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["up", FLOW, "--run-id", "r1", "--resume", "--input", "{}"]) == 4
    assert "a resumed run keeps the input that it was started with" in capfd.readouterr().err
    assert told == []


class Told:
    """A server that says of each run why it does not progress, and what is asked of whom."""

    def __init__(self, whys: dict[str, tuple[RunStatus, list[str]]]) -> None:
        self.whys = whys

    async def why(self, run_id: str) -> Any:
        status, kinds = self.whys[run_id]
        reasons = [SimpleNamespace(kind=kind) for kind in kinds]
        return SimpleNamespace(run_id=run_id, status=status, reasons=reasons)

    async def get(self, run_id: str) -> Any:
        return SimpleNamespace(run_id=run_id)

    async def list_approvals(self) -> Any:
        asking = {one: kinds for one, (_, kinds) in self.whys.items() if "approval" in kinds}
        return [SimpleNamespace(run_id=run_id) for run_id in asking]


EVENT, APPROVAL = RunStatus.WAITING_EVENT, RunStatus.WAITING_APPROVAL


@pytest.mark.parametrize(
    ("whys", "is_stuck"),
    [
        ({"r": (EVENT, ["signal"])}, True),
        ({"r": (APPROVAL, ["approval", "timer"])}, True),
        ({"r": (EVENT, ["ended"])}, False),
        ({"r": (EVENT, ["signal", "queued"])}, False),
        ({"r": (APPROVAL, ["timer"])}, False),  # answered, and claimed
        ({"r": (EVENT, ["signal", "subflow"])}, False),  # the child has ended, or is not known yet
        ({"r": (EVENT, ["subflow"]), "c": (APPROVAL, ["approval"])}, True),
        ({"r": (EVENT, ["subflow"]), "c": (RunStatus.RUNNING, ["in-progress"])}, False),
        ({"r": (EVENT, ["subflow"]), "c": (RunStatus.WAITING_TIMER, ["timer"])}, False),
        ({"r": (EVENT, ["signal", "subflow"]), "c": (RunStatus.FINISHED, ["ended"])}, False),
        ({"r": (APPROVAL, ["approval", "subflow"]), "c": (EVENT, ["signal"])}, True),
        ({"r": (EVENT, ["subflow"]), "c": (EVENT, ["subflow"]), "d": (EVENT, ["signal"])}, True),
    ],
)
async def test_a_run_is_stuck_only_while_it_and_all_below_it_wait_for_somebody_else(
    whys: dict[str, tuple[RunStatus, list[str]]], *, is_stuck: bool
) -> None:
    """Its status may be an old one: a child that ends at once has moved it on."""
    client: Any = Told(whys)
    assert (await following._find_stuck(client, list(whys)) is not None) is is_stuck


def event(seq: int, kind: str, **fields: Any) -> Event:
    told = {"type": kind, "runId": "r", "timestampMs": seq, STREAM_SEQ: seq, **fields}
    return Event.model_validate(told)


def question(node_id: str) -> Any:
    return SimpleNamespace(
        run_id="r",
        node_id=node_id,
        iteration=0,
        requested_at_ms=0,
        request_mode="approve",
        request_options=None,
    )


class Asking:
    """A server with one run: its events, those of them that are old, and the questions that are open now."""

    def __init__(self, events: list[Event], asked: list[str], *, old: int = -1) -> None:
        self.events = events
        self.asked = asked
        self.old = old
        self.approved: list[str] = []

    async def get(self, run_id: str) -> Any:
        return SimpleNamespace(run_id=run_id, last_seq=self.old)

    async def stream(self, _run_id: str) -> AsyncIterator[Event]:
        for one in self.events:
            yield one
        if self.asked:  # it waits
            await asyncio.Event().wait()

    async def why(self, run_id: str) -> Any:
        kind = "approval" if self.asked else "queued"
        reasons = [SimpleNamespace(kind=kind)]
        return SimpleNamespace(run_id=run_id, status=APPROVAL, reasons=reasons)

    async def list_approvals(self) -> Any:
        return [question(node_id) for node_id in self.asked]

    async def approve(self, _run_id: str, node_id: str, **_: Any) -> None:
        self.asked.remove(node_id)
        self.approved.append(node_id)


class Shown:
    """A display that keeps what it was shown."""

    def __init__(self) -> None:
        self.seqs: list[int] = []

    def show(self, event: Event) -> None:
        self.seqs.append(event.seq)

    def say(self, _text: str) -> None: ...

    def pause(self) -> None: ...

    def unpause(self) -> None: ...


async def followed(server: Asking, ask: asking.Ask) -> tuple[following.Followed, list[int]]:
    client: Any = server
    display: Any = Shown()
    async with asyncio.timeout(10):
        left = await following.follow(client, "r", display, ask, until_ended=False)
    return left, display.seqs


def parked_twice() -> Asking:
    """A run that has slept, and has asked since then."""
    events = [
        event(0, "RunStarted"),
        event(1, "RunStatusChanged", status="waiting-timer"),
        event(2, "NodeWaitingApproval", nodeId="ok", iteration=0),
        event(3, "RunStatusChanged", status="waiting-approval"),
        event(4, "SignalReceived", signalName="unawaited"),
    ]
    return Asking(events, ["ok"], old=4)


async def test_a_run_that_has_parked_before_is_asked_what_it_asks_now() -> None:
    server = parked_twice()
    left, shown = await followed(server, asking.approve_all)
    assert server.approved == ["ok"]
    assert shown == [0, 1, 2, 3, 4]
    assert left.questions == ()


async def test_a_run_that_nobody_answers_is_left_after_its_last_event() -> None:
    left, shown = await followed(parked_twice(), asking.leave_open)
    assert [one.node_id for one in left.questions] == ["ok"]
    assert shown == [0, 1, 2, 3, 4]


async def test_a_run_is_not_left_for_a_question_that_came_while_another_was_answered() -> None:
    events = [
        event(0, "RunStarted"),
        event(1, "NodeWaitingApproval", nodeId="a", iteration=0),
        event(2, "RunStatusChanged", status="waiting-approval"),
    ]
    server = Asking(events, ["a"])
    put: list[str] = []

    async def answer_late(approval: Approval) -> asking.Answer | None:
        put.append(approval.node_id)
        if approval.node_id == "b":
            return None
        server.asked.append("b")
        return asking.Answer(is_approved=True)

    left, _ = await followed(server, answer_late)
    assert put == ["a", "b"]  # b only once
    assert server.approved == ["a"]
    assert [one.node_id for one in left.questions] == ["b"]
