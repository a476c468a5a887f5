"""What the client decides without a server: which error, when to come back, and that both clients are one."""

import inspect
import json
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from smithers.client import (
    AccessRefused,
    AsyncClient,
    BadRequest,
    Client,
    ClientError,
    Conflict,
    Event,
    NotFound,
    ServerFailed,
    ServerUnreachable,
    UnexpectedAnswer,
    Unsendable,
)
from smithers.client.calls import (
    Call,
    answer,
    cancel,
    get,
    headers_for,
    is_loopback,
    list_nodes,
    read_answer,
    read_event,
    signal,
    start,
)
from smithers.client.errors import refusal
from smithers.client.streaming import GIVE_UP_S, Resumption


def event(seq: int) -> Event:
    return Event(seq=seq, type="NodeStarted", run_id="r", timestamp_ms=1)


def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
    return {
        name: list(inspect.signature(member).parameters.values())
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def test_both_clients_offer_the_same() -> None:
    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, AccessRefused),
        (403, AccessRefused),
        (404, NotFound),
        (409, Conflict),
        (413, BadRequest),
        (429, ServerFailed),
        (503, ServerFailed),
    ],
)
def test_an_answer_is_refused_by_what_the_caller_can_do(status: int, kind: type) -> None:
    error = refusal(status, {"error": {"code": "C", "message": "m", "details": {"a": 1}}})
    assert (type(error), str(error), error.code, error.details) == (kind, "m", "C", {"a": 1})


@pytest.mark.parametrize("body", [None, "<html>", {"error": "no"}, {}])
def test_an_answer_of_something_else_still_has_a_text(body: object) -> None:
    assert str(refusal(502, body)) == "the server answered with status 502"


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"null", b'{"runId": "r"}'])
def test_an_answer_of_another_kind_of_server_is_said_to_be_one(content: bytes) -> None:
    with pytest.raises(UnexpectedAnswer, match="http://there is not a smithers server"):
        read_answer(get("r"), content, "http://there")


def test_what_is_none_is_not_sent_and_ids_are_encoded() -> None:
    call = start("f.py", None, run_id=None, max_concurrency=2, priority=None, idempotency_key="k")
    assert call.body == {"workflowPath": "f.py", "input": {}, "config": {"maxConcurrency": 2}}
    assert call.headers == {b"Idempotency-Key": b"k"}
    urgent = start(
        "f.py", None, run_id=None, max_concurrency=None, priority=-3, idempotency_key=None
    )
    assert urgent.body == {"workflowPath": "f.py", "input": {}, "config": {"priority": -3}}
    assert list_nodes("a/b ü").path == "/v1/runs/a%2Fb%20%C3%BC/nodes"


@pytest.mark.parametrize("run_id", [".", "..", "...", "%2e", "a/../b", "", "\0", "?", "#", "\\"])
@pytest.mark.parametrize("call", [get, list_nodes, cancel])
def test_an_id_stays_in_its_place_of_the_url_and_arrives_as_it_is(
    run_id: str, call: Callable[[str], Call[Any]]
) -> None:
    made = call(run_id)
    request = httpx2.Client(base_url="http://there").build_request(
        made.method, made.request_args(made.path)["url"]
    )
    sent = request.url.raw_path.decode().split("/")
    assert len(sent) == len(call("r").path.split("/"))
    assert unquote(sent[3]) == run_id


def test_null_is_a_value_that_is_sent() -> None:
    sent = signal("r", "go", None, correlation_id=None, signal_id=None)
    assert sent.body == {"data": None}
    assert answer("r", "n", None, answered_by=None, iteration=None).body == {"value": None}


@pytest.mark.parametrize(
    "send",
    [
        lambda client: client.get("r\udcff"),
        lambda client: client.list_runs(workflow="\udcff"),
        lambda client: client.get("r" * 70_000),
        lambda client: client.list_runs(workflow="w" * 70_000),
        lambda client: client.approve("r", "n", note="\ud800"),
        lambda client: client.start("f.py", {"size": float("inf")}),
        lambda client: client.start("f.py", {}, idempotency_key=""),
    ],
)
def test_what_fits_into_no_request_is_refused_before_anybody_is_asked(
    send: Callable[[Client], Any],
) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unsendable):
        send(client)


def test_a_stream_that_was_cut_waits_longer_each_time_until_an_event_comes() -> None:
    place = Resumption(-1)
    pauses = [place.pause_s(OSError()) for _ in range(8)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0
    place.connected("text/event-stream; charset=utf-8")
    assert place.pause_s(OSError()) == 5.0  # it is there, and has said nothing
    place.take(event(4))
    assert place.seq == 4
    assert place.pause_s(OSError()) == pauses[0]


def test_a_silent_stream_may_be_cut_any_number_of_times() -> None:
    place = Resumption(-1)
    for _ in range(2_000):
        place.connected("text/event-stream")
        assert place.pause_s(OSError()) <= 5.0


def test_a_stream_is_given_up_when_none_begins_for_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Resumption(-1)
    place.pause_s(OSError())
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + GIVE_UP_S + 1)
    with pytest.raises(ServerUnreachable):
        place.pause_s(OSError())


def test_a_proxy_of_the_environment_is_not_for_this_host() -> None:
    assert is_loopback("http://[::1]:80")
    assert not is_loopback("http://example.org")


def test_an_event_goes_out_as_it_came_in() -> None:
    sent = {"type": "X", "runId": "r", "timestampMs": 1, "nodeId": "n", "extra": [1]}
    assert read_event("3", json.dumps(sent)).to_wire() == sent


def test_an_event_keeps_its_own_seq_beside_the_number_in_the_stream() -> None:
    sent = {"type": "SignalReceived", "runId": "r", "timestampMs": 1, "seq": 0}
    received = read_event("7", json.dumps(sent))
    assert (received.seq, received.field("seq")) == (7, 0)
    assert received.to_wire() == sent


@pytest.mark.parametrize(("seq", "data"), [("", "{}"), ("1", "[1]"), ("1", "{"), ("1", "{}")])
def test_an_event_of_another_kind_of_server_is_said_to_be_none(seq: str, data: str) -> None:
    with pytest.raises(UnexpectedAnswer):
        read_event(seq, data)


def test_a_token_goes_out_in_utf_8_or_as_the_bytes_that_an_environment_held() -> None:
    assert headers_for("tö ken") == {b"Authorization": "Bearer tö ken".encode()}
    assert headers_for(os.fsdecode(b"\xff")) == {b"Authorization": b"Bearer \xff"}


@pytest.mark.parametrize("token", ["", "two\nlines", "tail\n", " head", "nul\0", "\ud800"])
def test_a_token_that_no_header_holds_is_refused_by_name(token: str) -> None:
    with pytest.raises(ClientError, match="the token cannot be sent: "):
        AsyncClient("http://there", token=token)
    key = token
    with pytest.raises(ClientError, match="the idempotency key cannot be sent: "):
        start("f", {}, run_id=None, max_concurrency=None, priority=None, idempotency_key=key)
