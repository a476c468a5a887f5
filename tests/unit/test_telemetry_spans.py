"""Spans: our bytes are OTLP's, they arrive over both protocols, and a collector that is gone costs nothing but them."""

import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.testing import capture_logs

from smithers.ids import RunId
from smithers.telemetry import otlp, tracing
from smithers.telemetry.otel_variables import InvalidTelemetry, read_settings
from smithers.telemetry.sending import BLOCK_COUNT, MAX_REQUEST_BYTES, THREAD_NAME, Sender
from smithers.telemetry.spans import (
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    Place,
    Span,
    SpanKind,
    read_kept,
    read_traceparent,
)
from smithers.telemetry.tracing import RunTrace, Tracer, check_tracing, span
from tests.support.collector import collecting

PARENT = Place(bytes(range(16)), bytes(range(8)))
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "10"}
LIMIT_S = 30.0  # far below what all of them took if each waited for an export
TEXTS = some.text(max_size=300)
VALUES = TEXTS | some.booleans() | some.integers(-(2**63), 2**63 - 1) | some.floats(allow_nan=False)


class Kept:
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.told: list[Span] = []

    def put(self, told: Span) -> None:
        self.told.append(told)

    def is_sampled(self, _trace_id: bytes, _name: str, parent: Place | None) -> bool:
        return parent is None or parent.is_sampled

    def attach(self, _span: Span) -> None:
        pass

    def spans(self):
        told = [otlp.encode_span(one) for one in self.told]
        request = otlp.encode_request({"service.name": "s"}, "scope", "1", told)
        read = ExportTraceServiceRequest.FromString(request)
        return list(read.resource_spans[0].scope_spans[0].spans)


def dropping(lost: list[int]):
    return lost.append


def tracer_to(kept: Kept) -> Tracer:
    sender: Any = kept
    return Tracer(sender)


def a_span(**attributes: Any) -> Span:
    return Span("one", SpanKind.INTERNAL, *PARENT[:2], b"", True, 1, attributes, {}, 2)


@given(
    name=TEXTS,
    attributes=some.dictionaries(some.text(min_size=1, max_size=40), VALUES, max_size=8),
    inherited=some.dictionaries(some.sampled_from(("run", "flow")), TEXTS),
    began_ns=some.integers(0, 2**64 - 1),
    error_type=some.none() | TEXTS,
    kind=some.sampled_from(SpanKind),
    parent_id=some.just(b"") | some.binary(min_size=8, max_size=8),
)
def test_what_is_written_by_hand_is_what_the_librarys_messages_read(
    name, attributes, inherited, began_ns, error_type, kind, parent_id
):
    told = otlp.encode_span(
        Span(
            name,
            kind,
            PARENT.trace_id,
            PARENT.span_id,
            parent_id,
            is_sampled=True,
            began_ns=began_ns,
            attributes=attributes,
            inherited=inherited,
            ended_ns=7,
            error_type=error_type,
        )
    )
    request = otlp.encode_request({"service.name": "x" * 200, "n": 3}, "scope", "1.2", [told, told])
    read = ExportTraceServiceRequest.FromString(request)
    (resource,) = read.resource_spans
    assert [item.key for item in resource.resource.attributes] == ["service.name", "n"]
    (scope,) = resource.scope_spans
    assert (scope.scope.name, scope.scope.version, len(scope.spans)) == ("scope", "1.2", 2)
    found = scope.spans[1]
    assert (found.name, found.kind, found.parent_span_id) == (name, kind, parent_id)
    assert (found.trace_id, found.span_id) == (bytes(range(16)), bytes(range(8)))
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (began_ns, 7)
    assert (found.status.code == 2) == (error_type is not None)
    values = [
        (item.key, getattr(item.value, item.value.WhichOneof("value"))) for item in found.attributes
    ]
    error = [] if error_type is None else [("error.type", error_type)]
    assert values == [*inherited.items(), *attributes.items(), *error]
    assert read.SerializeToString()  # and nothing in it is unknown to them
    assert not read.FindInitializationErrors()


def test_a_runs_span_has_the_same_name_for_whoever_tells_it():
    one, other = Kept(), Kept()
    for kept in (one, other):
        RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, PARENT.traceparent).tell_run(
            "finished", None, began_ms=1, ended_ms=2
        )
    assert one.spans() == other.spans()
    (told,) = one.spans()
    assert (told.trace_id, told.parent_span_id) == (PARENT.trace_id, PARENT.span_id)


