"""The gateway's pure parts: routing, access, fields, run state, pages of frames, framing of events."""

import hashlib
import json
import resource
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from alembic.script import ScriptDirectory
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict
from pydantic import Field
from structlog.testing import capture_logs

from gateway import access as access_module
from gateway.access import Access, InvalidTokensFile, Scope, read_tokens
from gateway.envelope import PROBLEMS
from gateway.errors import GatewayError, InvalidRequest, Unauthorized
from gateway.exchange import Exchange
from gateway.fields import (
    WHOLE,
    Body,
    Digits,
    Headers,
    Person,
    Query,
    Text,
    read_each_once,
    read_fields,
)
from gateway.frames import WholeFrame, fit_page
from gateway.paging import MAX_PAGE_BYTES, read_cursor, write_cursor
from gateway.routes import ROUTES
from gateway.routing import OPEN, Part, Route, Router
from gateway.run_state import iso, run_state
from gateway.signals import SignalBody
from gateway.viewers import as_chunk, frame_events
from smithers import InvalidTree, Signal, Timer
from smithers.ids import MAX_CORRELATION_CHARS, NodeId, RunId, is_signal_name
from smithers.states import RunStatus
from smithers.store.node_reads import FrameRow
from smithers.store.reads import OpenWait, RunLife
from smithers.store.refusals import Refused
from smithers.store.revisions import read_revisions
from smithers.store.schema import alembic_config


class SomeQuery(Query):
    limit_ms: Digits = Field(1, ge=-1, le=10)


class SomeHeaders(Headers):
    some: str | None = Field(None, alias="X-Some")


class Inner(Body):
    note: Text | None = None


class SomeBody(Body):
    count_max: Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE] | None = None
    note: Text | None = None
    by: Person | None = None
    values: dict[str, Any] | None = None
    inner: Inner | None = None


