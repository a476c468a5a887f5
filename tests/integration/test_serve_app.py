"""One run as an application: by itself, and below a prefix of somebody else's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from gateway.run_site import (
    ServeOptions,
    StoreAddress,
    WorkflowReference,
    create_serve_app,
    open_run_site,
)
from smithers.listener import bind
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from tests.support.canary import TOKEN
from tests.support.gateway import Answer, Client, Port, Rows
from tests.support.postgres import fresh_database

REFERENCE = WorkflowReference(path="hello.py", source_hash="none", name="hello")


def options_for(dsn: str, **changes: Any) -> ServeOptions:
    told = {"workflow": REFERENCE, "store": StoreAddress(dsn=dsn), "run_id": "r"}
    return ServeOptions(**{**told, "auth_token": TOKEN, **changes})


@asynccontextmanager
async def alone(dsn: str, *, token: str | None = TOKEN, **changes: Any) -> AsyncIterator[Client]:
    with bind("127.0.0.1", 0) as listener:
        options = options_for(dsn, auth_token=token, **changes)
        page = Sheet.create().open_page(Role.GATEWAY)
        async with open_run_site(options, listener, page, drain_timeout_s=60):
            yield Client(Port(listener.getsockname()[1]), token=token)


@asynccontextmanager
async def mounted(dsn: str, prefix: str, **changes: Any) -> AsyncIterator[Client]:
    """Mount the application in one that is none of ours, on aiohttp's own server."""

    async def own(_request: web.Request) -> web.Response:
        return web.Response(text="the host's own")

    host = web.Application()
    host.router.add_get("/", own)
    host.add_subapp(prefix, create_serve_app(options_for(dsn, **changes)))
    runner = web.AppRunner(host, access_log=None)
    await runner.setup()
    with bind("127.0.0.1", 0) as listener:
        await web.SockSite(runner, listener).start()
        try:
            yield Client(Port(listener.getsockname()[1]))
        finally:
            await runner.cleanup()


async def test_it_serves_its_run_and_nothing_else(database: str, rows: Rows) -> None:
    await rows.add_run("r", events=2)
    await rows.add_run("other")
    async with alone(database) as client:
        status = await client.get("/")
        assert (status.status, status.json["runId"], status.json["status"]) == (200, "r", "queued")
        assert (await client.get("/frames")).json == []
        for path in ("/v1/runs", "/v1/runs/other", "/other", "//", "/ready", "/openapi.json"):
            answer = await client.get(path)
            assert (answer.status, answer.code) == (404, "NOT_FOUND"), path
        assert (await client.post("/")).code == "NOT_FOUND"


async def test_health_is_open_and_all_else_wants_the_token(database: str, rows: Rows) -> None:
    await rows.add_run("r")
    async with alone(database) as client:
        client.token = None
        health = await client.get("/health")
        assert (health.status, health.json) == (200, {"ok": True})
        for method, path in [
            ("GET", "/"),
            ("GET", "/events"),
            ("GET", "/frames"),
            ("GET", "/metrics"),
            ("GET", "/nothing"),
            ("POST", "/approve/a"),
            ("POST", "/deny/a"),
            ("POST", "/cancel"),
        ]:
            answer = await client.call(method, path)
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), path
            assert_has_our_headers(answer)
        assert (await client.get("/", **{"x-smithers-key": TOKEN})).status == 200


def assert_has_our_headers(answer: Answer) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]


async def test_without_a_token_only_loopback_names_are_answered(database: str, rows: Rows) -> None:
    await rows.add_run("r")
    async with alone(database, token=None) as client:
        assert (await client.get("/")).status == 200
        assert (await client.get("/", Host="rebound.example")).code == "FORBIDDEN"


async def test_a_run_that_is_not_there_yet_is_404_and_appears(database: str, rows: Rows) -> None:
    async with alone(database) as client:
        for call in (client.get("/"), client.get("/events"), client.post("/cancel")):
            assert (await call).code == "NOT_FOUND"
        await rows.add_run("r")
        assert (await client.get("/")).status == 200


@pytest.mark.parametrize("query", ["afterSeq=x", "afterSeq=-2", "afterSeq=1&afterSeq=2"])
async def test_a_bad_number_is_400(database: str, rows: Rows, query: str) -> None:
    await rows.add_run("r")
    async with alone(database) as client:
        assert (await client.get(f"/events?{query}")).code == "INVALID_REQUEST"
        assert (await client.get("/frames?limit=0")).code == "INVALID_REQUEST"


async def test_bodies_are_held_to_the_same_limits(database: str, rows: Rows) -> None:
    await rows.add_run("r")
    async with alone(database) as client:
        for body, code in [
            (b"{", "INVALID_JSON"),
            (b"[]", "INVALID_REQUEST"),
            (b'{"iteration": -1}', "INVALID_REQUEST"),
            (b" " * 1_100_000, "PAYLOAD_TOO_LARGE"),
        ]:
            assert (await client.post("/approve/a", body)).code == code


