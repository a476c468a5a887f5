"""What is in a run, over HTTP: its nodes, decisions, signals, frames and approvals."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.paging import MAX_PAGE_BYTES
from smithers.engine.frames import hash_of, make_delta
from smithers.ids import RunId
from smithers.store.node_reads import list_frames
from tests.support.gateway import Client, Rows, running, settings_for


@pytest.fixture
async def client(database: str, rows: Rows) -> AsyncIterator[Client]:
    async with running(settings_for(database, rows.root)) as client:
        yield client


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


async def test_a_page_of_questions_that_are_all_being_withdrawn_leads_to_the_next(
    client: Client, rows: Rows
) -> None:
    for run_id in ("ending", "open"):
        await rows.add_run(run_id)
        await rows.ask(run_id, "gate")
    await rows.own("ending")
    assert (await client.post("/v1/runs/ending/cancel")).status == 200
    first = await client.get("/v1/approvals?limit=1")
    assert first.json == {"approvals": []}
    following = first.headers["link"].partition(">")[0].removeprefix("<")
    (asked,) = (await client.get(following)).json["approvals"]
    assert asked["runId"] == "open"


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
        client.gateway._front.services.home.pool,
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


async def test_frames_are_whole_trees_however_they_are_stored_in_pages_either_way(
    client: Client, rows: Rows
) -> None:
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
