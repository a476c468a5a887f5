"""What stands between the socket and a handler: deadlines, malformed requests, credentials, the order of checks."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.access import Scope
from gateway.app import InsecureSettings, open_gateway
from gateway.protocol import KEEP_ALIVE_S
from gateway.routes import ROUTES
from gateway.routing import OPEN, Route
from gateway.services import POOL_SIZE
from tests.support.canary import TOKEN
from tests.support.gateway import (
    Client,
    Rows,
    make_root,
    parse_answer,
    running,
    settings_for,
)
from tests.support.world import until

AUTH = f"Authorization: Bearer {TOKEN}\r\n"
READER = "read-only-token"
EXPIRED = "expired-token"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.jsonl"
    write_tokens(path, {READER: ["runs:read"]})
    return path


def write_tokens(path: Path, tokens: dict[str, list[str]]) -> None:
    lines = [
        {"sha256": hashlib.sha256(token.encode()).hexdigest(), "user": token, "scopes": scopes}
        for token, scopes in tokens.items()
    ]
    lines.append(
        {
            "sha256": hashlib.sha256(EXPIRED.encode()).hexdigest(),
            "user": "gone",
            "scopes": ["*"],
            "expiresAt": "2020-01-01T00:00:00Z",
        }
    )
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


@pytest.fixture
async def rows(database: str, root: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    yield Rows(connection, root)
    await connection.close()


@pytest.fixture
async def client(database: str, root: Path, tokens_file: Path) -> AsyncIterator[Client]:
    settings = settings_for(database, root, tokens_file=tokens_file, max_body_bytes=1000)
    async with running(settings) as client:
        yield client


@pytest.fixture
async def hasty(database: str, root: Path) -> AsyncIterator[Client]:
    """A gateway that waits for nobody: every request to it may be late on a busy machine."""
    settings = settings_for(database, root, headers_timeout_s=0.3, request_timeout_s=0.5)
    async with running(settings) as client:
        yield client


def path_of(route: Route) -> str:
    parts = ["x" if part.startswith(":") else part for part in route.template.split("/")]
    return "/".join(parts)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
async def test_each_route_asks_for_its_scope(
    client: Client, route: Route, tokens_file: Path
) -> None:
    path = path_of(route)
    is_open = route.scope is OPEN
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {EXPIRED}"},
        {"Authorization": "", "x-smithers-key": "wrong"},
        {"Authorization": "", "Cookie": f"token={TOKEN}"},
    ):
        answer = await client.call(route.method, path, headers=headers)
        assert (answer.status == 401) is not is_open, headers
        if not is_open:
            assert answer.code == "UNAUTHORIZED"
    read_only = await client.call(route.method, path, headers={"Authorization": f"Bearer {READER}"})
    is_forbidden = not is_open and route.scope is not Scope.RUNS_READ
    assert (read_only.status == 403) is is_forbidden
    for headers in (
        {"Authorization": f"bearer {TOKEN}"},
        {"Authorization": "Bearer wrong", "x-smithers-key": TOKEN},
    ):
        answer = await client.call(route.method, path, headers=headers)
        assert answer.status not in {401, 403}, headers


async def test_a_token_works_from_when_the_file_says_so_until_it_does_not(
    client: Client, tokens_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.access.CHECK_FILE_S", 0.0)
    headers = {"Authorization": "Bearer new-token"}
    assert (await client.call("GET", "/v1/runs", headers=headers)).status == 401
    write_tokens(tokens_file, {"new-token": ["runs:read"]})
    assert (await client.call("GET", "/v1/runs", headers=headers)).status == 200
    tokens_file.write_text('{"sha256": "half', encoding="utf-8")
    assert (await client.call("GET", "/v1/runs", headers=headers)).status == 200
    tokens_file.unlink()
    assert (await client.call("GET", "/v1/runs", headers=headers)).status == 401


async def test_tracebacks_are_told_to_operators_alone(
    client: Client, rows: Rows, tokens_file: Path
) -> None:
    write_tokens(tokens_file, {"operator": ["runs:read", "admin"], "reader": ["runs:read"]})
    problem = {"name": "E", "message": "m", "traceback": "File x"}
    await rows.add_run("r", status="failed")
    await rows.add_node("r", "a", "failed")
    await rows.connection.execute("UPDATE smithers.runs SET error = $1", json.dumps(problem))
    await rows.connection.execute("UPDATE smithers.nodes SET error = $1", json.dumps(problem))
    without = {"name": "E", "message": "m"}
    for user, told in (("operator", problem), ("reader", without)):
        headers = {"Authorization": f"Bearer {user}"}
        for path in ("/v1/runs/r", "/v1/runs/r/nodes/a"):
            assert (await client.call("GET", path, headers=headers)).json["error"] == told
        (node,) = (await client.call("GET", "/v1/runs/r/nodes", headers=headers)).json
        assert node["error"] == told
        (row,) = (await client.call("GET", "/v1/runs", headers=headers)).json
        assert json.loads(row["errorJson"]) == without


async def test_who_decides_is_whom_the_credential_names_and_only_whom_the_approval_allows(
    client: Client, rows: Rows, tokens_file: Path
) -> None:
    write_tokens(tokens_file, {"ann": ["approvals:decide"], "bob": ["approvals:decide"]})
    await rows.add_run("r")
    await rows.ask("r", "gate", allowedUsers=["ann"])
    approve = "/v1/runs/r/nodes/gate/approve"
    body = {"decidedBy": "ann"}
    await wait_for_token(client, "bob")
    refused = await client.call("POST", approve, body, headers={"Authorization": "Bearer bob"})
    assert (refused.status, refused.code) == (403, "FORBIDDEN")
    body = {"decidedBy": "mallory"}
    granted = await client.call("POST", approve, body, headers={"Authorization": "Bearer ann"})
    assert granted.status == 200
    assert await rows.connection.fetchval("SELECT decided_by FROM smithers.approvals") == "ann"


async def wait_for_token(client: Client, token: str) -> None:
    async with asyncio.timeout(60):
        while (
            await client.call("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        ).status == 401:
            await asyncio.sleep(0.05)


async def test_checks_come_in_their_order(client: Client) -> None:
    too_long = {"Content-Length": "5000"}
    no_token = {"Authorization": ""}
    assert (await client.call("POST", "/nope", headers={**no_token, **too_long})).status == 401
    assert (await client.call("POST", "/nope", b"x" * 2000)).status == 404
    assert (await client.post("/v1/runs", b"{" * 2000)).status == 413
    assert (await client.post("/v1/runs/none/cancel", b"{{{")).code == "INVALID_JSON"
    assert (await client.post("/v1/runs/none/nodes/n/approve", {"iteration": -1})).status == 400
    assert (await client.post("/v1/runs/none/cancel", {})).status == 404


async def test_every_answer_has_the_headers_and_its_request_id(client: Client) -> None:
    for answer in (
        await client.get("/health"),
        await client.get("/nope"),
        await client.call("GET", "/v1/runs", headers={"Authorization": ""}),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["server"] == "smithers"
        assert len(answer.headers["x-request-id"]) == 16
    named = await client.get("/health", **{"X-Request-Id": "mine-1.2"})
    assert named.headers["x-request-id"] == "mine-1.2"
    odd = await client.get("/health", **{"X-Request-Id": "<script>"})
    assert odd.headers["x-request-id"] != "<script>"


async def test_head_is_get_without_a_body(client: Client, rows: Rows) -> None:
    await rows.add_run("r")
    for path in ("/health", "/v1/runs", "/v1/runs/r", "/v1/runs/r/events", "/metrics"):
        answer = await client.call("HEAD", path)
        assert (answer.status, answer.body) == (200, b""), path
    assert (await client.call("HEAD", "/v1/runs/r/cancel")).status == 404
    assert (await client.call("HEAD", "/v1/runs/none")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "//v1/runs", "/v1/runs/", "/V1/runs", "/v1%2Fruns", "/v1/runs;x", "/v1/./runs", "/health/",
        "/v1/runs/r/../r", "/v1/runs//events", "/%68ealth",
    ],
)  # fmt: skip
async def test_routes_match_exactly(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


async def test_other_methods_are_not_there(client: Client) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "QUERY"):
        assert (await client.call(method, "/v1/runs")).code == "NOT_FOUND", method


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", "*"), ("GET", "/v1/runs/a%0Ab"), ("GET", "/%0D%0A/nothing")]
)
async def test_no_path_comes_in_beside_the_front(client: Client, method: str, path: str) -> None:
    refused = await client.call(method, path, headers={"Authorization": ""})
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    missing = await client.call(method, path, headers={"X-Request-Id": "mine"})
    assert (missing.status, missing.code) == (404, "NOT_FOUND")
    assert missing.headers["x-request-id"] == "mine"


async def test_what_is_no_route_is_told_in_the_words_that_programs_know(client: Client) -> None:
    answer = await client.get("/nope")
    assert answer.json == {"error": {"code": "NOT_FOUND", "message": "Route not found"}}


@pytest.mark.parametrize(
    ("request_text", "statuses"),
    [
        ("GET /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\0\r\n\r\n", {400}),
        ("GET /v1/runs HTTP/1.1\r\nHost: x\r\nX-Bad {TOKEN}: b\r\n\r\n", {400}),
        ("GET /v1/runs HTTP/1.1\r\nHost: x\r\nX: " + "{TOKEN}" * 1000 + "\r\n\r\n", {431}),
        ("GET /" + "{TOKEN}" * 1000 + " HTTP/1.1\r\nHost: x\r\n\r\n", {414}),
        ("GET /v1/runs HTTP/1.1\r\n" + "X: {TOKEN}\r\n" * 129 + "\r\n", {431}),
        ("GET /v1/runs HTTP/9.9\r\nHost: x\r\n" + AUTH + "\r\n", {400, 505}),
        ("GET /v1/runs HTTP/0.9\r\nHost: x\r\n" + AUTH + "\r\n", {400, 505}),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
        ("GET /v1/runs\r\n\r\n", {400}),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03{TOKEN}\r\n\r\n", {400}),
    ],
)  # fmt: skip
async def test_a_malformed_request_is_answered_in_the_envelope_and_nothing_of_it_is_quoted(
    client: Client, request_text: str, statuses: set[int]
) -> None:
    data = await client.raw(request_text.replace("{TOKEN}", TOKEN).encode("latin-1"))
    answer = parse_answer(data)
    assert answer.status in statuses
    assert answer.code
    assert len(answer.headers["x-request-id"]) == 16
    assert TOKEN.encode() not in data


async def test_silence_half_headers_and_trickled_headers_end_with_408(hasty: Client) -> None:
    for start in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n"):
        answer = parse_answer(await hasty.raw(start))
        assert (answer.status, answer.code) == (408, "REQUEST_TIMEOUT")
        assert len(answer.headers["x-request-id"]) == 16
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
    reading = asyncio.create_task(reader.read(65_536))
    for byte in b"GET /health HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
        if reading.done():
            break
        writer.write(bytes([byte]))
        await asyncio.wait({reading}, timeout=0.02)
    assert parse_answer(await reading).status == 408
    writer.close()


async def test_a_body_that_stalls_or_trickles_ends_with_408(hasty: Client) -> None:
    head = f"POST /v1/runs HTTP/1.1\r\nHost: x\r\n{AUTH}"
    for body in ("Content-Length: 10\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"):
        answer = parse_answer(await hasty.raw((head + body).encode()))
        assert (answer.status, answer.code) == (408, "REQUEST_TIMEOUT")
        assert answer.headers["connection"] == "close"


async def test_a_kept_connection_serves_many_requests_and_outlives_the_header_deadline(
    hasty: Client,
) -> None:
    request = f"GET /v1/runs HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n".encode()
    # Sent before the gateway, whose loop is this one, can accept: no header is late, however busy the machine is.
    caller = socket.create_connection(("127.0.0.1", hasty.port))
    caller.sendall(request * 3)
    caller.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=caller)
    for _ in range(3):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2) == b"[]"
    # Twice the deadline of another connection's headers has passed, by that connection's own clock.
    for _ in range(2):
        await hasty.raw(b"GET")
    writer.write(request)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_the_server_has_the_limits_that_we_gave_it(client: Client) -> None:
    server = client.gateway._runner.server
    assert server is not None
    protocol = server()
    assert protocol._keepalive_timeout == KEEP_ALIVE_S
    assert not protocol._logging_enabled


async def test_a_refused_body_is_refused_before_it_is_sent(client: Client) -> None:
    head = "POST /v1/runs HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    refused = await client.raw(f"{head}Content-Length: 10\r\n\r\n".encode())
    assert parse_answer(refused).status == 401
    too_large = await client.raw(f"{head}{AUTH}Content-Length: 5368709120\r\n\r\n".encode())
    assert parse_answer(too_large).json["error"]["details"] == {"maxBytes": 1000}
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"{head}{AUTH}Content-Length: 2\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert b" 400 " in await reader.readuntil(b"\r\n")
    writer.close()
    old = head.replace("HTTP/1.1", "HTTP/1.0")
    assert b" 400 " in await client.raw(f"{old}{AUTH}Content-Length: 2\r\n\r\n{{}}".encode())
    odd = await client.call("GET", "/v1/runs", headers={"Expect": "a miracle"})
    assert (odd.status, odd.code) == (417, "INVALID_REQUEST")


async def test_a_chunked_body_over_the_limit_is_refused(client: Client) -> None:
    head = f"POST /v1/runs HTTP/1.1\r\nHost: x\r\n{AUTH}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = f"{2000:x}\r\n{'x' * 2000}\r\n0\r\n\r\n"
    answer = parse_answer(await client.raw((head + chunks).encode()))
    assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_caller_that_leaves_within_its_body_does_no_harm_and_is_no_news(
    client: Client,
) -> None:
    with capture_logs() as logs:
        await leave_within_the_body(client)
        assert (await client.get("/health")).status == 200
    assert logs == []


async def test_why_the_database_fails_requests_is_logged_once_a_minute(
    database: str, root: Path
) -> None:
    connection = await asyncpg.connect(database)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await connection.close()
    async with running(settings_for(database, root)) as client:
        with capture_logs() as logs:
            for _ in range(3):
                answer = await client.post("/v1/runs", {"workflowPath": "hello.py"})
                assert (answer.status, answer.code) == (503, "UNAVAILABLE")
    (line,) = [line for line in logs if line["event"] == "database_failed"]
    assert line["error"].endswith("ReadOnlySQLTransactionError")
    assert line["request_id"]


async def test_a_caller_that_sends_no_more_is_answered(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"GET /v1/runs HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n".encode())
    writer.write_eof()
    answer = parse_answer(await reader.read())
    writer.close()
    assert (answer.status, answer.body) == (200, b"[]")


async def leave_within_the_body(client: Client) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(
            f"POST /v1/runs HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 9\r\n\r\n".encode()
        )
        await writer.drain()
        writer.transport.abort()


async def test_without_any_token_only_pages_of_this_host_get_in(database: str, root: Path) -> None:
    settings = settings_for(database, root, auth_token=None)
    async with running(settings) as client:
        client.token = None
        for host in ("localhost:7331", "127.0.0.1", "[::1]:80"):
            assert (await client.get("/v1/runs", Host=host)).status == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "[bad"):
            answer = await client.get("/v1/runs", Host=host)
            assert answer.status in {400, 403}, host
        foreign = await client.post("/v1/runs", {}, Origin="https://evil.example")
        assert (foreign.status, foreign.code) == (403, "FORBIDDEN")
        assert (await client.post("/v1/runs", {}, Origin="null")).status == 403
        own = await client.post("/v1/runs", {}, Origin="http://localhost:3000")
        assert own.status == 400
        assert (await client.get("/health", Host="evil.example")).status == 200


async def test_an_open_door_to_the_outside_refuses_to_start(database: str, root: Path) -> None:
    settings = settings_for(database, root, auth_token=None, host="0.0.0.0")
    with pytest.raises(InsecureSettings, match="SMITHERS_API_KEY"):
        async with open_gateway(settings):
            pass
    async with running(
        settings_for(database, root, auth_token=None, host="0.0.0.0", insecure=True)
    ):
        pass


async def test_ready_names_what_fails(database: str, root: Path, rows: Rows, monkeypatch) -> None:
    monkeypatch.setattr("gateway.health.KEPT_S", -1.0)
    async with running(settings_for(database, root)) as client:
        ready = (await client.get("/ready", Authorization="")).json
        assert ready == {"ok": True, "sandbox": None, "database": None}
        await rows.connection.execute("ALTER TABLE smithers.alembic_version RENAME TO gone")
        answer = await client.get("/ready")
        assert (answer.status, answer.json["error"]["details"]) == (503, {"check": "schema"})
        assert answer.headers["retry-after"] == "1"
        await rows.connection.execute("ALTER TABLE smithers.gone RENAME TO alembic_version")
        await rows.connection.execute("DELETE FROM smithers.alembic_version")
        answer = await client.get("/ready")
        assert answer.json["error"]["details"] == {"check": "schema"}
        client.gateway._front.services.readiness.is_draining = True
        answer = await client.get("/ready")
        assert answer.json["error"]["details"] == {"check": "draining"}
        assert answer.headers["connection"] == "close"


async def test_a_gateway_whose_readers_all_wait_is_ready(
    database: str, root: Path, rows: Rows
) -> None:
    await rows.add_run("r")
    async with running(settings_for(database, root)) as client, rows.connection.transaction():
        await rows.connection.execute("LOCK TABLE smithers.nodes")
        await rows.connection.execute("LOCK TABLE smithers.approvals")
        readers = [asyncio.create_task(client.get("/v1/runs/r/nodes")) for _ in range(6)]
        readers += [asyncio.create_task(client.get("/v1/approvals")) for _ in range(6)]
        pool = client.gateway._front.services.home.pool

        async def all_wait() -> bool:
            return pool.get_size() == POOL_SIZE and not pool.get_idle_size()

        await until(all_wait, "all connections for readers are taken")
        assert (await client.get("/ready")).status == 200
        for reader in readers:
            reader.cancel()


async def test_a_database_that_is_gone_is_503_and_nothing_is_said_of_it(
    root: Path, database: str
) -> None:
    gone = database.replace("/test_", "/gone_")
    async with running(settings_for(gone, root)) as client:
        answer = await client.get("/ready")
        assert (answer.status, answer.json["error"]["details"]) == (503, {"check": "database"})
        for path in ("/v1/runs", "/v1/runs/r/events"):
            answer = await client.get(path)
            assert answer.status in {500, 503}
            assert b"gone_" not in answer.body
        assert (await client.get("/health")).status == 200


async def test_metrics_count_by_template_and_never_by_what_was_sent(client: Client) -> None:
    await client.get("/v1/runs/some-run")
    await client.get("/zz-path")
    await client.call("PUT", "/v1/runs")
    await client.call("GET", "/zz-unknown", headers={"Authorization": ""})
    text = (await client.get("/metrics")).body.decode()
    assert (
        'smithers_http_requests_total{method="GET",route="/v1/runs/:runId",status="404"} 1.0'
        in text
    )
    assert 'method="other",route="none"' in text
    for word in ("some-run", "zz-", "PUT", TOKEN, "_created ", "_created{"):
        assert word not in text
    openmetrics = await client.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_what_nobody_foresaw_is_500_and_says_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise ZeroDivisionError("a secret: /etc/shadow")

    monkeypatch.setattr("gateway.runs.list_runs", fail)
    answer = await client.get("/v1/runs")
    assert (answer.status, answer.code) == (500, "SERVER_ERROR")
    assert b"secret" not in answer.body
    assert b"Zero" not in answer.body


async def test_a_key_is_its_users_alone(client: Client, tokens_file: Path) -> None:
    write_tokens(tokens_file, {"ann": ["runs:write"], "bob": ["runs:write"]})
    await wait_for_token(client, "bob")
    started: dict[str, str] = {}
    for user in ("ann", "bob", "ann"):
        headers = {"Authorization": f"Bearer {user}", "Idempotency-Key": "order-1"}
        answer = await client.call(
            "POST", "/v1/runs", {"workflowPath": "hello.py"}, headers=headers
        )
        assert answer.status == 200, answer.body
        assert started.setdefault(user, answer.json["runId"]) == answer.json["runId"]
    assert started["ann"] != started["bob"]


async def test_who_sends_a_signal_is_whom_the_credential_names(
    client: Client, rows: Rows, tokens_file: Path
) -> None:
    write_tokens(tokens_file, {"ann": ["signals:send"]})
    await rows.add_run("r")
    await wait_for_token(client, "ann")
    body, headers = {"receivedBy": "mallory"}, {"Authorization": "Bearer ann"}
    sent = await client.call("POST", "/v1/runs/r/signals/paid", body, headers=headers)
    assert sent.status == 200, sent.body
    assert await rows.connection.fetchval("SELECT received_by FROM smithers.signals") == "ann"


async def test_a_scope_that_an_approval_asks_for_is_had_by_name_or_by_all(
    client: Client, rows: Rows, tokens_file: Path
) -> None:
    held = {"some": ["approvals:decide"], "named": ["approvals:decide", "releases"], "all": ["*"]}
    write_tokens(tokens_file, held)
    await rows.add_run("r")
    for node in ("one", "two"):
        await rows.ask("r", node, allowedScopes=["releases"])
    await wait_for_token(client, "all")
    for token, node, status in (("some", "one", 403), ("named", "one", 200), ("all", "two", 200)):
        answer = await client.call(
            "POST",
            f"/v1/runs/r/nodes/{node}/approve",
            {},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status == status, answer.body
