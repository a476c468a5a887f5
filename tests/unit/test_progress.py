"""What of a run is shown: the states of its nodes, and which of many nodes."""

from typing import Any

import pytest

from smithers.cli.progress import (
    MARKS,
    LiveDisplay,
    NodeLine,
    PlainDisplay,
    ProgressView,
    choose_lines,
)
from smithers.cli.runs import span
from smithers.client import Event
from smithers.states import NodeState


def take(progress: ProgressView, event_type: str, node_id: str | None = None, **more: Any) -> None:
    sent = {"type": event_type, "runId": "r", "timestampMs": 1000, "seq": 0, **more}
    if node_id is not None:
        sent |= {"nodeId": node_id, "iteration": more.get("iteration", 0)}
    progress.take(Event.model_validate(sent))


def line(name: str, state: NodeState, ended_ms: int | None = None) -> NodeLine:
    return NodeLine(name, state=state, ended_ms=ended_ms)


def test_a_node_is_followed_through_its_attempts() -> None:
    progress = ProgressView()
    take(progress, "NodeStarted", "a", attempt=1)
    take(progress, "NodeFailed", "a", attempt=1, error={"name": "E", "message": "m\nn"})
    node = progress.nodes["a", 0]
    assert (node.state, node.remark) == (NodeState.FAILED, "E: m")
    take(progress, "NodeRetrying", "a", attempt=2)
    take(progress, "NodeStarted", "a", attempt=2, timestampMs=2000)
    take(progress, "NodeFinished", "a", attempt=2, timestampMs=2500)
    assert (node.state, node.attempt, node.took_s(9_000)) == (NodeState.FINISHED, 2, 0.5)


def test_a_failed_runs_line_names_its_error(capfd: pytest.CaptureFixture[str]) -> None:
    error = {"name": "KeyError", "message": "'topic'"}
    sent = {"type": "RunFailed", "runId": "r", "timestampMs": 1000, "seq": 0, "error": error}
    PlainDisplay().show(Event.model_validate(sent))
    assert capfd.readouterr().err.split(maxsplit=1)[1] == "run failed: KeyError: 'topic'\n"


def test_a_subflow_waits_for_its_run_and_a_signal_of_that_name_for_a_signal() -> None:
    progress = ProgressView()
    take(progress, "SubflowStarted", "sub", childRunId="r.1")
    for name in ("sub", "signal"):
        take(progress, "NodeWaitingEvent", name, signalName="r.1")
    remarks = [node.remark for node in progress.nodes.values()]
    assert remarks == ["waits for its run r.1 to end", "waits for the signal r.1"]


def test_each_iteration_of_a_loop_has_its_line() -> None:
    progress = ProgressView()
    take(progress, "NodeStarted", "a", attempt=1)
    take(progress, "NodeStarted", "a", attempt=1, iteration=1)
    assert [node.name for node in progress.nodes.values()] == ["a", "a · 2"]


def test_a_long_name_leaves_room_for_the_mark_and_the_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    display = LiveDisplay("flow")
    error = {"name": "E", "message": "m" * 80}
    names = ("[red]" + "a" * 80, "b")
    for number, name in enumerate(names):
        at = {"runId": "r", "nodeId": name, "iteration": 0, "attempt": 1, "seq": number}
        for more in (
            {"type": "NodeStarted", "timestampMs": 1000},
            {"type": "NodeFailed", "timestampMs": 2500, "error": error},
        ):
            display.show(Event.model_validate({**at, **more}))
    with display:
        pass
    lines = capsys.readouterr().err.splitlines()[1:3]
    assert [line.split()[0] in MARKS[NodeState.FAILED] for line in lines] == [True, True]
    assert ["1.50 s" in line for line in lines] == [True, True]
    assert "[red]aaa" in lines[0]


def test_all_nodes_are_shown_where_there_is_room() -> None:
    nodes = [line("a", NodeState.PENDING), line("b", NodeState.FINISHED, 1)]
    assert choose_lines(nodes, 2) == (nodes, 0)


def test_of_too_many_nodes_those_that_matter_are_shown_in_their_order() -> None:
    nodes = [
        line("done-first", NodeState.FINISHED, 1),
        line("done-last", NodeState.FINISHED, 9),
        line("broken", NodeState.FAILED, 2),
        *(line(f"later-{number}", NodeState.PENDING) for number in range(50)),
        line("busy", NodeState.IN_PROGRESS),
        line("asks", NodeState.WAITING_APPROVAL),
    ]
    shown, hidden = choose_lines(nodes, 6)
    assert [node.name for node in shown] == [
        "done-first", "done-last", "broken", "busy", "asks",
    ]  # fmt: skip
    assert hidden == 50


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.123, "0.12 s"), (45.6, "46 s"), (600, "10 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_a_duration_is_said_in_the_units_that_matter(duration_s: float, text: str) -> None:
    assert span(duration_s) == text