def headers(**values: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(
        CIMultiDict({name.replace("_", "-"): text for name, text in values.items()})
    )


def subclasses(kind: type[Any]) -> set[type[Any]]:
    return {kind} | {deeper for below in kind.__subclasses__() for deeper in subclasses(below)}


def test_every_refusal_has_its_place_in_the_one_table() -> None:
    roots = {GatewayError, Refused}
    leaves = {kind for root in roots for kind in subclasses(root) if kind not in roots}
    assert {kind for kind in leaves if not set(kind.__mro__) & PROBLEMS.keys()} == set()


def test_every_route_has_a_scope_and_only_health_and_ready_are_open() -> None:
    assert {route.template for route in ROUTES if route.scope is OPEN} == {"/health", "/ready"}
    assert all(route.scope is OPEN or isinstance(route.scope, Scope) for route in ROUTES)


def test_two_routes_in_one_place_are_refused() -> None:
    route = ROUTES[0]
    with pytest.raises(ValueError, match="two routes"):
        Router([route, route])


def test_every_template_finds_its_own_route() -> None:
    router = Router(ROUTES)
    for route in ROUTES:
        path = "/".join(
            "a%20b" if part.startswith(":") else part for part in route.template.split("/")
        )
        found = router.find(route.method, path)
        assert found is not None
        assert found[0] is route
        assert len(found[1]) == route.template.count(":")
        assert (
            router.find("HEAD", path) == (found if route.method == "GET" else None)
            or route.method == "POST"
        )


@pytest.mark.parametrize(
    ("raw", "spellings"),
    [
        ("a", ("a",)), ("a%20b", ("a%20b", "a b")), ("%zz", ("%zz",)), ("%", ("%",)), ("%ff", ("%ff",)),
        ("%ed%a0%80", ("%ed%a0%80",)), ("100%25", ("100%25", "100%")), ("%2525", ("%2525", "%25")),
    ],
)  # fmt: skip
def test_a_part_is_decoded_once_and_broken_ones_not_at_all(
    raw: str, spellings: tuple[str, ...]
) -> None:
    assert Part(raw).spellings == spellings


@pytest.mark.parametrize("name", [".", "..", "50%25", "a%2fb", "%41"])
def test_a_name_that_urls_read_as_another_is_refused_when_the_tree_is_built(name: str) -> None:
    for build in (lambda: Timer(name, duration=1), lambda: Signal("s", event=name)):
        with pytest.raises(InvalidTree):
            build()


@pytest.mark.parametrize("event", ["go\u00a0on", "go\u200b", "x" * 201, "a\nb", " ", "\ud800", 7])
def test_a_signal_that_nobody_could_send_is_refused_when_the_tree_is_built(event: Any) -> None:
    with pytest.raises(InvalidTree, match=r"event=.* takes 1 to 200 printable characters"):
        Signal("s", event=event)


def test_a_correlation_id_is_as_long_as_one_that_can_be_sent() -> None:
    longest = "x" * MAX_CORRELATION_CHARS
    assert Signal("s", correlation_id=longest).correlation_id == longest
    sent = read_fields(SignalBody, {"correlationId": longest})
    assert sent.correlation_id == longest
    with pytest.raises(InvalidTree, match="at most 500 characters"):
        Signal("s", correlation_id=longest + "x")
    with pytest.raises(InvalidRequest):
        read_fields(SignalBody, {"correlationId": longest + "x"})


def test_a_signal_whose_id_nobody_could_send_needs_an_event() -> None:
    with pytest.raises(InvalidTree, match="printable"):
        Signal("go\u200b")
    assert Signal("go\u200b", event="go").event == "go"


@pytest.mark.parametrize("name", ["50%", "100%2", "%zz", "a/b", "go on", "...", "ü", "x" * 200])
def test_a_name_that_a_builder_may_take_is_meant_by_one_path_alone(name: str) -> None:
    assert Signal("s", event=name).event == name
    raw, *decoded = Part(quote(name, safe="")).spellings
    assert [text for text in (raw, *decoded) if is_signal_name(text)] == [name]


def test_a_route_is_a_value() -> None:
    assert Route("GET", "/x", OPEN, ROUTES[0].handler) != ROUTES[0]


def test_a_token_is_compared_as_bytes_whatever_it_holds() -> None:
    access = Access(auth_token="schlüssel", tokens_file=None, only_loopback_names=True)
    assert access.admit(headers(Authorization="Bearer schlüssel")).scopes == ("*",)
    for wrong in (
        "Bearer schlussel",
        "Bearer \udcff",
        "Basic schlüssel",
        "Bearer",
        "schlüssel",
        "",
    ):
        with pytest.raises(Unauthorized):
            access.admit(headers(Authorization=wrong))


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_tokens_file_that_could_not_be_read_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "CHECK_FILE_S", 0)
    path = tmp_path / "tokens"

    def write(*users: str) -> None:
        lines = [
            {"sha256": hashlib.sha256(user.encode()).hexdigest(), "user": user, "scopes": ["*"]}
            for user in users
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def admits(user: str) -> bool:
        try:
            return access.admit(headers(Authorization=f"Bearer {user}")).user == user
        except Unauthorized:
            return False

    write("old")
    access = Access(auth_token=None, tokens_file=path, only_loopback_names=False)
    write("new", "another")
    with no_descriptor_free():
        assert admits("old")
    assert admits("new")
    assert not admits("old")


def test_a_tokens_file_that_is_wrong_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "CHECK_FILE_S", 0)
    path = tmp_path / "tokens"
    path.write_bytes(b"")
    access = Access(auth_token="t", tokens_file=path, only_loopback_names=False)
    with capture_logs() as logs:
        for wrong in (b"no JSON", b"\xff\xfe"):
            path.write_bytes(wrong)
            for _ in range(3):
                access.admit(headers(Authorization="Bearer t"))
    assert [line["event"] for line in logs] == ["tokens_file_unreadable"] * 2


def test_a_tokens_file_that_stays_away_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "CHECK_FILE_S", 0)
    path = tmp_path / "tokens"
    path.write_bytes(b"")
    access = Access(auth_token="t", tokens_file=path, only_loopback_names=False)
    path.unlink()
    with capture_logs() as logs:
        for _ in range(3):
            access.admit(headers(Authorization="Bearer t"))
        path.mkdir()
        for _ in range(3):
            access.admit(headers(Authorization="Bearer t"))
    assert [line["event"] for line in logs] == ["tokens_file_gone", "tokens_file_unreadable"]


