"""A token in a URL opens one run's stream, on every gateway of the database, for a while; and nobody writes it down."""

import asyncio
import hashlib
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import structlog

from smithers.client import AsyncClient
from smithers.client import Client as SyncClient
from smithers.settings import Limits
from tests.support.canary import TOKEN
from tests.support.gateway import Client, Rows, make_root, running, settings_for

SIGHTED = "seeing-token"
BLIND = "starting-token"


def write_tokens(path: Path, tokens: dict[str, list[str]]) -> None:
    lines = [
        {"sha256": hashlib.sha256(token.encode()).hexdigest(), "user": token, "scopes": scopes}
        for token, scopes in tokens.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


@pytest.fixture
async def rows(database: str, tmp_path: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    rows = Rows(connection, make_root(tmp_path))
    await rows.add_run("mine", status="running", events=3)
    await rows.add_run("other", status="running", events=1)
    yield rows
    await connection.close()


@pytest.fixture
async def client(database: str, rows: Rows) -> AsyncIterator[Client]:
    async with running(settings_for(database, rows.root)) as client:
        yield client


async def make_token(client: Client, run_id: str = "mine") -> str:
    answer = await client.post(f"/v1/runs/{run_id}/events/token")
    assert answer.status == 200
    left_s = answer.json["expiresAtMs"] / 1000 - time.time()
    assert 200 < left_s <= 300
    return answer.json["token"]


def without_credential(client: Client) -> Client:
    return Client(client.gateway, token=None)


async def test_a_token_opens_its_run_s_stream_without_any_other_credential(client: Client) -> None:
    token = await make_token(client)
    async with without_credential(client).stream("mine", f"?token={token}&afterSeq=0") as stream:
        assert stream.head.status == 200
        assert await stream.take(2) == [1, 2]


async def test_both_clients_have_tokens_made(client: Client) -> None:
    url = f"http://localhost:{client.port}"
    async with AsyncClient(url, token=TOKEN) as asynchronous:
        made = [await asynchronous.stream_token("mine")]
    with SyncClient(url, token=TOKEN) as synchronous:
        made.append(await asyncio.to_thread(synchronous.stream_token, "mine"))
    for token in made:
        assert token.expires_at_ms > time.time() * 1000
        async with without_credential(client).stream("mine", f"?token={token.token}") as stream:
            assert await stream.take(3) == [0, 1, 2]


async def test_a_token_opens_nothing_else(client: Client) -> None:
    token = await make_token(client)
    nobody = without_credential(client)
    for path in (
        "/v1/runs/other/events",
        "/v1/runs/none/events",
        "/v1/runs/mine",
        "/v1/runs/mine/frames",
        "/v1/runs",
        "/metrics",
        "/nope",
    ):
        answer = await nobody.get(f"{path}?token={token}")
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), path
    again = await nobody.post(f"/v1/runs/mine/events/token?token={token}")
    assert again.status == 401
    assert (await nobody.get("/v1/runs", Authorization=f"Bearer {token}")).status == 401


async def test_another_gateway_of_the_database_takes_it_and_one_of_another_does_not(
    client: Client, database: str, rows: Rows
) -> None:
    token = await make_token(client)
    async with running(settings_for(database, rows.root)) as second:
        async with without_credential(second).stream("mine", f"?token={token}") as stream:
            assert await stream.take(3) == [0, 1, 2]
        await rows.connection.execute("DELETE FROM smithers.stream_keys")
    async with running(settings_for(database, rows.root)) as third:
        assert (
            await without_credential(third).get(f"/v1/runs/mine/events?token={token}")
        ).status == 401


async def test_gateways_that_need_a_key_at_once_agree_on_one(database: str, rows: Rows) -> None:
    async with (
        running(settings_for(database, rows.root)) as first,
        running(settings_for(database, rows.root)) as second,
    ):
        for maker, taker in ((first, second), (second, first)):
            token = await make_token(maker)
            async with without_credential(taker).stream("mine", f"?token={token}") as stream:
                assert stream.head.status == 200
    assert await rows.connection.fetchval("SELECT count(*) FROM smithers.stream_keys") == 1


async def test_viewers_with_tokens_are_counted_by_their_run(database: str, rows: Rows) -> None:
    limits = Limits(streams_per_credential=1)
    async with running(settings_for(database, rows.root, limits=limits)) as client:
        browser = without_credential(client)
        mine, other = await make_token(client), await make_token(client, "other")
        async with browser.stream("mine", f"?token={mine}") as stream:
            assert await stream.take(3) == [0, 1, 2]
            refused = await browser.get(f"/v1/runs/mine/events?token={mine}")
            assert refused.json["error"]["details"] == {"limit": "streams-per-credential"}
            async with browser.stream("other", f"?token={other}") as another:
                assert await another.take(1) == [0]


async def test_a_token_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await make_token(client)
    late = time.time() + 301
    monkeypatch.setattr("gateway.stream_tokens.time.time", lambda: late)
    assert (
        await without_credential(client).get(f"/v1/runs/mine/events?token={token}")
    ).status == 401


@pytest.mark.parametrize("change", ["", "%00", "%C3%A9", "a" * 200, "AAAA", "="])
async def test_what_is_no_token_is_refused(client: Client, change: str) -> None:
    nobody = without_credential(client)
    assert (await nobody.get(f"/v1/runs/mine/events?token={change}")).status == 401


async def test_a_token_is_true_to_the_last_bit(client: Client) -> None:
    token = await make_token(client)
    nobody = without_credential(client)
    for place in (0, 8, 20, len(token) - 2):
        other = "A" if token[place] != "A" else "B"
        forged = token[:place] + other + token[place + 1 :]
        assert (await nobody.get(f"/v1/runs/mine/events?token={forged}")).status == 401, place


async def test_making_one_needs_the_scope_to_read_and_a_run_that_is_there(
    client: Client, database: str, rows: Rows, tmp_path: Path
) -> None:
    assert (await without_credential(client).post("/v1/runs/mine/events/token")).status == 401
    assert (await client.post("/v1/runs/none/events/token")).code == "NOT_FOUND"
    assert (await client.post("/v1/runs/mine/events/token", b"{{")).code == "INVALID_JSON"
    tokens = tmp_path / "tokens"
    write_tokens(tokens, {SIGHTED: ["runs:read"], BLIND: ["runs:write"]})
    async with running(settings_for(database, rows.root, tokens_file=tokens)) as scoped:
        path = "/v1/runs/mine/events/token"
        assert (await scoped.post(path, Authorization=f"Bearer {SIGHTED}")).status == 200
        assert (await scoped.post(path, Authorization=f"Bearer {BLIND}")).code == "FORBIDDEN"


async def test_a_token_is_written_down_nowhere(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    token = await make_token(client)
    nobody = without_credential(client)
    with structlog.testing.capture_logs() as logs:
        async with nobody.stream("mine", f"?token={token}") as stream:
            await stream.take(3)
        refused = await nobody.get(f"/v1/runs/other/events?token={token}")

        async def fail(*_: object) -> None:
            raise RuntimeError("what nobody foresaw")

        monkeypatch.setattr(client.gateway._front.services.home.hub, "read", fail)
        failed = await nobody.get(f"/v1/runs/mine/events?token={token}")
        metrics = await client.get("/metrics")
    assert (refused.status, failed.status, metrics.status) == (401, 500, 200)
    (error,) = [entry for entry in logs if entry["log_level"] == "error"]
    told = "".join(traceback.format_exception(error["exc_info"]))
    written = [repr(logs), told, caplog.text, repr(refused), repr(failed), repr(metrics)]
    assert not any(token in text for text in written)