async def test_an_approval_is_given_once_and_named_by_its_percent_coded_node(
    database: str, rows: Rows
) -> None:
    await rows.add_run("r")
    await rows.ask("r", "50%")
    async with alone(database) as client:
        approved = await client.post("/approve/50%25", {"note": "yes"})
        assert (approved.status, approved.json) == (200, {"runId": "r"})
        assert (await client.post("/deny/50%25")).code == "NODE_NOT_WAITING"
        assert (await client.post("/deny/nothing")).code == "NOT_FOUND"


async def test_by_its_name_it_is_read_and_steered_as_at_a_whole_server(
    database: str, rows: Rows
) -> None:
    await rows.add_run("r")
    await rows.ask("r", "gate")
    await rows.add_run("other")
    await rows.ask("other", "gate")
    async with alone(database) as client:
        assert (await client.get("/v1/runs/r")).json["runId"] == "r"
        assert (await client.get("/v1/runs/r/nodes")).json[0]["nodeId"] == "gate"
        assert (await client.get("/v1/runs/r/why")).status == 200
        assert (await client.get("/v1/runs/r/frames")).json == []
        asked = (await client.get("/v1/approvals")).json["approvals"]
        assert [(one["runId"], one["nodeId"]) for one in asked] == [("r", "gate")]
        assert (await client.post("/v1/runs/r/nodes/gate/approve")).json == {"runId": "r"}
        assert (await client.post("/v1/runs/r/signals/paid", {"data": 1})).json["seq"] == 0
        for path in ("/v1/runs/r/resume", "/v1/runs/r/events/token", "/v1/runs/other/cancel"):
            answer = await client.post(path)
            assert (answer.status, answer.code) == (404, "NOT_FOUND"), path
        assert (await client.get("/v1/runs/%FF")).code == "NOT_FOUND"
        await rows.go_on_as("r", "r+1")
        assert (await client.get("/v1/runs/r")).json["status"] == "continued"
        assert (await client.post("/v1/runs/r+1/cancel")).json == {"runId": "r+1"}


@pytest.mark.parametrize("path", ["/cancel", "/v1/runs/r/cancel"])
async def test_a_cancel_tells_whoever_runs_the_run(database: str, rows: Rows, path: str) -> None:
    await rows.add_run("r")
    abort = asyncio.Event()
    async with alone(database, abort=abort) as client:
        assert not abort.is_set()
        assert (await client.post(path)).json == {"runId": "r"}
        assert abort.is_set()
        assert (await client.get("/")).json["status"] == "cancelled"
        assert (await client.post("/cancel")).code == "RUN_NOT_ACTIVE"


async def test_a_cancel_that_lost_tells_nobody(database: str, rows: Rows) -> None:
    await rows.add_run("r", status="finished")
    abort = asyncio.Event()
    async with alone(database, abort=abort) as client:
        assert (await client.post("/cancel")).code == "RUN_NOT_ACTIVE"
    assert not abort.is_set()


async def test_what_a_run_has_gone_on_as_is_served_in_its_place(database: str, rows: Rows) -> None:
    await rows.add_run("r", events=2)
    async with alone(database) as client:
        async with client.stream_at("/events") as events:
            assert await events.take(2) == [0, 1]
            await rows.go_on_as("r", "r+1")
            assert await events.rest() == [2]
        await rows.go_on_as("r+1", "r+2")
        await rows.ask("r+2", "gate")
        assert (await client.get("/")).json["runId"] == "r+2"
        assert (await client.get("/frames")).json == []
        await rows.connection.execute("DELETE FROM smithers.runs WHERE run_id IN ('r', 'r+1')")
        approved = await client.post("/approve/gate")
        assert (approved.status, approved.json) == (200, {"runId": "r+2"})
        async with client.stream_at("/events") as events:
            assert await events.take(2) == [0, 1]
            assert (await client.post("/cancel")).json == {"runId": "r+2"}
            assert await events.rest() != []


async def test_metrics_are_there_unless_switched_off(database: str, rows: Rows) -> None:
    await rows.add_run("r")
    async with alone(database) as client:
        assert (await client.get("/frames")).status == 200
        assert 'route="/frames"' in (await client.get("/metrics")).body.decode()
    async with alone(database, metrics=False) as client:
        assert (await client.get("/metrics")).code == "NOT_FOUND"