def test_two_headers_of_one_kind_count_as_none() -> None:
    access = Access(auth_token="t", tokens_file=None, only_loopback_names=True)
    twice = CIMultiDictProxy(
        CIMultiDict([("Authorization", "Bearer t"), ("Authorization", "Bearer t")])
    )
    with pytest.raises(Unauthorized):
        access.admit(twice)
    credential = access.admit(headers(Authorization="Bearer x", x_smithers_key="t"))
    assert credential.digest == hashlib.sha256(b"t").digest()


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", '{"user":"a","scopes":[]}', '{"sha256":"00","user":"a","scopes":[]}',
        '{"sha256":"%s","user":1,"scopes":[]}', '{"sha256":"%s","user":"a","scopes":"*"}',
        '{"sha256":"%s","user":"system:ann","scopes":[]}',
        '{"sha256":"%s","user":"a","scopes":["a b"]}', '{"sha256":"%s","user":"a","scopes":[],"expiresAt":"soon"}',
        '{"sha256":"%s","user":"a","scopes":[],"expires_at":1}', '{"sha256":"%s","user":"a","scopes":[],"expiresAt":NaN}',
        '{"sha256":"%s","user":"a","scopes":[],"expiresAt":1' + "0" * 400 + "}",
        '{"sha256":"%s","user":"a","scopes":[],"expiresAt":1,"expiresAt":null}',
    ],
)  # fmt: skip
def test_a_line_of_the_tokens_file_is_right_or_refused_by_its_number(line: str) -> None:
    good = '{"sha256":"%s","user":"a","scopes":["*"],"expiresAt":1795308128325}'
    text = f"{good}\n\n{line}".replace("%s", hashlib.sha256(b"t").hexdigest())
    with pytest.raises(InvalidTokensFile, match="line 3"):
        read_tokens(text)


@pytest.mark.parametrize("text", [" 1", "+1", "1.0", "1e3", "0x1", "\uff11", "1" * 30, "-2", "11"])
def test_a_parameter_is_digits_and_nothing_else(text: str) -> None:
    assert read_each_once(SomeQuery, MultiDict(limitMs="-1")).limit_ms == -1
    with pytest.raises(InvalidRequest, match="limitMs: "):
        read_each_once(SomeQuery, MultiDict(limitMs=text))


def test_a_parameter_without_a_value_counts_as_omitted_and_a_header_does_not() -> None:
    assert read_each_once(SomeQuery, MultiDict(limitMs="")) == read_each_once(
        SomeQuery, MultiDict()
    )
    assert read_each_once(SomeHeaders, CIMultiDict({"x-some": ""})).some == ""


def test_a_parameter_and_a_header_may_be_given_once() -> None:
    twice = MultiDict([("limitMs", "1"), ("limitMs", "1")])
    with pytest.raises(InvalidRequest, match="limitMs may be given only once"):
        read_each_once(SomeQuery, twice)
    with pytest.raises(InvalidRequest, match="X-Some may be given only once"):
        read_each_once(SomeHeaders, CIMultiDict([("X-Some", "1"), ("x-some", "1")]))
    assert read_each_once(SomeHeaders, CIMultiDict({"x-some": "1"})).some == "1"