def test_each_era_of_a_run_has_its_own_span_in_one_trace():
    places = [RunTrace(tracer_to(Kept()), RunId("r1"), "flow", era, None).span for era in (0, 1)]
    assert places[0].trace_id == places[1].trace_id
    assert places[0].span_id != places[1].span_id


def test_a_caller_who_does_not_want_a_trace_gets_none():
    kept = Kept()
    unsampled = Place(PARENT.trace_id, PARENT.span_id, is_sampled=False)
    run = RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, unsampled.traceparent)
    run.end_attempt(run.begin_attempt("a", 0, 1), "finished", None)
    run.tell_run("finished", None, began_ms=1, ended_ms=2)
    assert kept.told == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-0-0-01",
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
        f"00-{'g' * 32}-{'1' * 16}-01",
        f"ff-{'1' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'1' * 16}-0\u0661",
        f"00-{'1' * 32}-{'1' * 16}-01-more",
        f"00-{'A' * 32}-{'1' * 16}-01",
    ],
)
def test_a_traceparent_that_says_nothing_is_none(text):
    assert read_traceparent(text) is None


def test_a_traceparent_is_written_as_it_was_read():
    for flags in ("00", "01"):
        text = f"00-{'ab' * 16}-{'cd' * 8}-{flags}"
        place = read_traceparent(text)
        assert place is not None
        assert place.traceparent == text
        assert read_kept(text) == read_traceparent(text)


def test_authors_who_seed_chance_make_no_id_come_again():
    ids = set()
    for _ in range(3):
        random.seed(1)
        begun = tracer_to(Kept()).begin("one", None)
        ids |= {begun.trace_id, begun.span_id}
    assert len(ids) == 6


def test_off_a_block_is_only_a_block():
    with span("anything", {"a": 1}) as attributes:
        attributes["b"] = 2
    assert tracing._CURRENT.get() is None


def test_blocks_stand_below_the_attempt_and_in_one_another():
    kept = Kept()
    run = RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, None)
    attempt = run.begin_attempt("a", 0, 1)
    run.make_current(attempt)
    with pytest.raises(ValueError, match="x"):
        raise_within_blocks()
    run.end_attempt(attempt, "failed", "ValueError")
    inner, outer, task = kept.spans()
    assert [inner.parent_span_id, outer.parent_span_id] == [outer.span_id, task.span_id]
    assert task.parent_span_id == run.span.span_id
    assert {item.key for item in inner.attributes} == {
        *("smithers.run_id", "smithers.workflow_name"),
        *("n", "m", "error.type"),
    }
    assert b"x" not in {item.value.string_value.encode() for item in inner.attributes}


def test_what_a_block_is_told_is_written_down_at_its_end():
    kept = Kept()
    run = RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, None)
    run.make_current(run.span)
    odd: Any = {"none": None, "list": [1, 2]}
    number: Any = 3
    with span("block", odd) as attributes:
        attributes[number] = "three"
        attributes["\ud800"] = "\ud800"
    attributes["late"] = True
    (told,) = kept.spans()
    assert [(item.key, item.value.string_value) for item in told.attributes[2:]] == [
        ("none", "None"),
        ("list", "[1, 2]"),
        ("3", "three"),
        ("?", "?"),
    ]


class Mute:
    """What an author may have made."""

    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize("is_traced", [False, True])
def test_whatever_a_block_is_told_its_body_goes_on(is_traced):
    kept = Kept()
    if is_traced:
        run = RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, None)
        run.make_current(run.span)
    name: Any = 7
    mute: Any = Mute()
    odd: Any = {"least": -(2**63), "below": -(2**63) - 1, "above": 2**63, "endless": 10**5000}
    with span(name, odd) as attributes:
        assert attributes["above"] == 2**63
        attributes["mute"] = mute
        attributes[mute] = float("nan")
    if is_traced:
        (told,) = kept.spans()
        values = {item.key: item.value for item in told.attributes[2:]}
        assert told.name == "7"
        assert values["least"].int_value == -(2**63)
        assert values["below"].string_value == "-9223372036854775809"
        assert values["above"].string_value == "9223372036854775808"
        mute = "(its text is not available)"
        assert values["endless"].string_value == values["mute"].string_value == mute
        assert math.isnan(values[mute].double_value)


