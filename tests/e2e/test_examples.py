"""The examples run, through a real server, to what they promise."""

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from examples.release_notes import Commit, compose_section, describe, kind_of
from examples.release_notes import Section as NotesSection
from smithers.client import Client, Event, RequestRefused, Run
from tests.support.repositories import git, make_repository
from tests.support.serving import TREE

WORDS = [f"word-{number}" for number in range(100)]


def run_example(
    client: Client, name: str, given: dict[str, Any] | None = None, *, is_approved: bool = True
) -> tuple[Run, list[Event]]:
    """Run an example to its end, deciding what it asks."""
    run_id = client.start(f"examples/{name}.py", given)
    events = []
    for event in client.stream(run_id):
        events.append(event)
        if event.type == "NodeWaitingApproval":
            assert event.node_id is not None
            decide = client.approve if is_approved else client.deny
            decide(run_id, event.node_id, note="read")
    return client.get(run_id), events


def notes_of(client: Client, place: Path, **given: Any) -> tuple[str, Run, list[Event]]:
    output = place.parent / f"{place.name}-notes.md"
    request = {"repository": str(place), "output": str(output), **given}
    run, events = run_example(client, "release_notes", request)
    assert run.status == "finished", run.error
    assert run.output["path"] == str(output)
    return output.read_text(encoding="utf-8"), run, events


def test_hello_greets(client: Client) -> None:
    run, _ = run_example(client, "hello", {"name": "Ada"})
    assert run.output == "HELLO, ADA!"


def test_fan_out_adds_up_a_hundred_parallel_tasks(client: Client) -> None:
    run, _ = run_example(client, "fan_out")
    digests = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:2]) for word in WORDS]
    assert run.output == sum(digests)
    assert run.summary == {"finished": 101}


@pytest.mark.parametrize("is_approved", [True, False])
def test_summaries_ask_a_person_when_the_budget_is_spent(client: Client, is_approved: bool) -> None:
    run_id = client.start("examples/summaries.py")
    for event in client.stream(run_id):
        if event.type == "RunStatusChanged" and event.field("status") == "waiting-approval":
            break
    (approval,) = [each for each in client.list_approvals() if each.run_id == run_id]
    assert (approval.node_id, approval.request_summary) == ("budget", "36 of 30 tokens")
    why = client.why(run_id)
    assert (
        why.summary == "the agents have spent 36 of 30 tokens: budget waits for a person to decide"
    )
    unblock = why.reasons[0].unblock
    assert unblock is not None
    assert unblock["command"] == f"smithers approve {run_id} budget"
    (client.approve if is_approved else client.deny)(run_id, "budget", note="read")
    events = list(client.stream(run_id))
    run = client.get(run_id)
    if not is_approved:
        assert run.error is not None
        assert run.error["code"] == "BUDGET_SPENT"
        return
    assert run.output == ["A run is a row.", "A model is asked once.", "A budget is a promise."]
    said = [event.field("text") for event in events if event.type == "NodeOutput"]
    assert said == [f"{text}\n" for text in run.output]  # none of them twice
    assert [attempt.state for attempt in client.get_node(run_id, "sum-up").attempts] == [
        "parked",
        "finished",
    ]


def test_a_start_may_narrow_the_budget(client: Client) -> None:
    run_id = client.start("examples/summaries.py", budget={"tokens": 10})
    for event in client.stream(run_id):
        if event.type == "NodeWaitingApproval":
            break
    (approval,) = [each for each in client.list_approvals() if each.run_id == run_id]
    assert approval.request_summary == "16 of 10 tokens"
    client.cancel(run_id)
    with pytest.raises(RequestRefused):
        client.start("examples/summaries.py", budget={"tokens": 0})


def test_loop_ends_when_its_result_is_good_enough(client: Client) -> None:
    run, _ = run_example(client, "loop", {"number": 10})
    assert math.isclose(run.output, math.sqrt(10), rel_tol=1e-6)
    assert 3 < run.summary["finished"] < 15