@pytest.mark.parametrize("value", [True, 1.5, "1", -1, 2**31, 1e300])
def test_a_whole_number_in_a_body_is_one(value: object) -> None:
    assert read_fields(SomeBody, {"countMax": 3.0}).count_max == 3  # as JSON Schema has it
    with pytest.raises(InvalidRequest) as caught:
        read_fields(SomeBody, {"countMax": value})
    assert caught.value.details is not None
    assert caught.value.details["errors"][0]["path"] == ["countMax"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"values": []}, "values: Input should be an object"),
        ({"inner": []}, "inner: Input should be an object"),
        ({"by": "system:me"}, "by: names that begin with 'system:' are reserved for the server"),
    ],
)
def test_a_refusal_is_in_the_words_of_the_api(body: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_fields(SomeBody, body)
    assert str(caught.value) == told


def test_null_in_a_body_is_as_not_given_and_unknown_fields_are_ignored() -> None:
    assert read_fields(SomeBody, {"countMax": None, "other": 1}) == read_fields(SomeBody, {})


@pytest.mark.parametrize("text", ["a\0b", "x" * 10_001, 1, ["a"]])
def test_a_text_in_a_body_has_no_nul_and_an_end(text: object) -> None:
    assert read_fields(SomeBody, {"note": "x" * 10_000}).note
    with pytest.raises(InvalidRequest) as caught:
        read_fields(SomeBody, {"note": text})
    assert "xxx" not in str(caught.value)  # what was sent is not said back


def test_a_handler_that_takes_what_nobody_gives_is_refused() -> None:
    async def handler(exchange: Exchange, cookies: SomeQuery) -> None: ...

    with pytest.raises(TypeError, match="takes cookies"):
        Route("GET", "/x", OPEN, handler)


@pytest.mark.parametrize("text", ["", "x", "e30", "WzFd", "é", "WyJcdTAwMDAiLCAiYSJd", "===="])
def test_a_cursor_is_one_that_was_given_out(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_cursor(text, str, str)
    assert read_cursor(write_cursor("a", "b"), str, str) == ["a", "b"]


def test_a_cursor_reads_as_the_place_that_was_written() -> None:
    place = (datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), "n", 2**31 - 1)
    assert tuple(read_cursor(write_cursor(*place), datetime, str, int)) == place


@pytest.mark.parametrize(
    "parts",
    [
        ["2026-01-01T00:00:00", 0],  # of no time zone
        ["2026-01-01", 0],
        ["0001-01-01T00:00:00+14:00", 0],  # before the first year, or after the last
        ["9999-12-31T23:59:59-14:00", 0],
        ["x", 0],
        [1, 0],
        ["2026-01-01T00:00:00+00:00", 2**31],
        ["2026-01-01T00:00:00+00:00", -1],
        ["2026-01-01T00:00:00+00:00", True],
        ["2026-01-01T00:00:00+00:00", 1.0],
        ["2026-01-01T00:00:00+00:00"],
    ],
)
def test_a_cursor_of_ones_own_making_names_no_place_that_cannot_be(parts: list[object]) -> None:
    text = urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")
    with pytest.raises(InvalidRequest):
        read_cursor(text, datetime, int)


LIFE = RunLife(
    run_id=RunId("r"),
    status=RunStatus.RUNNING,
    owner_id=None,
    heartbeat_ms=None,
    is_stale=False,
    lost_heartbeat_ms=None,
    wait=None,
    now_ms=1_795_308_128_325,
)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"status": RunStatus.QUEUED}, "running"),
        ({}, "running"),
        ({"owner_id": "w", "heartbeat_ms": 1}, "running"),
        ({"owner_id": "w", "heartbeat_ms": 1, "is_stale": True}, "stale"),
        ({"lost_heartbeat_ms": 1}, "recovering"),
        ({"status": RunStatus.WAITING_EVENT}, "waiting-event"),
        ({"status": RunStatus.FINISHED}, "succeeded"),
        ({"status": RunStatus.CONTINUED}, "succeeded"),
        ({"status": RunStatus.FAILED}, "failed"),
        ({"status": RunStatus.CANCELLED, "owner_id": "w", "is_stale": True}, "cancelled"),
    ],
)
def test_the_state_of_a_run(changes: dict[str, Any], state: str) -> None:
    assert run_state(replace(LIFE, **changes))["state"] == state


def test_what_blocks_a_run_is_named() -> None:
    wait = OpenWait(
        node_id=NodeId("n"), requested_ms=0, due_ms=1000, wait=json.dumps({"signalName": "go"})
    )

    def blocked(status: RunStatus) -> Any:
        return run_state(replace(LIFE, status=status, wait=wait))["blocked"]

    assert blocked(RunStatus.WAITING_APPROVAL) == {
        "kind": "approval",
        "nodeId": "n",
        "requestedAt": "1970-01-01T00:00:00.000Z",
    }
    assert blocked(RunStatus.WAITING_EVENT)["correlationKey"] == "go"
    assert blocked(RunStatus.WAITING_TIMER)["wakeAt"] == "1970-01-01T00:00:01.000Z"


def test_milliseconds_are_iso_with_z() -> None:
    assert iso(1_795_308_128_325) == "2026-11-22T00:42:08.325Z"


def frame(number: int, size: int) -> WholeFrame:
    row = FrameRow(frame_no=number, created_ms=0, xml_hash="", encoding="keyframe", body="")
    return WholeFrame(row, "x" * size)


def test_a_page_of_frames_holds_what_fits_and_one_at_least() -> None:
    frames = [frame(number, MAX_PAGE_BYTES // 2) for number in range(5)]
    assert [kept.row.frame_no for kept in fit_page(frames, is_ascending=True)] == [0, 1]
    assert [kept.row.frame_no for kept in fit_page(frames, is_ascending=False)] == [4, 3]
    huge = [frame(number, MAX_PAGE_BYTES * 2) for number in range(3)]
    assert [kept.row.frame_no for kept in fit_page(huge, is_ascending=True)] == [0]
    assert [kept.row.frame_no for kept in fit_page(huge, is_ascending=False)] == [2]


def test_events_are_framed_with_their_numbers_and_chunks_with_their_length() -> None:
    assert frame_events(7, ['{"a":1}', "{}"]) == (
        b'id: 7\nevent: smithers\ndata: {"a":1}\n\nid: 8\nevent: smithers\ndata: {}\n\n'
    )
    assert as_chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"


def test_the_gateway_knows_the_migrations_that_alembic_knows() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert read_revisions().head == scripts.get_current_head()