def raise_within_blocks() -> None:
    with span("outer"), span("inner", {"n": 1}) as attributes:
        attributes["m"] = True
        raise ValueError("x")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_arrive(protocol):
    with collecting(protocol) as collector:
        told = {**collector.variables, **FAST, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=k1"}
        sender = Sender(told, dropping([]))
        tracer = Tracer(sender)
        begun = tracer.begin("one", PARENT)
        tracer.end(begun)
        collector.until(lambda spans: len(spans) == 1)
        (seen,) = collector.spans
        assert (seen.name, seen.trace_id) == ("one", PARENT.trace_id.hex())
        assert seen.resource["service.name"] == "smithers"
        headers = {name.lower(): value for name, value in collector.headers[0].items()}
        assert headers["x-key"] == "k1"
        tracer.close(5)


def test_what_is_there_at_the_end_is_sent():
    with collecting("http/protobuf") as collector:
        sender = Sender({**collector.variables, "OTEL_BSP_SCHEDULE_DELAY": "60000"}, dropping([]))
        tracer = Tracer(sender)
        for number in range(1_000):
            tracer.end(tracer.begin(f"span-{number}", PARENT))
        tracer.close(10)
        assert len(collector.spans) == 1_000


def test_what_comes_while_spans_leave_waits_for_the_next_time():
    sender = Sender({"OTEL_BSP_SCHEDULE_DELAY": "60000"}, dropping([]))
    sizes: list[int] = []

    def export(_request: bytes, count: int) -> None:
        sizes.append(count)
        if len(sizes) < 5:
            sender.put(a_span())

    sender._export = export
    sender.put(a_span())
    sender._send_waiting()
    assert sizes == [1]
    sender.close(10)
    assert sum(sizes) > 1  # at the end nothing is left behind


def test_a_block_is_encoded_where_its_last_span_ends():
    sender = Sender({"OTEL_BSP_SCHEDULE_DELAY": "60000"}, dropping([]))
    for _ in range(BLOCK_COUNT - 1):
        sender.put(a_span())
    assert not sender._encoded
    sender.put(a_span())
    assert (len(sender._encoded), len(sender._ended)) == (BLOCK_COUNT, 0)
    sender._export = lambda _request, _count: None
    sender.close(10)


def test_spans_of_many_threads_leave_once_each():
    sizes: list[int] = []
    sender = Sender({"OTEL_BSP_SCHEDULE_DELAY": "0.01"}, dropping([]))
    sender._export = lambda _request, count: sizes.append(count)

    def put_many() -> None:
        for _ in range(500):
            sender.put(a_span())

    threads = [threading.Thread(target=put_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sender.close(30)
    assert sum(sizes) == 4_000


def test_no_request_has_more_spans_than_it_may():
    sender = Sender({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}, dropping([]))
    sizes: list[int] = []
    sender._export = lambda _request, count: sizes.append(count)
    for _ in range(10):
        sender.put(a_span())
    sender.close(10)
    assert sizes == [4, 4, 2]


def test_spans_of_opentelemetrys_own_api_stand_below_the_attempt():
    code = """
import sys
from threading import Thread
from opentelemetry import context, trace
from smithers.ids import RunId
from smithers.telemetry.tracing import RunTrace, open_tracer
tracer = open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": sys.argv[1]}, print, has_authors=True)
run = RunTrace(tracer, RunId("r1"), "flow", 0, None)
attempt = run.begin_attempt("a", 0, 1)
run.make_current(attempt)
with trace.get_tracer("author").start_as_current_span("chat m1", attributes={"gen_ai.request.model": "m1"}):
    pass
trace.get_tracer("author").start_span("\\ud800").end()  # cannot be written: its author is not bothered with it
taken = context.get_current()
elsewhere = Thread(target=lambda: trace.get_tracer("author").start_span("elsewhere", taken).end())
elsewhere.start()
elsewhere.join()
assert format(trace.get_current_span().get_span_context().span_id, "x") in repr(trace.get_current_span())
run.end_attempt(attempt, "finished", None)
tracer.close(10)
"""
    with collecting("http/protobuf") as collector:
        subprocess.run([sys.executable, "-c", code, collector.url], check=True, timeout=60)
        chat, elsewhere, task = collector.spans
        assert (chat.name, chat.attributes) == ("chat m1", {"gen_ai.request.model": "m1"})
        for theirs in (chat, elsewhere):
            assert (theirs.parent_id, theirs.trace_id) == (task.span_id, task.trace_id)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_gone_costs_its_spans_and_no_time(protocol):
    with collecting(protocol) as collector:
        told = {**collector.variables, **FAST, "OTEL_BSP_MAX_QUEUE_SIZE": "50"}
        told["OTEL_EXPORTER_OTLP_TIMEOUT"] = "5"
    lost: list[int] = []
    tracer = Tracer(Sender(told, dropping(lost)))
    began = time.monotonic()
    for _ in range(5_000):
        tracer.end(tracer.begin("one", PARENT))
    assert time.monotonic() - began < LIMIT_S
    assert len(tracer._sender._ended) + len(tracer._sender._encoded) <= 50
    tracer.close(0.5)


@contextmanager
def exporting(sender: Sender) -> Iterator[None]:
    """Keep the export of one span from ending for the duration of the block."""
    released, begun = threading.Event(), threading.Event()

    def export(_request: bytes, _count: int) -> None:
        begun.set()
        assert released.wait(30)

    sender._export = export
    sender.put(a_span())
    assert begun.wait(30)
    try:
        yield
    finally:
        released.set()


def test_who_closes_waits_for_an_export_no_longer_than_he_says():
    sender = Sender(FAST, dropping([]))
    with exporting(sender):
        sender.close(0.01)
        assert THREAD_NAME in {thread.name for thread in threading.enumerate()}


def test_what_is_dropped_is_counted():
    lost: list[int] = []
    sender = Sender({"OTEL_BSP_MAX_QUEUE_SIZE": "10", **FAST}, dropping(lost))
    with exporting(sender):
        for _ in range(25):
            sender.put(a_span())
    sender.close(30)
    assert sum(lost) == 15


class Nameless(type):
    """A class of classes whose names are none."""

    @property
    def __name__(cls) -> Any:  # type: ignore[override]  # what an author may do
        return ["no", "name"]


class OddError(Exception, metaclass=Nameless):
    """What an author may raise."""


def test_what_cannot_be_written_down_costs_no_other_span():
    lost: list[int] = []
    with collecting("http/protobuf") as collector:
        sender = Sender({**collector.variables, **FAST}, dropping(lost))
        nothing: Any = None
        sender.put(Span("two", SpanKind.INTERNAL, *PARENT[:2], b"", True, 1, nothing, {}, 2))
        sender.put(a_span())
        collector.until(lambda spans: len(spans) == 1)
        sender.put(a_span())
        collector.until(lambda spans: len(spans) == 2)
        sender.close(10)
    assert lost == [1]


def test_an_exporter_that_breaks_ends_nothing():
    lost: list[int] = []
    sender = Sender(FAST, dropping(lost))
    broken = threading.Semaphore(0)

    def export(_request: bytes, _count: int) -> None:
        broken.release()
        raise RuntimeError

    sender._export = export
    for _ in range(2):
        sender.put(a_span())
        assert broken.acquire(timeout=30)
    sender.close(10)
    assert lost == [1, 1]


def test_an_error_is_told_whatever_its_class_is_called():
    kept = Kept()
    run = RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, None)
    run.make_current(run.span)
    with pytest.raises(OddError), span("block"):
        raise OddError
    (told,) = kept.spans()
    assert told.attributes[-1].value.string_value == "['no', 'name']"


def test_a_large_text_is_cut_and_not_kept():
    kept = Kept()
    run = RunTrace(tracer_to(kept), RunId("r1"), "flow", 0, None)
    run.make_current(run.span)
    otlp._recurring_attributes.cache_clear()
    with span("n" * 5_000_000, {"k" * 5_000_000: "v" * 5_000_000}):
        pass
    (told,) = kept.spans()
    assert len(told.name) == len(told.attributes[2].key) == MAX_NAME_CHARS
    assert told.attributes[2].value.string_value == "v" * MAX_TEXT_CHARS
    assert (
        otlp._recurring_attributes.cache_info().currsize == 2
    )  # what the run hands down, and the resource


def test_many_attributes_are_not_kept():
    otlp._recurring_attributes.cache_clear()
    told = otlp.encode_span(a_span(**{f"part-{number}": number for number in range(1_000)}))
    assert told.count(b"part-") == 1_000
    assert otlp._recurring_attributes.cache_info().currsize == 1  # none, which it inherits


def test_a_request_ends_before_it_is_too_large_for_a_receiver():
    sender = Sender({"OTEL_BSP_SCHEDULE_DELAY": "60000"}, dropping([]))
    sizes: list[tuple[int, int]] = []
    sender._export = lambda request, count: sizes.append((count, len(request)))
    parts = {f"part-{number}": "x" * 8_192 for number in range(50)}
    for attributes in ({}, {}, parts, parts, parts, {}):
        sender.put(a_span(**attributes))
    sender.close(10)
    assert [count for count, _ in sizes] == [4, 2]
    assert max(size for _, size in sizes) < MAX_REQUEST_BYTES + 1_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0.5"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_TRACES_EXPORTER", "otlp,zipkin"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_started(name, value):
    with pytest.raises(InvalidTelemetry, match=value):
        check_tracing({name: value})


def test_so_is_what_the_library_reads_as_it_is_loaded():
    code = """
import os
from smithers.telemetry.otel_variables import InvalidTelemetry
from smithers.telemetry.tracing import check_tracing
try:
    check_tracing(dict(os.environ))
except InvalidTelemetry as error:
    print(error)
"""
    told = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True
    )
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in done.stdout


@pytest.mark.parametrize(
    "told",
    [
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_COMPRESSION": "brotli"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TIMEOUT": "long"},
    ],
)
def test_so_is_what_two_variables_say_together(told):
    with pytest.raises(InvalidTelemetry):
        check_tracing(told)


