"""Why a run does not move, said so that somebody can act on it."""

from dataclasses import replace

import pytest

from gateway.why import explain
from smithers.ids import RunId
from smithers.states import NodeState, RunStatus
from smithers.store.whys import OpenNode, WhyRow

NOW_MS = 1_800_000_000_000
RUN = RunId("r 1")
ROW = WhyRow(
    status=RunStatus.QUEUED,
    workflow_path="flows/a b.py",
    queue="gpu",
    crash_count=0,
    is_solo=False,
    is_owned=False,
    due_ms=NOW_MS - 1000,
    cancel_requested_ms=None,
    lost_heartbeat_ms=None,
    heartbeat_ms=None,
    created_ms=NOW_MS - 2000,
    now_ms=NOW_MS,
    worker_count=1,
    error=None,
    nodes=(),
)


def node(state: NodeState, **fields: object) -> OpenNode:
    empty = OpenNode("a b", 1, state, 1, NOW_MS - 5000, None, None)
    return replace(empty, **fields)


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        (ROW, "queued", "waits for one of 1 workers"),
        (replace(ROW, worker_count=0), "no-worker", "no worker lives that claims from queue 'gpu'"),
        (replace(ROW, crash_count=2), "quarantined", "2 workers died"),
        (replace(ROW, cancel_requested_ms=NOW_MS), "cancelling", "a cancel is under way"),
        (replace(ROW, is_owned=True, heartbeat_ms=NOW_MS - 9000), "worker-silent", "silent"),
        (replace(ROW, status=RunStatus.FINISHED), "ended", "finished"),
        (
            replace(ROW, status=RunStatus.FAILED, error='{"name":"ValueError","message":"no"}'),
            "ended",
            "ValueError: no (if its file has been mended: --workflow 'flows/a b.py')",
        ),
        (replace(ROW, status=RunStatus.CANCELLED), "ended", "cancelled"),
    ],
)
def test_a_run_says_what_holds_it_up(row: WhyRow, kind: str, said: str) -> None:
    answer = explain(RUN, row)
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
        (node(NodeState.WAITING_TIMER, due_ms=NOW_MS + 1), "timer", None),
        (node(NodeState.PENDING, due_ms=NOW_MS + 1), "back-off", None),
        (node(NodeState.IN_PROGRESS), "in-progress", None),
    ],
)
def test_an_open_node_says_what_would_unblock_it(
    open_node: OpenNode, kind: str, command: str | None
) -> None:
    row = replace(ROW, status=RunStatus.RUNNING, is_owned=True, nodes=(open_node,))
    reason = explain(RUN, row)["reasons"][0]
    assert reason["kind"] == kind
    assert reason["nodeId"] == "a b"
    assert reason.get("unblock", {}).get("command") == command


def test_no_worker_ends_with_the_command_that_starts_one() -> None:
    reason = explain(RUN, replace(ROW, worker_count=0))["reasons"][0]
    assert reason["unblock"]["command"] == "smithers worker --queue gpu"


def test_a_spent_budget_says_how_much_and_what_would_let_the_agents_go_on() -> None:
    spent = node(NodeState.WAITING_APPROVAL, node_id="budget", wait='{"spent":"12 of 10 tokens"}')
    answer = explain(RUN, replace(ROW, due_ms=None, nodes=(spent,)))
    assert answer["summary"] == (
        "the agents have spent 12 of 10 tokens: budget waits for a person to decide"
    )
    assert answer["reasons"][0]["unblock"]["command"] == (
        "smithers approve 'r 1' budget --iteration 1"
    )
