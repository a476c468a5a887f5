"""Runs over HTTP: started, read, listed, decided, signalled, cancelled, resumed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.paging import MAX_PAGE_BYTES
from smithers.ids import RunId, WorkerId, is_run_id
from smithers.store.claims import ClaimKind, claim_runs
from smithers.store.hints import Channel
from smithers.store.node_reads import list_frames
from tests.support.gateway import HELLO, Client, Rows, make_root, running, settings_for

START = {"workflowPath": "hello.py"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


@pytest.fixture
async def rows(database: str, root: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    rows = Rows(connection, root)
    await rows.describe()
    yield rows
    await connection.close()


@pytest.fixture
async def client(database: str, root: Path, rows: Rows) -> AsyncIterator[Client]:
    async with running(settings_for(database, root)) as client:
        yield client


async def test_a_start_answers_a_new_id_and_leaves_a_due_run_with_event_0(
    client: Client, rows: Rows
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = {
        **START,
        "input": {"name": "Ada", "big": 2**70, "nul": "a\0b"},
        "config": {"maxConcurrency": 3},
    }
    answer = await client.post("/v1/runs", body, traceparent=trace)
    assert answer.status == 200, answer
    run_id = answer.json["runId"]
    assert is_run_id(run_id)
    row = await rows.connection.fetchrow(
        """SELECT r.status, r.due_at <= smithers.clock() AS is_due, r.last_seq, q.* FROM smithers.runs r
        JOIN smithers.run_requests q USING (run_id) WHERE run_id = $1""",
        run_id,
    )
    assert row is not None
    assert (row["status"], row["is_due"], row["last_seq"]) == ("queued", True, 0)
    assert (row["workflow_name"], row["workflow_path"]) == ("hello", "hello.py")
    assert json.loads(row["input"]) == body["input"]
    assert json.loads(row["config"]) == {"maxConcurrency": 3}
    assert json.loads(row["auth"]) == {"user": None, "scopes": ["*"]}
    assert row["trace_context"] == trace
    stored = await rows.connection.fetchval(
        "SELECT bundle FROM smithers.workflow_sources WHERE source_hash = $1", row["source_hash"]
    )
    assert json.loads(stored)["entry"] == "hello.py"
    event = await rows.connection.fetchval(
        "SELECT payload FROM smithers.events WHERE run_id = $1", run_id
    )
    assert json.loads(event)["type"] == "RunStarted"


async def test_of_twenty_starts_with_one_id_one_wins(client: Client) -> None:
    body = {**START, "runId": "only-one"}
    answers = await asyncio.gather(*(client.post("/v1/runs", body) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    assert {answer.code for answer in answers if answer.status == 409} == {"RUN_ALREADY_EXISTS"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"workflowPath": None}, "INVALID_REQUEST"),
        ({"workflowPath": 1}, "INVALID_REQUEST"),
        ({"workflowPath": "../x.py"}, "WORKFLOW_PATH_OUTSIDE_ROOT"),
        ({"workflowPath": "/etc/passwd"}, "WORKFLOW_PATH_OUTSIDE_ROOT"),
        ({"workflowPath": "missing.py"}, "INVALID_REQUEST"),
        ({"workflowPath": "README.md"}, "INVALID_REQUEST"),
        ({"input": []}, "INVALID_REQUEST"),
        ({"runId": "a/b"}, "INVALID_REQUEST"),
        ({"runId": "-a"}, "INVALID_REQUEST"),
        ({"runId": "x" * 256}, "INVALID_REQUEST"),
        ({"resume": "yes"}, "INVALID_REQUEST"),
        ({"resume": True}, "RUN_ID_REQUIRED"),
        ({"config": {"maxConcurrency": 0}}, "INVALID_REQUEST"),
        ({"config": {"maxConcurrency": True}}, "INVALID_REQUEST"),
        ({"config": []}, "INVALID_REQUEST"),
    ],
)
async def test_a_start_with_a_wrong_field_is_refused_and_leaves_nothing(
    client: Client, rows: Rows, changes: dict, code: str
) -> None:
    answer = await client.post("/v1/runs", {**START, **changes})
    assert (answer.status, answer.code) == (400, code)
    assert await rows.connection.fetchval("SELECT count(*) FROM smithers.runs") == 0


async def test_an_input_that_does_not_fit_is_refused_with_each_error(client: Client) -> None:
    answer = await client.post("/v1/runs", {**START, "input": {"name": 5}})
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
    (error,) = answer.json["error"]["details"]["errors"]
    assert error["path"] == ["name"]


async def test_a_workflow_that_cannot_be_imported_is_refused_with_the_reason(
    client: Client, rows: Rows
) -> None:
    await rows.describe(error="ZeroDivisionError in hello.py, line 3")
    answer = await client.post("/v1/runs", START)
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
    assert "ZeroDivisionError" in answer.json["error"]["details"]["reason"]


async def test_a_start_waits_for_the_description_of_a_new_version(
    client: Client, rows: Rows, root: Path
) -> None:
    (root / "hello.py").write_text("# another version\n", encoding="utf-8")
    starting = asyncio.create_task(client.post("/v1/runs", START))
    await rows.until(WANTED)
    assert not starting.done()
    await rows.describe(workflow_name="renamed", queue="gpu", isolation="process")
    await rows.connection.execute("SELECT pg_notify('smithers_sources', 'x')")
    run_id = (await starting).json["runId"]
    row = await rows.connection.fetchrow(
        "SELECT queue, is_solo, workflow_name FROM smithers.runs JOIN smithers.run_requests USING (run_id)"
        " WHERE run_id = $1",
        run_id,
    )
    assert tuple(row) == ("gpu", True, "renamed")


WANTED = "SELECT source_hash FROM smithers.workflow_descriptions WHERE description IS NULL"


async def describe_wanted(rows: Rows, **changes: Any) -> None:
    """Be the pool, once somebody asks it."""
    await rows.until(WANTED)
    await rows.describe(**changes)
    await rows.connection.execute("SELECT pg_notify('smithers_sources', 'x')")


async def test_a_failure_answers_until_it_has_aged_and_is_then_looked_into_again(
    client: Client, rows: Rows
) -> None:
    await rows.describe(error="No such file: settings.toml")
    age = "UPDATE smithers.workflow_descriptions SET created_at = smithers.clock() - $1 * interval '1 s'"
    await rows.connection.execute(age, -3600)  # young, however long the next lines take
    for _ in range(2):
        assert (await client.post("/v1/runs", START)).code == "INVALID_REQUEST"
    assert await rows.connection.fetch(WANTED) == []
    await rows.connection.execute(age, 11)
    again, _ = await asyncio.gather(client.post("/v1/runs", START), describe_wanted(rows))
    assert again.status == 200


async def test_an_accident_answers_who_waits_and_the_next_start_asks_anew(
    client: Client, rows: Rows
) -> None:
    await rows.describe(error="old", is_accident=True)
    befell = "importing the workflow ended its process (exit code -9)"
    first, _ = await asyncio.gather(
        client.post("/v1/runs", START), describe_wanted(rows, error=befell, is_accident=True)
    )
    assert (first.status, first.json["error"]["details"]["reason"]) == (400, befell)
    second, _ = await asyncio.gather(client.post("/v1/runs", START), describe_wanted(rows))
    assert second.status == 200


async def test_an_accident_stands_where_nobody_finds_out_more_in_time(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sources.DESCRIBE_S", 0.05)
    await rows.describe(error="importing the workflow took longer than 20 s", is_accident=True)
    for _ in range(2):
        answer = await client.post("/v1/runs", START)
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
        assert "longer than 20 s" in answer.json["error"]["message"]
        assert await rows.connection.fetch(WANTED) != []
    await rows.describe()
    assert (await client.post("/v1/runs", START)).status == 200


async def test_a_version_that_nobody_describes_in_time_is_accepted(
    client: Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sources.DESCRIBE_S", 0.05)
    (root / "other.py").write_text("# nobody knows\n", encoding="utf-8")
    answer = await client.post("/v1/runs", {"workflowPath": "other.py", "input": {"name": 5}})
    assert answer.status == 200
    read = (await client.get(f"/v1/runs/{answer.json['runId']}")).json
    assert (read["workflowName"], read["status"]) == ("other", "queued")


async def test_an_edited_file_is_another_version_at_the_next_start(
    client: Client, rows: Rows, root: Path
) -> None:
    first = (await client.post("/v1/runs", START)).json["runId"]
    (root / "hello.py").write_text("# edited\n", encoding="utf-8")
    await rows.describe()
    second = (await client.post("/v1/runs", START)).json["runId"]
    hashes = [(await client.get(f"/v1/runs/{run}")).json["workflowHash"] for run in (first, second)]
    assert hashes[0] != hashes[1]


async def test_of_runs_that_are_due_the_higher_priority_is_claimed_first(
    client: Client, rows: Rows
) -> None:
    for run_id, config in (
        ("low", {"priority": -100}),
        ("plain", {}),
        ("high", {"priority": 100, "maxConcurrency": 2}),
        ("middle", {"priority": 7}),
    ):
        answer = await client.post("/v1/runs", {**START, "runId": run_id, "config": config})
        assert answer.status == 200, answer
    worker_id = WorkerId(await rows.add_worker())
    taken = []
    while claimed := await claim_runs(
        rows.connection, worker_id=worker_id, queue="default", limit=1, kind=ClaimKind.MANY
    ):
        taken += [claim.run_id for claim in claimed]
    assert taken == ["high", "middle", "plain", "low"]
    shown = {
        row["runId"]: json.loads(row["configJson"]) for row in (await client.get("/v1/runs")).json
    }
    assert shown == {
        "low": {"priority": -100},
        "plain": {},
        "high": {"maxConcurrency": 2, "priority": 100},
        "middle": {"priority": 7},
    }


@pytest.mark.parametrize("priority", [101, -101, 0.5, "1", True, [1]])
async def test_a_priority_is_a_whole_number_from_minus_100_to_100(
    client: Client, priority: object
) -> None:
    answer = await client.post("/v1/runs", {**START, "config": {"priority": priority}})
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
    assert answer.json["error"]["details"]["errors"][0]["path"] == ["config", "priority"]


async def test_an_idempotency_key_stands_for_one_run_however_often_and_at_once(
    client: Client,
) -> None:
    key = {"Idempotency-Key": "order-1"}
    answers = await asyncio.gather(*(client.post("/v1/runs", START, **key) for _ in range(10)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["runId"] for answer in answers}) == 1
    other = await client.post("/v1/runs", {"input": {"n": 1}, **START}, **key)
    assert (other.status, other.code) == (409, "IDEMPOTENCY_KEY_REUSED")
    for more in (
        {"input": {}},
        {"input": None, "runId": None, "resume": False},
        {"config": {"priority": 0, "maxConcurrency": None, "budget": {}}},
        {"nobody": "reads this"},
    ):
        assert (await client.post("/v1/runs", {**more, **START}, **key)).json == answers[0].json
    spelled = await client.post("/v1/runs", b'{ "workflowPath" :"hello.py"}', **key)
    assert spelled.json == answers[0].json
    assert len((await client.get("/v1/runs")).json) == 1


async def test_a_key_answers_for_its_run_whatever_has_become_of_the_file(
    client: Client, rows: Rows
) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = await client.post("/v1/runs", START, **key)
    file = rows.root / "hello.py"
    file.write_text(HELLO + "raise ValueError\n", encoding="utf-8")
    await rows.describe(error="hello.py cannot be imported: ValueError")
    assert (await client.post("/v1/runs", START)).status == 400
    assert (await client.post("/v1/runs", START, **key)).json == first.json
    file.unlink()
    assert (await client.post("/v1/runs", START, **key)).json == first.json
    other = await client.post("/v1/runs", {**START, "input": {"n": 1}}, **key)
    assert (other.status, other.code) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_a_start_that_is_repeated_counts_once(client: Client) -> None:
    started = client.gateway._services.metrics._runs_started
    before = started._words[started._at]
    body, key = {**START, "runId": "r"}, {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(client.post("/v1/runs", body, **key) for _ in range(5)))
    assert [answer.json for answer in answers] == [{"runId": "r"}] * 5
    assert started._words[started._at] == before + 1


async def test_a_refused_start_does_not_use_up_its_key(client: Client) -> None:
    await client.post("/v1/runs", {**START, "runId": "taken"})
    for _ in range(2):
        answer = await client.post(
            "/v1/runs", {**START, "runId": "taken"}, **{"Idempotency-Key": "k"}
        )
        assert (answer.status, answer.code) == (409, "RUN_ALREADY_EXISTS")


async def test_a_run_shows_its_input_output_error_and_the_states_of_its_nodes(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r", status="failed", events=3)
    await rows.add_node("r", "a", "finished", output='{"x":1}')
    await rows.add_node("r", "b", "failed")
    await rows.connection.execute(
        """UPDATE smithers.runs SET output_node_id = 'a', output_iteration = 0, started_at = smithers.clock(),
        finished_at = smithers.clock(), error = '{"name":"E","message":"m","traceback":"File x"}'"""
    )
    run = (await client.get("/v1/runs/r")).json
    assert run["output"] == {"x": 1}
    assert run["error"] == {"name": "E", "message": "m", "traceback": "File x"}
    assert run["summary"] == {"finished": 1, "failed": 1}
    assert run["lastSeq"] == 2
    assert run["runState"]["state"] == "failed"
    assert run["finishedAtMs"] >= run["startedAtMs"] > 1_600_000_000_000
    (row,) = (await client.get("/v1/runs")).json
    assert json.loads(row["errorJson"]) == {"name": "E", "message": "m"}


async def test_a_run_whose_owner_is_silent_is_stale_and_one_that_lost_it_is_recovering(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("fresh")
    await rows.own("fresh")
    await rows.add_run("stale")
    await rows.own("stale", heartbeat_age_s=31)
    await rows.add_run("lost", status="running")
    await rows.connection.execute(
        "UPDATE smithers.runs SET lost_heartbeat_at = smithers.clock() WHERE run_id = 'lost'"
    )
    states = {row["runId"]: row["runState"] for row in (await client.get("/v1/runs")).json}
    assert {run_id: state["state"] for run_id, state in states.items()} == {
        "fresh": "running",
        "stale": "stale",
        "lost": "recovering",
    }
    assert states["stale"]["unhealthy"]["kind"] == "engine-heartbeat-stale"
    assert "unhealthy" not in states["fresh"]


async def test_the_list_is_newest_first_in_pages_with_filters(client: Client, rows: Rows) -> None:
    for number in range(7):
        await rows.add_run(f"r{number}", status="finished" if number % 2 else "queued")
    path, seen = "/v1/runs?limit=3", []
    while True:
        answer = await client.get(path)
        seen += [row["runId"] for row in answer.json]
        if "link" not in answer.headers:
            break
        path = answer.headers["link"].split(">")[0][1:]
    assert seen == [f"r{number}" for number in reversed(range(7))]
    finished = (await client.get("/v1/runs?status=finished&workflow=hello")).json
    assert [row["runId"] for row in finished] == ["r5", "r3", "r1"]
    assert (await client.get("/v1/runs?workflow=other")).json == []


async def test_a_decision_is_recorded_once_and_its_opposite_is_refused(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    await rows.ask("r", "gate")
    (approval,) = (await client.get("/v1/approvals")).json["approvals"]
    assert (approval["requestTitle"], approval["runStatus"]) == ("Go?", "waiting-approval")
    blocked = (await client.get("/v1/runs/r")).json["runState"]["blocked"]
    assert (blocked["kind"], blocked["nodeId"]) == ("approval", "gate")
    approve = "/v1/runs/r/nodes/gate/approve"
    answers = await asyncio.gather(*(client.post(approve, {"note": "ok"}) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    refused = await client.post("/v1/runs/r/nodes/gate/deny")
    assert (refused.status, refused.code) == (409, "NODE_NOT_WAITING")
    granted = "SELECT count(*) FROM smithers.events WHERE payload LIKE '%ApprovalGranted%'"
    assert await rows.connection.fetchval(granted) == 1
    assert await rows.connection.fetchval("SELECT due_at IS NOT NULL FROM smithers.runs")
    assert (await client.get("/approval/list")).json == {"approvals": []}


async def test_approve_and_deny_race_to_one_outcome(client: Client, rows: Rows) -> None:
    for number in range(10):
        run_id = await rows.add_run(f"race-{number}")
        await rows.ask(run_id, "gate")
        node = f"/v1/runs/{run_id}/nodes/gate"
        answers = await asyncio.gather(client.post(f"{node}/approve"), client.post(f"{node}/deny"))
        assert sorted(answer.status for answer in answers) == [200, 409]
        status = await rows.connection.fetchval(
            "SELECT status FROM smithers.approvals WHERE run_id = $1", run_id
        )
        assert status == ("approved" if answers[0].status == 200 else "denied")


@pytest.mark.parametrize("path", ["a%20b", "caf%C3%A9", "x@@outer%3D0", "x@@outer=0", "100%25"])
async def test_a_node_id_is_decoded_and_one_with_a_percent_sign_is_found_raw(
    client: Client, rows: Rows, path: str
) -> None:
    from urllib.parse import unquote

    await rows.add_run("r")
    decoded = unquote(path)
    for node_id in {path, decoded} - {"a b"}:
        await rows.add_node("r", node_id, "finished")
    found = await client.get(f"/v1/runs/r/nodes/{path}")
    assert found.status == 200
    assert found.json["nodeId"] == path
    if decoded != path and decoded != "a b":
        await rows.connection.execute("DELETE FROM smithers.nodes WHERE node_id = $1", path)
        assert (await client.get(f"/v1/runs/r/nodes/{path}")).json["nodeId"] == decoded


async def test_nodes_come_with_attempts_and_large_outputs_only_when_asked_for(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    await rows.add_node("r", "a", "finished", output=json.dumps("x" * 100), attempt=2)
    await rows.add_node("r", "b", "pending")
    await rows.connection.execute(
        """INSERT INTO smithers.attempts (run_id, node_id, iteration, attempt, state, finished_at, error)
        VALUES ('r', 'a', 0, 1, 'failed', smithers.clock(), '{"name":"E","traceback":"t"}'),
               ('r', 'a', 0, 2, 'finished', smithers.clock(), NULL)"""
    )
    first, second = (await client.get("/v1/runs/r/nodes")).json
    assert [attempt["state"] for attempt in first["attempts"]] == ["failed", "finished"]
    assert first["attempts"][0]["error"] == {"name": "E", "traceback": "t"}
    assert (second["nodeId"], second["attempts"]) == ("b", [])
    small = (await client.get("/v1/runs/r/nodes/a?maxBytes=10")).json
    assert (small["output"], small["outputBytes"]) == (None, 102)
    assert (await client.get("/v1/runs/r/nodes/a?iteration=0")).json["output"] == "x" * 100
    assert (await client.get("/v1/runs/r/nodes/a?iteration=1")).status == 404
    assert (await client.get("/v1/runs/none/nodes")).code == "NOT_FOUND"
    page = await client.get("/v1/runs/r/nodes?limit=1")
    following = await client.get(page.headers["link"].split(">")[0][1:])
    assert [node["nodeId"] for node in page.json + following.json] == ["a", "b"]


async def test_why_names_no_question_that_is_decided(client: Client, rows: Rows) -> None:
    await rows.add_run("r", status="waiting-approval")
    for node_id in ("first", "second", "third"):
        await rows.ask("r", node_id)
    await client.post("/v1/runs/r/nodes/first/approve", {})
    await client.post("/v1/runs/r/nodes/third/deny", {})
    reasons = (await client.get("/v1/runs/r/why")).json["reasons"]
    asked = [reason["nodeId"] for reason in reasons if reason["kind"] == "approval"]
    assert asked == ["second"]


async def test_a_page_of_nodes_ends_before_it_is_too_large(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    third = MAX_PAGE_BYTES // 3
    sizes = {"a": third, "b": third, "c": third, "d": 10, "e": MAX_PAGE_BYTES, "f": 10}
    for node_id, size in sizes.items():
        await rows.add_node("r", node_id, "finished", output=json.dumps("x" * size))
    await rows.add_node("r", "g", "failed")
    await rows.connection.execute(
        """INSERT INTO smithers.attempts (run_id, node_id, iteration, attempt, state, finished_at, error)
        SELECT 'r', 'g', 0, n, 'failed', smithers.clock(), to_json(repeat('x', $1))::text
        FROM generate_series(1, 2) AS n""",
        MAX_PAGE_BYTES // 2,
    )
    path, pages = "/v1/runs/r/nodes?limit=7&maxBytes=10000000", []
    while path:
        answer = await client.get(path)
        pages.append([node["nodeId"] for node in answer.json])
        link = answer.headers.get("link")
        path = link.split(">")[0][1:] if link else ""
    assert pages == [["a", "b"], ["c", "d"], ["e"], ["f"], ["g"]]
    without = await client.get("/v1/runs/r/nodes?maxBytes=100")
    assert [node["nodeId"] for node in without.json] == list("abcdef")


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_no_more_frames_are_read_than_a_page_may_hold(
    client: Client, rows: Rows, order: str
) -> None:
    await rows.add_run("r")
    await rows.connection.execute(
        """INSERT INTO smithers.frames (run_id, frame_no, created_at, xml_hash, encoding, body)
        SELECT 'r', n, smithers.clock(), '', 'keyframe',
            '{"props":{},"children":[],"x":"' || repeat('x', $1) || '"}' FROM generate_series(1, 9) AS n""",
        MAX_PAGE_BYTES // 4,
    )
    found, lead_count, has_more = await list_frames(
        client.gateway._services.home.pool,
        RunId("r"),
        above=-1,
        below=100,
        is_ascending=order == "asc",
        limit=50,
        page_bytes=MAX_PAGE_BYTES,
    )
    assert (len(found), lead_count, has_more) == (3, 0, True)
    path, pages = f"/v1/runs/r/frames?order={order}", []
    while path:
        answer = await client.get(path)
        pages.append([frame["frameNo"] for frame in answer.json])
        link = answer.headers.get("link")
        path = link.split(">")[0][1:] if link else ""
    listed = list(range(1, 10)) if order == "asc" else list(range(9, 0, -1))
    assert pages == [listed[:3], listed[3:6], listed[6:]]


async def test_of_a_node_that_is_tried_for_ever_the_newest_hundred_attempts_are_listed(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    await rows.add_node("r", "a", "pending", attempt=1000)
    await rows.add_node("r", "b", "pending")
    await rows.connection.execute(
        """INSERT INTO smithers.attempts (run_id, node_id, iteration, attempt, state, finished_at, error)
        SELECT 'r', 'a', 0, n, 'failed', smithers.clock(), to_json(repeat('x', $1))::text
        FROM generate_series(1, 1000) AS n""",
        MAX_PAGE_BYTES // 200,
    )
    listed, other = (await client.get("/v1/runs/r/nodes")).json
    for node in (listed, (await client.get("/v1/runs/r/nodes/a")).json):
        assert [attempt["attempt"] for attempt in node["attempts"]] == list(range(901, 1001))
    assert other["attempts"] == []


async def test_a_schema_with_numbers_beyond_64_bits_is_listed_as_it_is(
    client: Client, rows: Rows
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2**70}}}
    await rows.describe(input_schema=schema)
    started = await client.post("/v1/runs", {**START, "input": {"n": 2**69}})
    (listed,) = (await client.get("/v1/workflows")).json
    assert listed["inputSchema"] == schema
    errors = [{"msg": f"more than {2**70}", "limit": 2**70}]
    run_id = started.json["runId"]
    await rows.ask(run_id, "form", mode="form", schema=schema, errors=errors)
    (asked,) = (await client.get("/v1/approvals")).json["approvals"]
    assert (asked["requestSchema"], asked["requestErrors"]) == (schema, errors)
    await rows.connection.execute(
        "UPDATE smithers.runs SET error = $1",
        json.dumps({"name": "E", "message": "m", "details": {"n": 2**70}, "traceback": "t"}),
    )
    assert (await client.get(f"/v1/runs/{run_id}")).json["error"]["details"] == {"n": 2**70}
    (row,) = (await client.get("/v1/runs")).json
    assert json.loads(row["errorJson"])["details"] == {"n": 2**70}


async def test_signals_are_numbered_kept_and_known_by_their_id(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    body = {"data": {"n": 1}, "correlationId": "c", "id": "mine"}
    first = (await client.post("/v1/runs/r/signals/go", body)).json
    assert (first["seq"], first["signalName"], first["correlationId"]) == (0, "go", "c")
    assert (await client.post("/signal/r/go", body)).json == first
    assert (await client.post("/signal/r/go%2Fnow", {})).json["signalName"] == "go/now"
    many = await asyncio.gather(*(client.post("/signal/r/many", {"data": n}) for n in range(20)))
    assert sorted(answer.json["seq"] for answer in many) == list(range(2, 22))
    blank = await client.post("/v1/runs/r/signals/%20", {})
    assert (blank.status, blank.code) == (400, "INVALID_REQUEST")
    await rows.connection.execute("UPDATE smithers.runs SET status = 'finished'")
    late = await client.post("/v1/runs/r/signals/go", {})
    assert (late.status, late.code) == (409, "RUN_NOT_ACTIVE")
    assert (await client.post("/v1/runs/r/signals/go", body)).json == first


@pytest.mark.parametrize(
    ("body", "data"), [(None, "{}"), ({}, "{}"), ({"data": None}, "null"), ({"data": 0}, "0")]
)
async def test_a_signal_without_data_carries_an_empty_object(
    client: Client, rows: Rows, body: Any, data: str
) -> None:
    await rows.add_run("r")
    assert (await client.post("/v1/runs/r/signals/go", body)).status == 200
    assert await rows.connection.fetchval("SELECT data FROM smithers.signals") == data


async def test_a_signals_name_is_read_as_it_was_sent(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    for path, name in (("100%", "100%"), ("100%25", "100%"), ("%zz", "%zz")):
        sent = await client.post(f"/v1/runs/r/signals/{path}", {})
        assert sent.json["signalName"] == name
    for path in ("%ff", "a%2520b", "%2E", "go%C2%A0on", "x" * 201):
        refused = await client.post(f"/v1/runs/r/signals/{path}", {})
        assert (refused.status, refused.code) == (400, "INVALID_REQUEST"), path


async def test_a_cancel_ends_a_run_that_nobody_holds_and_asks_the_owner_of_one_that_is_held(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("free")
    await rows.ask("free", "gate")
    await rows.add_run("held")
    await rows.own("held")
    assert (await client.post("/v1/runs/free/cancel")).json == {"runId": "free"}
    assert (await client.get("/v1/runs/free")).json["status"] == "cancelled"
    assert (await client.get("/v1/approvals")).json == {"approvals": []}
    assert (await client.post("/v1/runs/free/cancel")).code == "RUN_NOT_ACTIVE"
    for _ in range(2):
        assert (await client.post("/v1/runs/held/cancel")).status == 200
    (row,) = (await client.get("/v1/runs?status=running")).json
    assert row["cancelRequestedAtMs"] is not None


async def test_a_cancel_of_a_parked_run_that_has_to_clean_up_is_told_to_claimers(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("parked", status="waiting-timer")
    await rows.connection.execute("UPDATE smithers.runs SET has_cleanup = true, queue = 'slow'")
    heard: asyncio.Queue[object] = asyncio.Queue()
    await rows.connection.add_listener(Channel.DUE, lambda *told: heard.put_nowait(told[3]))
    assert (await client.post("/v1/runs/parked/cancel")).status == 200
    async with asyncio.timeout(60):
        assert await heard.get() == "slow"


async def test_a_resume_opens_a_new_era_and_takes_the_edited_source(
    client: Client, rows: Rows, root: Path
) -> None:
    run_id = (await client.post("/v1/runs", START)).json["runId"]
    active = await client.post(f"/v1/runs/{run_id}/resume")
    assert active.json == {"runId": run_id, "status": "running"}
    await client.post(f"/v1/runs/{run_id}/cancel")
    (root / "hello.py").write_text("# edited\n", encoding="utf-8")
    resumed = await client.post("/v1/runs", {**START, "runId": run_id, "resume": True})
    assert resumed.json == {"runId": run_id}
    payloads = await rows.connection.fetch("SELECT payload FROM smithers.events ORDER BY seq")
    events = [json.loads(row["payload"]) for row in payloads]
    assert [event["type"] for event in events] == [
        "RunStarted",
        "RunCancelled",
        "WorkflowReloaded",
        "RunStatusChanged",
    ]
    assert events[2]["changedFiles"] == ["hello.py"]
    assert (await client.get(f"/v1/runs/{run_id}")).json["status"] == "queued"


async def test_a_resume_by_its_file_alone_goes_on_with_the_workflow_that_was_started(
    client: Client, rows: Rows, root: Path
) -> None:
    await rows.describe("hello.py:hello")
    run_id = (await client.post("/v1/runs", {"workflowPath": "hello.py:hello"})).json["runId"]
    export = "SELECT workflow_export FROM smithers.run_requests"
    for reference, meant in (("hello.py", "hello"), ("hello.py:other", "other")):
        await client.post(f"/v1/runs/{run_id}/cancel")
        (root / "hello.py").write_text(f"# {reference}\n", encoding="utf-8")
        resumed = await client.post(f"/v1/runs/{run_id}/resume", {"workflowPath": reference})
        assert resumed.json == {"runId": run_id}
        assert await rows.connection.fetchval(export) == meant


async def test_a_resume_may_name_another_workflow_of_the_same_source(
    client: Client, rows: Rows
) -> None:
    await rows.describe("hello.py:hello")
    run_id = (await client.post("/v1/runs", {"workflowPath": "hello.py:hello"})).json["runId"]
    await client.post(f"/v1/runs/{run_id}/cancel")
    named = {"workflowPath": "hello.py:other"}
    assert (await client.post(f"/v1/runs/{run_id}/resume", named)).json == {"runId": run_id}
    export = "SELECT workflow_export FROM smithers.run_requests"
    assert await rows.connection.fetchval(export) == "other"
    newest = "SELECT payload FROM smithers.events ORDER BY seq DESC LIMIT 2"
    events = [json.loads(row["payload"]) for row in await rows.connection.fetch(newest)]
    assert [event["type"] for event in events] == ["RunStatusChanged", "WorkflowReloaded"]


async def test_a_resume_without_its_file_goes_on_with_the_stored_source(
    client: Client, root: Path
) -> None:
    run_id = (await client.post("/v1/runs", START)).json["runId"]
    await client.post(f"/v1/runs/{run_id}/cancel")
    before = (await client.get(f"/v1/runs/{run_id}")).json["workflowHash"]
    (root / "hello.py").unlink()
    misspelt = {"workflowPath": "helo.py"}
    refused = await client.post(f"/v1/runs/{run_id}/resume", misspelt)
    assert refused.code == (await client.post("/v1/runs", misspelt)).code
    assert (await client.get(f"/v1/runs/{run_id}")).json["status"] == "cancelled"
    spelled = {"workflowPath": "./hello.py"}
    assert (await client.post(f"/v1/runs/{run_id}/resume", spelled)).json == {"runId": run_id}
    assert (await client.get(f"/v1/runs/{run_id}")).json["workflowHash"] == before


async def test_a_resume_of_nothing_is_not_found_and_of_a_continued_run_refused(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("old", status="continued")
    await rows.add_run("done", status="finished")
    assert (await client.post("/v1/runs/none/resume")).code == "RUN_NOT_FOUND"
    assert (await client.post("/v1/runs/old/resume")).code == "RUN_NOT_ACTIVE"
    assert (await client.post("/v1/runs/done/resume")).json == {"runId": "done"}


async def test_frames_are_whole_trees_however_they_are_stored_in_pages_either_way(
    client: Client, rows: Rows
) -> None:
    from smithers.engine.frames import hash_of, make_delta

    await rows.add_run("r")
    trees = [
        json.dumps(
            {
                "children": [
                    {
                        "children": [],
                        "kind": "element",
                        "props": {"iteration": "0", "nodeId": f"n{number}"},
                        "tag": "smithers:task",
                    }
                ],
                "kind": "element",
                "props": {},
                "tag": "smithers:workflow",
            }
        )
        for number in range(1, 8)
    ]
    for number, tree in enumerate(trees, 1):
        is_key = number in {1, 5}
        body = tree if is_key else make_delta(trees[number - 2], tree)
        await rows.connection.execute(
            "INSERT INTO smithers.frames (run_id, frame_no, created_at, xml_hash, encoding, body)"
            " VALUES ('r', $1, smithers.clock(), $2, $3, $4)",
            number,
            hash_of(tree),
            "keyframe" if is_key else "delta",
            body,
        )
    for order, expected in (("asc", [1, 2, 3, 4, 5, 6, 7]), ("desc", [7, 6, 5, 4, 3, 2, 1])):
        path, seen = f"/v1/runs/r/frames?limit=3&order={order}", []
        while path:
            answer = await client.get(path)
            seen += answer.json
            link = answer.headers.get("link")
            path = link.split(">")[0][1:] if link else ""
        assert [frame["frameNo"] for frame in seen] == expected
        assert [frame["xmlJson"] for frame in seen] == [trees[number - 1] for number in expected]
        assert all(hash_of(frame["xmlJson"]) == frame["xmlHash"] for frame in seen)
    newest = (await client.get("/v1/runs/r/frames?afterFrameNo=5")).json
    assert [frame["frameNo"] for frame in newest] == [7, 6]
    assert json.loads(newest[0]["mountedTaskIdsJson"]) == ["n7::0"]
    assert (await client.get("/v1/runs/none/frames")).status == 404


async def test_approvals_come_in_pages_oldest_first(client: Client, rows: Rows) -> None:
    for number in range(5):
        await rows.ask(await rows.add_run(f"r{number}"), "gate")
    path, seen = "/approvals?limit=2", []
    while path:
        answer = await client.get(path)
        seen += [approval["runId"] for approval in answer.json["approvals"]]
        link = answer.headers.get("link")
        path = link.split(">")[0][1:] if link else ""
    assert seen == [f"r{number}" for number in range(5)]


async def test_all_approvals_come_at_once_where_no_limit_is_asked_for(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get("/approvals")).json == {"approvals": []}
    await rows.add_run("r")
    for number in range(600):
        await rows.ask("r", f"gate{number}")
    answer = await client.get("/approvals")
    assert len(answer.json["approvals"]) == 600
    assert "link" not in answer.headers
    monkeypatch.setattr("gateway.approvals.MAX_PAGE_BYTES", 10)
    answer = await client.get("/approvals")
    assert [approval["nodeId"] for approval in answer.json["approvals"]] == ["gate0"]
    assert "link" in answer.headers


async def test_an_approval_has_a_label_whatever_its_author_has_named(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r")
    for node_id, request in (("own", {}), ("titled", {}), ("bare", {"title": None})):
        await rows.ask("r", node_id, **request)
    await rows.connection.execute("UPDATE smithers.nodes SET label = 'L' WHERE node_id = 'own'")
    listed = (await client.get("/v1/approvals")).json["approvals"]
    assert [approval["label"] for approval in listed] == ["L", "Go?", "bare"]
