"""Why a run does not move, said so that somebody can act on it."""

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.why import explain
from smithers.cli import main
from smithers.client import BadRequest, Why
from smithers.foundation import gateway_settings
from smithers.ids import RunId
from smithers.settings import ServerOptions
from smithers.states import NodeState, RunStatus
from smithers.store.whys import OpenNode, WhyRow

NOW_MS = 1_800_000_000_000
RUN = RunId("r 1")
SECRET = "postgresql://me:secret@db/app"
ROW = WhyRow(
    status=RunStatus.QUEUED,
    workflow_reference="flows/a b.py:trip",
    queue="gpu",
    crash_count=0,
    is_owned=False,
    due_ms=NOW_MS - 1000,
    cancel_requested_ms=None,
    heartbeat_ms=None,
    now_ms=NOW_MS,
    worker_count=1,
    error=None,
    database=None,
    nodes=(),
)


def node(state: NodeState, **fields: Any) -> OpenNode:
    empty = OpenNode("a b", 1, state, 1, NOW_MS - 5000, None, None)
    return replace(empty, **fields)


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        (ROW, "queued", "waits for room in 1 worker"),
        (replace(ROW, worker_count=3), "queued", "waits for room in 3 workers"),
        (replace(ROW, worker_count=0), "no-worker", "no living worker claims from queue 'gpu'"),
        (replace(ROW, crash_count=1), "quarantined", "1 worker died while running it"),
        (replace(ROW, crash_count=2), "quarantined", "2 workers died while running it"),
        (replace(ROW, cancel_requested_ms=NOW_MS), "cancelling", "a cancel is under way"),
        (replace(ROW, is_owned=True, heartbeat_ms=NOW_MS - 9000), "worker-silent", "silent"),
        (replace(ROW, status=RunStatus.FINISHED), "ended", "finished"),
        (
            replace(ROW, status=RunStatus.FAILED, error='{"name":"ValueError","message":"no"}'),
            "ended",
            "ValueError: no (after fixing the file, add --workflow 'flows/a b.py:trip')",
        ),
        (replace(ROW, status=RunStatus.CANCELLED), "ended", "cancelled"),
    ],
)
def test_a_run_says_what_holds_it_up(row: WhyRow, kind: str, said: str) -> None:
    answer = explain(RUN, row, None)
    assert answer["reasons"][0]["kind"] == kind
    assert said in answer["summary"]


@pytest.mark.parametrize(
    ("open_node", "kind", "command"),
    [
        (
            node(NodeState.WAITING_APPROVAL),
            "approval",
            "smithers approve 'r 1' 'a b' --iteration 1",
        ),
        (
            node(NodeState.WAITING_EVENT, wait='{"signalName":"go"}'),
            "signal",
            "smithers signal 'r 1' go",
        ),
        (
            node(NodeState.WAITING_EVENT, wait='{"signalName":"go","correlationId":"order 7"}'),
            "signal",
            "smithers signal 'r 1' go --correlation 'order 7'",
        ),
        (node(NodeState.WAITING_TIMER, due_ms=NOW_MS + 1), "timer", None),
        (node(NodeState.PENDING, due_ms=NOW_MS + 1), "back-off", None),
        (node(NodeState.IN_PROGRESS), "in-progress", None),
    ],
)
def test_an_open_node_says_what_would_unblock_it(
    open_node: OpenNode, kind: str, command: str | None
) -> None:
    row = replace(ROW, status=RunStatus.RUNNING, is_owned=True, nodes=(open_node,))
    reason = explain(RUN, row, None)["reasons"][0]
    assert reason["kind"] == kind
    assert reason["nodeId"] == "a b"
    assert reason.get("unblock", {}).get("command") == command


@pytest.mark.parametrize("name", ["-a", "--help", "--", "$(date)", "it's", "*", "b"])
@pytest.mark.parametrize(
    ("state", "wait", "sent"),
    [
        (NodeState.WAITING_APPROVAL, "{}", {"iteration": 1}),
        (NodeState.WAITING_APPROVAL, '{"mode":"select"}', {"selected": "OPTION"}),
        (NodeState.WAITING_APPROVAL, '{"mode":"rank"}', {"ranked": ["A", "B"]}),
        (NodeState.WAITING_APPROVAL, '{"mode":"form"}', {"iteration": 1}),
        (NodeState.WAITING_EVENT, '{"correlationId":"-7"}', {"correlation_id": "-7"}),
    ],
)
def test_a_command_can_be_pasted_whatever_a_node_is_called(
    name: str, state: NodeState, wait: str, sent: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    class Server:
        def __getattr__(self, _verb: str) -> Callable[..., object]:
            def take(*place: object, **told: object) -> object:
                taken.append((place, told))
                return SimpleNamespace(seq=0)

            return take

    monkeypatch.setattr("smithers.cli.options.open_client", lambda *_: nullcontext(Server()))
    row = replace(
        ROW, status=RunStatus.WAITING_EVENT, nodes=(node(state, node_id=name, wait=wait),)
    )
    (reason,) = explain(RunId("r1"), replace(row, due_ms=None), None)["reasons"]
    words = shlex.split(reason["unblock"]["command"].replace("JSON", "1"))
    assert main.run(words[1:]) == 0
    ((place, told),) = taken
    assert place[:2] == ("r1", name)
    assert sent.items() <= told.items()


@pytest.mark.parametrize(("attempt", "told"), [(1, "failed 1 time,"), (2, "failed 2 times,")])
def test_a_node_that_backs_off_says_how_often_it_failed(attempt: int, told: str) -> None:
    waiting = node(NodeState.PENDING, attempt=attempt, due_ms=NOW_MS + 1)
    row = replace(ROW, status=RunStatus.WAITING_TIMER, due_ms=NOW_MS + 1, nodes=(waiting,))
    assert told in explain(RUN, row, None)["summary"]


def test_an_attempt_that_a_drain_has_stopped_does_not_run() -> None:
    row = replace(ROW, status=RunStatus.RUNNING, nodes=(node(NodeState.IN_PROGRESS),))
    texts = [reason["text"] for reason in explain(RUN, row, None)["reasons"]]
    assert texts[0].startswith("it is due, and waits for room in 1 worker")
    assert texts[1].startswith("a b was stopped in attempt 1: it is tried again when a worker")


def test_no_worker_ends_with_the_command_that_starts_one() -> None:
    reason = explain(RUN, replace(ROW, worker_count=0), None)["reasons"][0]
    assert reason["unblock"]["command"] == "smithers worker --queue gpu"


@pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.FAILED, RunStatus.CANCELLED])
@pytest.mark.parametrize("run_id", ["r1", "r1+2"])
def test_what_up_has_left_goes_on_with_up(status: RunStatus, run_id: str) -> None:
    row = replace(ROW, status=status, worker_count=0, queue="up-r1")
    reason = explain(RunId(run_id), row, None)["reasons"][0]
    command = f"smithers up 'flows/a b.py:trip' --run-id {run_id} --resume"
    assert reason["unblock"] == {"command": command}
    assert "--workflow" not in reason["text"]  # up takes the file as it is


