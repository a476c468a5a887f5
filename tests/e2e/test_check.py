"""`smithers check` and the list of workflows: what a server has run, and what edited files would make of what waits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smithers.client import Client
from tests.support.serving import Serving, run_command, serving

ASKS = """
from pydantic import BaseModel
from smithers import Approval, Sequence, Task, workflow

class Brief(BaseModel):
    topic: str

@workflow(input=Brief)
def asks(ctx):
    return Sequence(
        Task("prepare", lambda: ctx.input.topic),
        Approval("go", title="Shall we go?"),
        Task("leave", lambda: "gone"),
    )
"""
CARRIES = """
from smithers import Approval, ContinueAsNew, workflow

@workflow
def carries(ctx):
    return ContinueAsNew({"round": 2}) if ctx.carried is None else Approval(f"round-{ctx.carried['round']}", title="On?")
"""
EDITS = {
    "a comment": ("import BaseModel", "import BaseModel  # kept", "goes-on", [], []),
    "a later task": (
        'Task("leave"',
        'Task("pack", lambda: 1), Task("leave"',
        "changes",
        [],
        ["pack"],
    ),
    "another question": ('Approval("go"', 'Approval("really"', "changes", ["go"], ["really"]),
    "a broken builder": ("return Sequence(", "return 1 / 0, (", "fails", [], []),
    "a field more": ("topic: str", "topic: str; words: int", "fails", [], []),
    "no import": ("from pydantic", "from pydantique", "fails", [], []),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Serving]:
    (root / "asks.py").write_text(ASKS, encoding="utf-8")
    with serving(root) as started:
        yield started


@pytest.fixture(scope="module")
def run_id(server: Serving) -> str:
    with server.client() as client:
        return park(client, "asks.py")


def park(client: Client, path: str) -> str:
    run_id = client.start(path, {"topic": "foxes"})
    for event in client.stream(run_id):
        if event.type == "RunStatusChanged":
            break
    return run_id


def check(server: Serving, root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = run_command(
        *("check", "--json", "--root-dir", str(root), "--data-dir", str(server.data_dir)),
        *arguments,
        cwd=root,
    )
    return result.returncode, json.loads(result.stdout)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_judged_by_what_it_would_do_to_a_run_that_waits(
    edit: str, server: Serving, root: Path, run_id: str
) -> None:
    before, after, verdict, lost, added = EDITS[edit]
    assert before in ASKS
    (root / "asks.py").write_text(ASKS.replace(before, after), encoding="utf-8")
    code, found = check(server, root)
    (row,) = found["runs"]
    assert (row["runId"], row["verdict"]) == (run_id, verdict), row
    assert [node["nodeId"] for node in row["lost"]] == lost
    assert [node["nodeId"] for node in row["added"]] == added
    assert code == (1 if verdict == "fails" else 0)
    assert bool(row["reason"]) == (verdict == "fails")


def test_what_a_file_prints_is_not_part_of_the_answer(
    server: Serving, root: Path, run_id: str
) -> None:
    said = ASKS.replace("    return Sequence(", "    print('built')\n    return Sequence(")
    (root / "asks.py").write_text(f"print('imported')\n{said}", encoding="utf-8")
    assert [row["runId"] for row in check(server, root)[1]["runs"]] == [run_id]


def test_what_was_not_touched_goes_on_and_so_does_what_is_gone(
    server: Serving, root: Path, run_id: str
) -> None:
    (root / "asks.py").write_text(ASKS, encoding="utf-8")
    assert check(server, root)[1]["counts"] == {"goes-on": 1}
    assert [row["runId"] for row in check(server, root, "asks.py")[1]["runs"]] == [run_id]
    (root / "asks.py").unlink()
    code, found = check(server, root)
    assert (code, found["runs"][0]["verdict"]) == (0, "goes-on")


def test_a_run_that_goes_on_for_another_is_judged_with_what_it_was_handed(
    server: Serving, root: Path
) -> None:
    (root / "carries.py").write_text(CARRIES, encoding="utf-8")
    with server.client() as client:
        run_id = client.start("carries.py", {})
        assert client.wait(run_id).status == "continued"
        for event in client.stream(f"{run_id}+1"):
            if event.type == "RunStatusChanged":
                break
    (root / "carries.py").write_text(f"# edited{CARRIES}", encoding="utf-8")
    code, found = check(server, root, "carries.py")
    (row,) = found["runs"]
    assert (code, row["runId"], row["verdict"]) == (0, f"{run_id}+1", "goes-on"), row


def test_workflows_are_listed_as_their_newest_run_has_them(server: Serving, root: Path) -> None:
    (root / "asks.py").write_text(ASKS, encoding="utf-8")
    (root / "two.py").write_text(
        ASKS.replace("def asks", "def asks_too")
        + "\n@workflow\ndef waits(ctx):\n    return Approval('x')\n",
        encoding="utf-8",
    )
    with server.client() as client:
        park(client, "two.py:waits")
        park(client, "two.py:asks_too")
        listed = client.list_workflows()
    paths = {one.workflow_name: one.workflow_path for one in listed}
    expected = {"asks": "asks.py", "asks-too": "two.py:asks_too", "waits": "two.py:waits"}
    assert paths.items() >= expected.items()  # others may have started more on this server
    (asks,) = [one for one in listed if one.workflow_name == "asks"]
    assert asks.input_schema is not None
    assert asks.input_schema["required"] == ["topic"]
    assert asks.last_started_at_ms > 0