@pytest.mark.parametrize(
    ("told", "is_off"),
    [("otlp", False), ("", False), ("  ", False), ("none", True), (" None ", True)],
)
def test_traces_leave_over_otlp_or_not_at_all(told: str, is_off: bool):
    assert read_settings({"OTEL_TRACES_EXPORTER": told}).is_disabled is is_off


def test_blanks_around_a_value_mean_nothing_to_the_library_either():
    sender = Sender({"OTEL_TRACES_SAMPLER": " always_off "}, dropping([]))
    assert not sender.is_sampled(b"\1" * 16, "run", None)
    sender.close(5)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("compression", ["none", ""])
def test_without_compression_is_told_in_the_standards_word_or_in_none(protocol, compression):
    told = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
    }
    check_tracing(told)


def test_spans_have_a_compression_of_their_own():
    general = {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    with collecting("http/protobuf") as collector:
        for own in ({}, {"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "None"}):
            sender = Sender({**collector.variables, **general, **own}, dropping([]))
            sender.put(a_span())
            sender.close(10)
        told = [headers.get("Content-Encoding") for headers in collector.headers]
    assert told == ["gzip", None]


@pytest.mark.parametrize(
    ("protocol", "endpoint", "reason"),
    [
        ("grpc", "http://127.0.0.1:1", "UNAVAILABLE"),
        ("http/protobuf", "http://127.0.0.1:1", "ConnectionError"),
        ("http/protobuf", "127.0.0.1:4318", "InvalidSchema"),
    ],
)
def test_why_spans_were_dropped_is_logged(protocol, endpoint, reason):
    told = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5",
    }
    with capture_logs() as logged:
        sender = Sender(told, dropping([]))
        sender.put(a_span())
        sender.close(30)
    (line,) = logged
    assert (line["event"], line["span_count"], line["reason"]) == ("spans_dropped", 1, reason)


def test_the_variables_are_in_the_environment_for_a_moment_only(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    sender = Sender({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret"}, dropping([]))
    sender.close(5)
    import os

    assert "OTEL_EXPORTER_OTLP_HEADERS" not in os.environ
    assert os.environ["OTEL_SERVICE_NAME"] == "mine"


UNSAMPLED = Place(PARENT.trace_id, PARENT.span_id, is_sampled=False)


@pytest.mark.parametrize(
    ("sampler", "here", "below", "below_unsampled"),
    [
        ("parentbased_always_on", True, True, False),
        ("parentbased_always_off", False, True, False),
        ("parentbased_traceidratio", False, True, False),
        ("always_on", True, True, True),
        ("always_off", False, False, False),
        ("traceidratio", False, False, False),
    ],
)
def test_the_sampler_decides_for_requests_and_for_runs(sampler, here, below, below_unsampled):
    told = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0"}
    sender = Sender(told, dropping([]))
    tracer = Tracer(sender)
    for parent, expected in ((None, here), (PARENT, below), (UNSAMPLED, below_unsampled)):
        context = None if parent is None else parent.traceparent
        run = RunTrace(tracer, RunId("r1"), "flow", 0, context)
        assert run.span.is_sampled == tracer.begin("GET", parent).is_sampled == expected
    sender.close(5)


def test_off_nothing_of_the_sdk_is_imported():
    code = (
        "import sys, gateway.app, worker.child, worker.pool, smithers.server\n"
        "from smithers.telemetry.tracing import open_tracer\n"
        "assert open_tracer(None, print, has_authors=True) is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert trace.__name__ in sys.modules  # here it is