def test_a_child_of_what_up_has_left_goes_on_with_its_parent_alone() -> None:
    row = replace(ROW, worker_count=0, queue="up-r1")
    reason = explain(RunId("r1.0123456789ab"), row, None)["reasons"][0]
    assert reason["kind"] == "no-worker"
    assert "unblock" not in reason


def test_no_worker_of_a_workflows_own_database_names_the_variable_that_a_worker_lacks() -> None:
    reason = explain(RUN, replace(ROW, worker_count=0), "ORDERS")["reasons"][0]
    assert reason["kind"] == "no-worker"
    assert "queue 'gpu' of the database 'ORDERS'" in reason["text"]
    assert "the variable ORDERS is set" in reason["text"]
    assert reason["unblock"]["command"] == "ORDERS=URL smithers worker --queue gpu"


def test_a_mirror_says_where_its_run_lives() -> None:
    mirror = replace(ROW, due_ms=None, worker_count=0, database="ORDERS")
    (reason,) = explain(RUN, mirror, None)["reasons"]
    assert reason["kind"] == "elsewhere"
    assert "the database 'ORDERS', for which this server has no URL" in reason["text"]
    assert "unblock" not in reason


def test_a_spent_budget_says_how_much_and_what_would_let_the_agents_go_on() -> None:
    spent = node(NodeState.WAITING_APPROVAL, node_id="budget", wait='{"spent":"12 of 10 tokens"}')
    answer = explain(RUN, replace(ROW, due_ms=None, nodes=(spent,)), None)
    assert answer["summary"] == (
        "the agents have spent 12 of 10 tokens: budget waits for a person to decide"
    )
    assert answer["reasons"][0]["unblock"]["command"] == (
        "smithers approve 'r 1' budget --iteration 1"
    )


def test_what_up_has_left_goes_on_in_its_own_data_directory() -> None:
    row = replace(ROW, worker_count=0, queue="up-r1")
    place = Path("/var/my data")
    reason = explain(RunId("r1"), row, None, data_dir=place)["reasons"][0]
    assert reason["unblock"]["command"] == (
        "smithers up 'flows/a b.py:trip' --run-id r1 --resume --data-dir '/var/my data'"
    )
    assert gateway_settings(ServerOptions(data_dir=place), "", "").data_dir == place


@pytest.mark.parametrize(
    ("options", "own", "before"),
    [
        (ServerOptions(database_url=SECRET), None, "DATABASE_URL=URL "),
        (ServerOptions(database_url=SECRET), "ORDERS", "DATABASE_URL=URL ORDERS=URL "),
        (
            ServerOptions(database_url=SECRET, database_direct_url=SECRET),
            None,
            "DATABASE_URL=URL DATABASE_DIRECT_URL=URL ",
        ),
        (ServerOptions(), None, ""),
        (ServerOptions(), "ORDERS", "ORDERS=URL "),
    ],
)
def test_what_up_has_left_goes_on_in_a_given_database_whose_url_is_not_told(
    options: ServerOptions, own: str | None, before: str
) -> None:
    row = replace(ROW, worker_count=0, queue="up-r1")
    told = gateway_settings(options, SECRET, SECRET)
    answer = explain(RunId("r1"), row, own, variables=told.database_variables)
    assert answer["reasons"][0]["unblock"]["command"] == (
        f"{before}smithers up 'flows/a b.py:trip' --run-id r1 --resume"
    )


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_list_of_questions_is_named_only_if_the_server_has_one(
    is_kept: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Server:
        def why(self, run_id: str) -> Why:
            asked = {"kind": "approval", "text": "a waits for a person to decide"}
            told = {"runId": run_id, "status": "waiting-approval", "summary": ""}
            return Why.model_validate({**told, "reasons": [asked]})

        def list_approvals(self) -> list[object]:
            if is_kept:
                return []
            raise BadRequest("it has no lists", code="DB_NOT_CONFIGURED", status=400)

    monkeypatch.setattr("smithers.cli.options.open_client", lambda *_: nullcontext(Server()))
    assert main.run(["why", "r1"]) == 0
    out, err = capfd.readouterr()
    assert out == "a waits for a person to decide\n"
    assert ("smithers approvals r1" in err) == is_kept