def test_check_project_looks_over_a_directory_with_tools(client: Client) -> None:
    folder = TREE / "demo-output" / f"check-{uuid4().hex}"
    (folder / "sub").mkdir(parents=True)
    (folder / "good.py").write_text("async def answer():\n    return 42\n")
    (folder / "sub" / "broken.py").write_text("def broken(:\n")
    place = folder.relative_to(TREE).as_posix()
    given = {"folder": place, "report": f"{place}/out/check.md"}
    try:
        run, events = run_example(client, "check_project", given)
        assert run.status == "finished", run.error
        report = (folder / "out" / "check.md").read_text(encoding="utf-8")
        (written,) = client.get_node(run.run_id, "report").tool_calls
        (searched,) = client.get_node(run.run_id, "lines").tool_calls
    finally:
        shutil.rmtree(folder)
    assert "1 files with errors, 1 lines found." in report
    assert f"- {place}/sub/broken.py:1: invalid syntax" in report
    assert f"- {place}/good.py:1: `async def answer():`" in report
    assert (written.tool_name, written.seq, written.state) == ("write", 1, "finished")
    assert written.input == {"path": f"{place}/out/check.md", "text": report}
    assert [match["line"] for match in searched.output["matches"]] == [1]
    called = [event.field("toolName") for event in events if event.type == "ToolCallFinished"]
    assert sorted(called) == ["bash", "grep", "write"]


@pytest.mark.parametrize(
    ("amount", "taken", "skipped"), [(12, "accept", "set-aside"), (120, "set-aside", "accept")]
)
def test_branch_goes_one_way_and_skips_the_other(
    client: Client, amount: float, taken: str, skipped: str
) -> None:
    run, _ = run_example(client, "branch", {"amount": amount})
    states = {node.node_id: node.state for node in client.list_nodes(run.run_id)}
    assert (states[taken], states[skipped]) == ("finished", "skipped")
    assert run.output.startswith("tea: ")


def test_release_notes_sort_a_history_by_what_it_says(client: Client, tmp_path: Path) -> None:
    place = make_repository(
        tmp_path,
        "First light",
        "feat(api): answer questions (#12)",
        "fix: do not forget names",
        "feat!: drop the old door",
        "Speed up the start",
    )
    text, run, events = notes_of(client, place)
    assert text.startswith(f"# {tmp_path.name} ")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Breaking changes",
        "## New",
        "## Fixed",
        "## Faster",
        "## Also changed",
    ]
    assert "- **api**: Answer questions (" in text
    assert "5 commits" in run.output["summary"]
    retried = [event.node_id for event in events if event.type == "NodeRetrying"]
    assert retried == ["statistics"]


def test_release_notes_begin_at_the_newest_tag(client: Client, tmp_path: Path) -> None:
    place = make_repository(tmp_path, "Add one", "Add two")
    git(place, "tag", "v1")
    git(place, "commit", "--quiet", "--allow-empty", "--message", "Add three")
    text, _, _ = notes_of(client, place)
    assert "since v1" in text
    assert "Add three" in text
    assert "Add two" not in text


def test_release_notes_of_a_single_commit(client: Client, tmp_path: Path) -> None:
    text, _, _ = notes_of(client, make_repository(tmp_path, "Add everything"))
    assert "1 commit on 1 day by Ann Author." in text
    assert "- Add everything (" in text


def test_release_notes_of_no_commit_at_all_say_so(client: Client, tmp_path: Path) -> None:
    (tmp_path / "born").mkdir()
    (tmp_path / "unborn").mkdir()
    born = make_repository(tmp_path / "born", "Add everything")
    unborn = make_repository(tmp_path / "unborn")
    assert "Nothing has changed since HEAD." in notes_of(client, born, since="HEAD")[0]
    assert "Nothing has changed." in notes_of(client, unborn)[0]


def test_release_notes_are_shortened_until_they_fit(client: Client, tmp_path: Path) -> None:
    place = make_repository(tmp_path, *(f"Add part number {number}" for number in range(40)))
    text, run, _ = notes_of(client, place, max_chars=600)
    assert len(text) <= 600
    assert "more" in text
    rounds = [node for node in client.list_nodes(run.run_id) if node.node_id == "polish"]
    assert len(rounds) > 1


def test_release_notes_that_are_denied_are_not_written(client: Client, tmp_path: Path) -> None:
    place = make_repository(tmp_path, "Add everything")
    output = tmp_path / "notes.md"
    request = {"repository": str(place), "output": str(output)}
    run, _ = run_example(client, "release_notes", request, is_approved=False)
    assert run.output == {"path": None, "summary": "not published: read", "chars": 0}
    assert not output.exists()


