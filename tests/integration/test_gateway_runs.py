"""Runs over HTTP: started, read, listed, cancelled, resumed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from smithers.ids import WorkerId, is_run_id
from smithers.store.claims import ClaimKind, claim_runs
from smithers.store.hints import Channel
from tests.support.gateway import HELLO, Client, Rows, running, settings_for

START = {"workflowPath": "hello.py"}


@pytest.fixture
def root(rows: Rows) -> Path:
    return rows.root


@pytest.fixture
async def client(database: str, rows: Rows) -> AsyncIterator[Client]:
    await rows.describe()
    async with running(settings_for(database, rows.root)) as client:
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
    client: Client, rows: Rows, changes: dict[str, Any], code: str
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
    assert row is not None
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
    unread: list[dict[str, Any]] = [
        {"input": {}},
        {"input": None, "runId": None, "resume": False},
        {"config": {"priority": 0, "maxConcurrency": None, "budget": {}}},
        {"nobody": "reads this"},
    ]
    for more in unread:
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
    started = client.gateway._front.services.metrics._runs_started
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
    await rows.ask("held", "gate")
    for _ in range(2):
        assert (await client.post("/v1/runs/held/cancel")).status == 200
    row = next(row for row in (await client.get("/v1/runs")).json if row["runId"] == "held")
    assert row["cancelRequestedAtMs"] is not None
    assert (await client.get("/v1/approvals")).json == {"approvals": []}
    assert (await client.post("/v1/runs/held/nodes/gate/approve")).code == "NODE_NOT_WAITING"


async def test_what_is_tried_again_later_is_what_a_run_waits_for(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("r", status="waiting-timer")
    await rows.add_node("r", "over", "finished")
    await rows.add_node("r", "flaky", "pending")
    await rows.connection.execute(
        "UPDATE smithers.nodes SET due_at = '2026-11-23T12:00:00Z' WHERE node_id = 'flaky'"
    )
    state = (await client.get("/v1/runs/r")).json["runState"]
    wanted = {"kind": "timer", "nodeId": "flaky", "wakeAt": "2026-11-23T12:00:00.000Z"}
    assert (state["state"], state["blocked"]) == ("waiting-timer", wanted)
    (row,) = (await client.get("/v1/runs?status=waiting-timer")).json
    assert row["runState"]["blocked"] == wanted


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
    await rows.describe()
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
        await rows.describe(f"hello.py:{meant}")
        resumed = await client.post(f"/v1/runs/{run_id}/resume", {"workflowPath": reference})
        assert resumed.json == {"runId": run_id}
        assert await rows.connection.fetchval(export) == meant


async def test_a_resume_may_name_another_workflow_of_the_same_source(
    client: Client, rows: Rows
) -> None:
    await rows.describe("hello.py:hello")
    run_id = (await client.post("/v1/runs", {"workflowPath": "hello.py:hello"})).json["runId"]
    await client.post(f"/v1/runs/{run_id}/cancel")
    await rows.describe("hello.py:other")
    named = {"workflowPath": "hello.py:other"}
    assert (await client.post(f"/v1/runs/{run_id}/resume", named)).json == {"runId": run_id}
    export = "SELECT workflow_export FROM smithers.run_requests"
    assert await rows.connection.fetchval(export) == "other"
    newest = "SELECT payload FROM smithers.events ORDER BY seq DESC LIMIT 2"
    events = [json.loads(row["payload"]) for row in await rows.connection.fetch(newest)]
    assert [event["type"] for event in events] == ["RunStatusChanged", "WorkflowReloaded"]


@pytest.mark.parametrize("status", ["waiting-approval", "failed"])
async def test_a_resume_with_a_source_that_cannot_be_loaded_is_refused_and_changes_nothing(
    client: Client, rows: Rows, root: Path, status: str
) -> None:
    run_id = (await client.post("/v1/runs", START)).json["runId"]
    await rows.connection.execute("UPDATE smithers.runs SET status = $1, due_at = NULL", status)
    before = (await client.get(f"/v1/runs/{run_id}")).json
    (root / "hello.py").write_text("import nothing_of_the_kind\n", encoding="utf-8")
    await rows.describe(error="hello.py, line 1: No module named 'nothing_of_the_kind'")
    refused = await client.post(f"/v1/runs/{run_id}/resume", START)
    assert (refused.status, refused.code) == (400, "INVALID_REQUEST")
    assert "nothing_of_the_kind" in refused.json["error"]["details"]["reason"]
    after = (await client.get(f"/v1/runs/{run_id}")).json
    for answer in (before, after):
        del answer["runState"]["computedAt"]
    assert after == before
    assert (await client.post(f"/v1/runs/{run_id}/resume")).status == 200


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


@pytest.mark.parametrize("started", ["hello.py", "hello.py:hello"])
async def test_a_resume_that_names_another_workflow_of_a_file_that_is_gone_is_refused(
    client: Client, rows: Rows, root: Path, started: str
) -> None:
    await rows.describe(started)
    run_id = (await client.post("/v1/runs", {"workflowPath": started})).json["runId"]
    await client.post(f"/v1/runs/{run_id}/cancel")
    (root / "hello.py").unlink()
    other = {"workflowPath": "hello.py:other"}
    refused = await client.post(f"/v1/runs/{run_id}/resume", other)
    assert (refused.status, refused.json) == (400, (await client.post("/v1/runs", other)).json)
    assert (await client.get(f"/v1/runs/{run_id}")).json["status"] == "cancelled"
    repeated = {"workflowPath": started}
    assert (await client.post(f"/v1/runs/{run_id}/resume", repeated)).json == {"runId": run_id}


async def test_a_resume_of_nothing_is_not_found_and_of_a_continued_run_refused(
    client: Client, rows: Rows
) -> None:
    await rows.add_run("old", status="continued")
    await rows.add_run("done", status="finished")
    assert (await client.post("/v1/runs/none/resume")).code == "RUN_NOT_FOUND"
    assert (await client.post("/v1/runs/old/resume")).code == "RUN_NOT_ACTIVE"
    assert (await client.post("/v1/runs/done/resume")).json == {"runId": "done"}