@pytest.mark.parametrize("prefix", ["/run", "/a/b"])
async def test_below_a_prefix_it_is_the_same(database: str, rows: Rows, prefix: str) -> None:
    await rows.add_run("r", events=3, status="waiting-approval")
    await rows.add_node("r", "ask", "waiting-approval", kind="approval")
    async with mounted(database, prefix) as client:
        assert (await client.get("/")).body == b"the host's own"
        assert (await client.get(f"{prefix}/health")).json == {"ok": True}
        for path in (prefix, f"{prefix}/"):
            assert (await client.get(path)).json["runId"] == "r"
        for path in (f"{prefix}/nothing", f"{prefix}{prefix}/health", f"{prefix}//health"):
            answer = await client.get(path)
            assert (answer.status, answer.code) == (404, "NOT_FOUND"), path
            assert_has_our_headers(answer)
        async with client.stream_at(f"{prefix}/events?afterSeq=0") as events:
            assert await events.take(2) == [1, 2]
            await rows.add_events("r", 1, status="finished")
            assert await events.rest() == [3]
        assert (await client.get(f"{prefix}/events?afterSeq=3")).status == 204


async def test_below_a_prefix_a_viewer_that_leaves_is_forgotten(database: str, rows: Rows) -> None:
    await rows.add_run("r", events=2)
    async with mounted(database, "/run") as client:
        async with client.stream_at("/run/events") as left:
            assert await left.take(2) == [0, 1]
            assert await count_streams(client) == 1
        async with asyncio.timeout(60):
            while await count_streams(client):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("place", [alone, lambda dsn: mounted(dsn, "/run")])
async def test_the_end_of_the_application_ends_streams_after_a_whole_event(
    database: str, rows: Rows, place: Any
) -> None:
    await rows.add_run("r", events=2)
    async with AsyncExitStack() as viewing:
        async with place(database) as client:
            path = "/events" if place is alone else "/run/events"
            events = await viewing.enter_async_context(client.stream_at(path))
            assert await events.take(2) == [0, 1]
        assert await events.rest() == []


@pytest.fixture
async def own_store(
    database: str, rows: Rows, postgres_server: str, database_template: str
) -> AsyncIterator[StoreAddress]:
    """Where the run `r` asks the question `a`: a workflow's own database, of which the server's has a mirror."""
    await rows.add_run("r", events=0)
    await rows.connection.execute("INSERT INTO smithers.own_databases (name) VALUES ('ORDERS')")
    await rows.connection.execute("UPDATE smithers.runs SET database = 'ORDERS', mirrored_seq = -1")
    async with fresh_database(postgres_server, database_template) as own:
        connection = await asyncpg.connect(own)
        living = Rows(connection, rows.root)
        await living.add_run("r")
        await living.ask("r", "a")
        await connection.close()
        yield StoreAddress(dsn=database, own_databases={"ORDERS": own})


async def test_a_run_in_its_workflows_own_database_is_steered_where_it_lives(
    database: str, own_store: StoreAddress
) -> None:
    assert "postgres" not in repr(own_store)
    async with alone(database, store=own_store) as client:
        async with client.stream_at("/events") as events:
            assert await events.take(1) == [0]
            assert (await client.post("/approve/a")).status == 200
            assert await events.take(1) == [1]
            assert (await client.post("/cancel")).status == 200
            assert await events.rest() != []
        assert (await client.get("/")).json["status"] == "cancelled"


async def test_what_a_run_has_gone_on_as_is_steered_where_it_lives_when_the_first_is_gone(
    database: str, rows: Rows, own_store: StoreAddress
) -> None:
    connection = await asyncpg.connect(own_store.own_databases["ORDERS"])
    living = Rows(connection, rows.root)
    await living.go_on_as("r", "r+1")
    await living.ask("r+1", "b")
    await rows.add_run("r+1", events=0)
    await rows.connection.execute("UPDATE smithers.runs SET database = 'ORDERS', mirrored_seq = -1")
    async with alone(database, store=own_store) as client:
        assert (await client.get("/")).json["runId"] == "r+1"
        for each in (connection, rows.connection):  # as retention does
            await each.execute("DELETE FROM smithers.runs WHERE run_id = 'r'")
        approved = await client.post("/approve/b")
        assert (approved.status, approved.json) == (200, {"runId": "r+1"})
    await connection.close()


async def test_the_end_of_the_application_ends_the_streams_of_an_own_database_too(
    database: str, own_store: StoreAddress
) -> None:
    async with AsyncExitStack() as viewing:
        async with alone(database, store=own_store) as client:
            events = await viewing.enter_async_context(client.stream_at("/events"))
            assert await events.take(1) == [0]
        assert await events.rest() == []


async def count_streams(client: Client) -> int:
    text = (await client.get("/run/metrics")).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("smithers_streams_active ")]
    return int(float(line.split()[1]))


def test_a_run_needs_a_name_that_can_be_one() -> None:
    with pytest.raises(ValueError, match="not a run id"):
        create_serve_app(options_for("postgresql://nowhere/none", run_id="a/b"))