@pytest.mark.parametrize(
    ("given", "word"),
    [({"repository": "no-such-place"}, "no directory"), ({"since": "--output=x"}, "rev-parse")],
)
def test_release_notes_say_what_they_cannot_read(
    client: Client, tmp_path: Path, given: dict[str, str], word: str
) -> None:
    make_repository(tmp_path, "Add everything")
    run, _ = run_example(client, "release_notes", {"repository": str(tmp_path), **given})
    assert run.status == "failed"
    assert word in (run.error or {})["message"]


@pytest.mark.skipif(not (TREE / ".git").exists(), reason="this tree is no git repository")
def test_release_notes_of_this_repository(client: Client, tmp_path: Path) -> None:
    output = tmp_path / "notes.md"
    run, _ = run_example(client, "release_notes", {"output": str(output), "max_chars": 3000})
    assert run.status == "finished"
    assert len(output.read_text(encoding="utf-8")) <= 3000


@pytest.mark.parametrize(
    ("subject", "paths", "kind"),
    [
        ("feat: x", [], "features"),
        ("chore(deps): x", [], "internal"),
        ("ci: x", ["src/a.py"], "build"),
        ("refactor!: x", [], "breaking"),
        ("Add a page", ["docs/a.md", "README.md"], "documentation"),
        ("Add a case", ["tests/test_a.py"], "tests"),
        ("Add a case", ["tests/test_a.py", "a.py"], "features"),
        ("Bump x from 1 to 2", ["a.py"], "build"),
        ("Fix CVE-2026-1", [], "security"),
        ("Handle empty names", ["a.py"], "fixes"),
        ("Drop Python 3.8", ["a.py"], "removed"),
        ("Decide purely", ["a.py"], "other"),
    ],
)
def test_a_commit_is_sorted_by_prefix_place_and_words(
    subject: str, paths: list[str], kind: str
) -> None:
    commit = Commit(sha="1" * 40, author="a", date="2026-01-01", subject=subject, paths=paths)
    assert kind_of(commit) == kind


def test_a_commit_without_a_subject_still_has_a_line() -> None:
    assert describe(Commit(sha="1", author="a", date="d", subject="")) == "(no subject)"
    lines = compose_section(NotesSection(kind="other", lines=["a", "b", "c"]), 1)
    assert lines[-2:] == ["- a", "- … and 2 more"]


def travel(client: Client, **given: Any) -> tuple[Run, list[Event]]:
    """Run the trip, and answer what it asks."""
    run_id = client.start("examples/trip.py", given)
    events = []
    for event in client.stream(run_id):
        events.append(event)
        if event.type == "NodeWaitingApproval" and event.node_id == "way":
            client.approve(run_id, "way", selected="train")
        elif event.type == "NodeWaitingApproval":
            with pytest.raises(RequestRefused, match="does not fit"):
                client.answer(run_id, "wish", {"nights": 99})
            client.answer(run_id, "wish", {"nights": 3})
    return client.get(run_id), events


def test_a_trip_is_booked_for_everybody(client: Client) -> None:
    run, events = travel(client)
    assert run.status == "finished", run.error
    nodes = {node.node_id: node.output for node in client.list_nodes(run.run_id)}
    assert nodes["book-0"] == "3 nights for Ada"
    assert nodes["say"] == "2 have been told"
    assert [event.type for event in events].count("SubflowEnded") == 2


def test_a_trip_without_a_bed_gives_the_way_back_and_says_so(client: Client) -> None:
    run, events = travel(client, beds=1)
    assert run.status == "finished", run.error
    nodes = {node.node_id: node for node in client.list_nodes(run.run_id)}
    assert "no bed is left for Grace" in nodes["apologise"].output
    assert nodes["say"].output == "2 have been told"
    started = [event for event in events if event.type == "SubflowStarted"]
    child = started[1].field("childRunId")
    assert client.get(child).status == "failed"
    undone = {node.node_id: node.output for node in client.list_nodes(child)}
    assert undone["give-way-back"] == "train of Grace given back"


def test_code_review_reads_what_grep_found_in_this_repository(client: Client) -> None:
    run, events = run_example(client, "code_review", {"path": "smithers"})
    assert run.status == "finished", run.error
    first, *lines = run.output.splitlines()
    assert first == "3 handlers of every exception looked at in smithers"
    assert all(line.startswith("smithers/") and line.endswith(" why") for line in lines)
    called = [event.field("toolName") for event in events if event.type == "ToolCallFinished"]
    assert called == ["grep", "read", "read", "read"]
    assert sum(event.type == "TokenUsageReported" for event in events) == 5
