"""Workflows with a database of their own, over HTTP: started, read, decided and listed where they live, whoever asks."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.databases import Databases
from gateway.settings import GatewaySettings
from smithers.errors import StoreUnavailable
from smithers.kept_process import KeptProcess, Program
from smithers.pools import UNSET_EVERY_S, Pools
from smithers.store.connections import open_pool
from smithers.store.own_databases import list_own_databases
from smithers.telemetry.sheet import Counter
from tests.support.gateway import HELLO, Client, Rows, running, settings_for
from tests.support.mirrors import NAME, two_worlds, until_mirrored
from tests.support.world import World, until

START = {"workflowPath": "hello.py"}
ASKING = """
    from smithers import Approval, Sequence, Task, workflow

    @workflow(database="ORDERS")
    def asking(ctx):
        return Sequence(Approval("ask", title="Go on?"), Task("last", lambda: "done"))
"""


@pytest.fixture
async def worlds(
    database: str, postgres_server: str, database_template: str, tmp_path: Path
) -> AsyncIterator[tuple[World, World]]:
    async with two_worlds(database, postgres_server, database_template, tmp_path) as both:
        home, _ = both
        home.write("hello.py", HELLO)
        await Rows(home.sql, home.root).describe(database=NAME)
        home.write("plain.py", HELLO)
        await Rows(home.sql, home.root).describe("plain.py")
        yield both


def settings(worlds: tuple[World, World], **changes: Any) -> GatewaySettings:
    home, own = worlds
    return settings_for(home.dsn, home.root, **{"own_databases": {NAME: own.dsn}, **changes})


@pytest.fixture
async def client(worlds: tuple[World, World]) -> AsyncIterator[Client]:
    async with running(settings(worlds)) as client:
        yield client


async def close_database(world: World, server: str) -> None:
    """Have a database refuse everybody, as if it were down."""
    name = await world.sql.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(server)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    await admin.close()


async def open_database(world: World, server: str, name: str) -> None:
    admin = await asyncpg.connect(server)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await admin.close()
    world.sql = await asyncpg.connect(world.dsn)


async def test_a_run_starts_in_its_workflows_database_and_leaves_its_id_in_the_servers(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, own = worlds
    answer = await client.post("/v1/runs", {**START, "runId": "r", "input": {"name": "Ada"}})
    assert answer.status == 200, answer
    assert await own.sql.fetchval("SELECT due_at IS NOT NULL FROM smithers.runs WHERE run_id = 'r'")
    mirror = await home.sql.fetchrow("SELECT * FROM smithers.runs WHERE run_id = 'r'")
    assert mirror is not None
    assert (mirror["database"], mirror["mirrored_seq"], mirror["due_at"]) == (NAME, -1, None)
    assert await home.sql.fetchval("SELECT count(*) FROM smithers.events") == 0
    assert await own.sql.fetchval("SELECT count(*) FROM smithers.workflow_sources") == 1
    assert (await client.get("/v1/runs/r")).json["input"] == {"name": "Ada"}
    listed = (await client.get("/v1/runs")).json
    assert [(row["runId"], row["status"]) for row in listed] == [("r", "queued")]


async def test_no_row_and_no_answer_holds_a_url(
    client: Client, worlds: tuple[World, World]
) -> None:
    _, own = worlds
    await client.post("/v1/runs", {**START, "runId": "r"})
    secret = own.dsn.partition("?")[0].rpartition("/")[2]  # no other text has the database's name
    for world in worlds:
        for table in ("runs", "run_requests", "own_databases", "events", "workflow_descriptions"):
            rows = await world.sql.fetch(f"SELECT to_jsonb(t)::text FROM smithers.{table} t")
            assert secret not in str(rows)
    assert secret not in (await client.get("/v1/runs/r")).body.decode()
    assert secret not in repr(settings(worlds))


async def test_one_id_is_one_run_whatever_the_database(
    client: Client, worlds: tuple[World, World]
) -> None:
    bodies = [
        {"workflowPath": path, "runId": "r"} for path in ["hello.py"] * 10 + ["plain.py"] * 10
    ]
    answers = await asyncio.gather(*(client.post("/v1/runs", body) for body in bodies))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    counts = [
        await world.sql.fetchval("SELECT count(*) FROM smithers.runs WHERE database IS NULL")
        for world in worlds
    ]
    assert sorted(counts) == [0, 1]


async def test_the_same_key_starts_one_run_even_where_the_first_start_stopped_half_way(
    client: Client, worlds: tuple[World, World]
) -> None:
    _, own = worlds
    header = {"Idempotency-Key": "k"}
    first = await client.post("/v1/runs", START, **header)
    await own.sql.execute("DELETE FROM smithers.runs")  # as if its gateway had died before
    await own.sql.execute("DELETE FROM smithers.run_requests")
    await own.sql.execute("DELETE FROM smithers.events")
    again = await client.post("/v1/runs", START, **header)
    assert first.json == again.json
    assert (await client.post("/v1/runs", START, **header)).json == first.json
    events = await own.events(first.json["runId"])
    assert [event["runId"] for event in events] == [first.json["runId"]]


async def test_a_start_that_stopped_half_way_goes_on_as_it_was_asked_for_whatever_the_file_is_now(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, own = worlds
    body, header = {**START, "runId": "r", "input": {"name": "Ada"}}, {"Idempotency-Key": "k"}
    await client.post("/v1/runs", body, **header)
    request = await own.sql.fetchrow("DELETE FROM smithers.run_requests RETURNING *")
    await own.sql.execute("DELETE FROM smithers.runs")
    await own.sql.execute("DELETE FROM smithers.events")
    home.write("hello.py", HELLO + "raise ValueError\n")
    await Rows(home.sql, home.root).describe(error="hello.py cannot be imported: ValueError")
    for _ in range(2):
        assert (await client.post("/v1/runs", body, **header)).json == {"runId": "r"}
    again = await own.sql.fetchrow("SELECT * FROM smithers.run_requests")
    assert again is not None
    assert request is not None
    assert (again["source_hash"], again["input"]) == (request["source_hash"], request["input"])
    assert len(await own.events("r")) == 1


async def test_a_fresh_key_does_not_stand_for_a_run_that_somebody_else_started(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, own = worlds
    await client.post("/v1/runs", {**START, "runId": "r"})
    await Rows(own.sql, own.root).add_run("theirs")  # at that database's own server
    header = {"Idempotency-Key": "k"}
    for run_id in ("r", "theirs"):
        answer = await client.post("/v1/runs", {**START, "runId": run_id}, **header)
        assert (answer.status, answer.code) == (409, "RUN_ALREADY_EXISTS")
    assert await home.sql.fetchval("SELECT count(*) FROM smithers.idempotency_keys") == 0
    answers = await asyncio.gather(
        *(client.post("/v1/runs", {**START, "runId": "mine"}, **header) for _ in range(5)),
        *(client.post("/v1/runs", {**START, "runId": "mine"}) for _ in range(5)),
    )
    with_key, without = answers[:5], answers[5:]
    statuses = {answer.status for answer in with_key}
    assert len(statuses) == 1
    started = [answer.status for answer in without].count(200)
    assert started == (0 if statuses == {200} else 1)
    assert len(await own.events("mine")) == 1


async def test_a_reservation_without_a_run_is_started_by_the_same_request(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, own = worlds
    await home.sql.execute(
        """INSERT INTO smithers.runs (run_id, database, mirrored_seq, last_seq, status, created_at)
        VALUES ('r', $1, -1, -1, 'queued', now())""",
        NAME,
    )
    assert (await client.post("/v1/runs", {**START, "runId": "r"})).status == 200
    assert await own.status("r") == "queued"
    assert (await client.post("/v1/runs", {**START, "runId": "r"})).status == 409


async def test_what_is_decided_at_either_server_reaches_the_run(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, own = worlds
    home.write("asking.py", ASKING)
    await Rows(home.sql, home.root).describe("asking.py", database=NAME)
    own.start_pool(workers=1, mirror_name=NAME, mirror_dsn=home.dsn)
    for run_id in ("a", "b"):
        start = {"workflowPath": "asking.py", "runId": run_id}
        assert (await client.post("/v1/runs", start)).status == 200
        await own.until_status(run_id, "waiting-approval")
    await until_mirrored(home, own)
    listed = (await client.get("/v1/approvals")).json["approvals"]
    assert [approval["runId"] for approval in listed] == ["a", "b"]
    async with client.stream("a") as stream:
        assert (await client.post("/v1/runs/a/nodes/ask/approve", {"note": "yes"})).status == 200
        assert (await stream.rest())[-1] >= 5
    async with running(settings_for(own.dsn, home.root)) as direct:
        assert (await direct.post("/v1/runs/b/nodes/ask/approve")).status == 200
    for run_id in ("a", "b"):
        await own.until_status(run_id, "finished")
    await until_mirrored(home, own)
    assert [row["status"] for row in (await client.get("/v1/runs")).json] == ["finished"] * 2
    assert (await client.get("/v1/approvals")).json == {"approvals": []}


async def test_signals_cancels_and_resumes_go_to_the_runs_database(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, own = worlds
    await client.post("/v1/runs", {**START, "runId": "r"})
    assert (await client.post("/v1/runs/r/signals/go", {"data": 1})).json["seq"] == 0
    assert await own.sql.fetchval("SELECT count(*) FROM smithers.signals") == 1
    assert (await client.post("/v1/runs/r/cancel")).status == 200
    assert await own.status("r") == "cancelled"
    (home.root / "hello.py").write_text(HELLO + "\n")
    assert (await client.post("/v1/runs", {**START, "runId": "r", "resume": True})).status == 200
    assert await own.status("r") == "queued"
    assert await own.sql.fetchval("SELECT count(*) FROM smithers.workflow_sources") == 2
    assert (await client.post("/v1/runs/r/cancel")).status == 200
    assert (await client.post("/v1/runs/r/resume", {})).json == {"runId": "r"}
    for path in ("", "/nodes", "/frames", "/why"):
        assert (await client.get(f"/v1/runs/r{path}")).status == 200, path
    assert await home.sql.fetchval("SELECT count(*) FROM smithers.signals") == 0


async def test_a_gateway_learns_from_another_that_a_database_came_into_use(
    client: Client, worlds: tuple[World, World]
) -> None:
    async with running(settings(worlds)) as other:
        await client.post("/v1/runs", {**START, "runId": "r"})

        async def reads_it_there() -> bool:
            return len((await other.get("/v1/runs/r")).json["summary"]) == 1

        await Rows(worlds[1].sql, worlds[1].root).add_node("r", "a", "pending")
        await until(reads_it_there, "the other gateway reads where the run is")


async def test_a_server_without_the_url_shows_the_mirror_and_lets_nobody_write_to_it(
    client: Client, worlds: tuple[World, World]
) -> None:
    await client.post("/v1/runs", {**START, "runId": "r"})
    for known in ({}, {"OTHER": worlds[1].dsn}):
        async with running(settings(worlds, own_databases=known)) as other:
            assert (await other.get("/v1/runs/r")).json["status"] == "queued"
            answer = await other.post("/v1/runs/r/cancel")
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert "retry-after" in answer.headers
            (reason,) = (await other.get("/v1/runs/r/why")).json["reasons"]
            assert (reason["kind"], NAME in reason["text"]) == ("elsewhere", True)
    assert await worlds[1].status("r") == "queued"


async def test_a_run_that_no_worker_has_the_url_for_says_which_variable_is_missing(
    client: Client,
) -> None:
    await client.post("/v1/runs", {**START, "runId": "r"})
    (reason,) = (await client.get("/v1/runs/r/why")).json["reasons"]
    assert reason["kind"] == "no-worker"
    assert reason["unblock"]["command"] == f"{NAME}=URL smithers worker --queue default"


@pytest.mark.parametrize(("every_s", "is_said_again"), [(UNSET_EVERY_S, False), (0.0, True)])
async def test_a_server_whose_workers_lack_the_url_says_so_at_once_and_then_seldom(
    worlds: tuple[World, World],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    every_s: float,
    is_said_again: bool,
) -> None:
    home, _ = worlds
    monkeypatch.setattr("smithers.pools.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("smithers.pools.UNSET_EVERY_S", every_s)
    found: list[list[str]] = []

    async def look(connection: asyncpg.Connection) -> list[str]:
        found.append(await list_own_databases(connection))
        return found[-1]

    monkeypatch.setattr("smithers.pools.list_own_databases", look)
    (tmp_path / "idle.py").write_text("import sys; sys.stdin.read()")
    environment = {"PYTHONPATH": str(tmp_path)}
    deaths = Counter(memoryview(bytearray(8)).cast("d"), 0)
    program = Program(module="idle", environment=environment, cwd=tmp_path, deaths=deaths)
    main = KeptProcess(program)
    pools = Pools(main, b"", {}, direct_dsn=home.dsn, retention=None)
    with capture_logs() as logs:
        await pools.start()
        try:
            await home.sql.execute("INSERT INTO smithers.own_databases (name) VALUES ($1)", NAME)

            async def is_found_often() -> bool:
                return found.count([NAME]) > 3

            await until(is_found_often, "it was found again and again")
        finally:
            await pools.end()
    assert {(said["event"], said["database"]) for said in logs} == {("own_database_not_set", NAME)}
    assert (len(logs) > 1) is is_said_again


async def test_what_cannot_be_written_down_as_used_is_not_connected_to(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = worlds
    connected: list[str] = []

    async def connect(url: str, _name: str) -> Any:
        connected.append(url)

    async def fail(_pool: asyncpg.Pool, _name: str) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr("gateway.databases.use_own_database", fail)
    async with open_pool(home.dsn, role="test", max_size=1) as pool:
        databases = Databases(pool, {NAME: own.dsn}, connect, migrate=False)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await databases.get(None, NAME)  # type: ignore[arg-type]  # services: not reached
    assert connected == []


async def test_a_name_that_is_not_known_is_refused_and_said(
    client: Client, worlds: tuple[World, World]
) -> None:
    home, _ = worlds
    await Rows(home.sql, home.root).describe(database="BILLING")
    async with running(settings(worlds)) as fresh:
        answer = await fresh.post("/v1/runs", START)
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
    assert "BILLING" in answer.json["error"]["details"]["reason"]
    assert await home.sql.fetchval("SELECT count(*) FROM smithers.runs") == 0


async def test_a_name_for_the_servers_own_database_is_that(
    worlds: tuple[World, World],
) -> None:
    home, _ = worlds
    async with running(settings(worlds, own_databases={NAME: home.dsn})) as client:
        assert (await client.post("/v1/runs", {**START, "runId": "r"})).status == 200
        assert (await client.post("/v1/runs/r/cancel")).status == 200
    assert await home.sql.fetchval("SELECT database FROM smithers.runs") is None
    assert await home.sql.fetchval("SELECT count(*) FROM smithers.own_databases") == 0


async def test_without_a_description_a_workflow_that_may_have_a_database_waits_for_a_worker(
    client: Client, worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = worlds
    monkeypatch.setattr("gateway.sources.DESCRIBE_S", 0.1)
    home.write("asking.py", ASKING)
    answer = await client.post("/v1/runs", {"workflowPath": "asking.py"})
    assert (answer.status, answer.code) == (503, "NO_WORKER")
    assert "retry-after" in answer.headers
    home.write("undescribed.py", HELLO + "# plain\n")
    assert (await client.post("/v1/runs", {"workflowPath": "undescribed.py"})).status == 200


async def test_a_database_without_the_schema_is_refused_with_the_command_that_makes_it(
    worlds: tuple[World, World],
) -> None:
    _, own = worlds
    await own.sql.execute("ALTER SCHEMA smithers RENAME TO elsewhere")
    async with running(settings(worlds)) as client:
        answer = await client.post("/v1/runs", START)
        assert (answer.status, answer.code) == (503, "UNAVAILABLE")
        assert "smithers db upgrade" in answer.json["error"]["message"]
    async with running(settings(worlds, migrate=True)) as client:
        assert (await client.post("/v1/runs", {**START, "runId": "r"})).status == 200
    assert await own.status("r") == "queued"


async def test_a_database_that_is_down_takes_its_runs_with_it_and_nothing_else(
    client: Client, worlds: tuple[World, World], postgres_server: str
) -> None:
    _, own = worlds
    name = await own.sql.fetchval("SELECT current_database()")
    await client.post("/v1/runs", {**START, "runId": "r"})
    await client.post("/v1/runs", {"workflowPath": "plain.py", "runId": "plain"})
    await close_database(own, postgres_server)
    for method, path, body in [
        ("GET", "/v1/runs/r", None),
        ("GET", "/v1/runs/r/events", None),
        ("GET", "/v1/runs/r/nodes", None),
        ("POST", "/v1/runs/r/cancel", {}),
        ("POST", "/v1/runs/r/signals/go", {}),
        ("POST", "/v1/runs", {**START, "runId": "second"}),
    ]:
        answer = await client.call(method, path, body)
        assert (answer.status, answer.code) == (503, "UNAVAILABLE"), path
    assert (await client.get("/v1/runs/plain")).status == 200
    assert (await client.post("/v1/runs/plain/cancel")).status == 200
    listed = (await client.get("/v1/runs")).json
    assert sorted(row["runId"] for row in listed) == ["plain", "r"]  # and no half of the second
    await open_database(own, postgres_server, name)
    assert (await client.get("/v1/runs/r")).json["status"] == "queued"
    assert (await client.post("/v1/runs", {**START, "runId": "second"})).status == 200


async def test_a_start_that_was_accepted_outlives_its_database(
    client: Client, worlds: tuple[World, World], postgres_server: str
) -> None:
    home, own = worlds
    home.write("asking.py", ASKING)
    await Rows(home.sql, home.root).describe("asking.py", database=NAME)
    name = await own.sql.fetchval("SELECT current_database()")
    own.start_pool(workers=1, mirror_name=NAME, mirror_dsn=home.dsn)
    assert (
        await client.post("/v1/runs", {"workflowPath": "asking.py", "runId": "r"})
    ).status == 200
    await close_database(own, postgres_server)
    assert (await client.get("/v1/runs/r")).status == 503
    await open_database(own, postgres_server, name)
    await own.until_status("r", "waiting-approval")
    await until_mirrored(home, own)
    assert (await client.post("/v1/runs/r/nodes/ask/approve")).status == 200
    await own.until_status("r", "finished")


async def test_a_server_that_keeps_nothing_lists_nothing_and_does_all_else(
    worlds: tuple[World, World],
) -> None:
    async with running(settings(worlds, is_kept=False)) as client:
        await client.post("/v1/runs", {"workflowPath": "plain.py", "runId": "r"})
        for path in (
            "/v1/runs",
            "/v1/approvals",
            "/v1/approval/list",
            "/approval/list",
            "/approvals",
        ):
            answer = await client.get(path)
            assert (answer.status, answer.code) == (400, "DB_NOT_CONFIGURED"), path
        assert (await client.get("/v1/runs/r")).status == 200
        assert (await client.post("/v1/runs/r/cancel")).status == 200
        assert json.loads((await client.get("/v1/runs/r")).body)["status"] == "cancelled"
