"""The sheet: what processes count together, who outlives whom, and what Prometheus reads of it."""

import multiprocessing
import os
import signal
import time
from multiprocessing import reduction
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gateway.access import Access
from gateway.errors import NotReady
from gateway.metrics_site import MetricsSite
from gateway.settings import GatewaySettings
from smithers.telemetry import names
from smithers.telemetry.exposition import expose, merge
from smithers.telemetry.names import Kind, Merge, Metric, Role
from smithers.telemetry.sheet import PAGE_BYTES, Sheet

SPAWN = multiprocessing.get_context("spawn")


def rebuild(handed) -> Sheet:
    return Sheet(handed.detach())


reduction.register(Sheet, lambda sheet: (rebuild, (reduction.DupFd(sheet.fd),)))


def count_and_wait(sheet: Sheet, started) -> None:
    page = sheet.open_page(Role.CHILD)
    page.counter(names.LEASES_LOST).inc(3)
    page.histogram(names.QUEUE_WAIT).observe(0.2)
    page.gauge(names.NODES_ACTIVE).set(7)
    started.set()
    signal.pause()


def start(sheet: Sheet, target):
    started = SPAWN.Event()
    child = SPAWN.Process(target=target, args=(sheet, started))
    child.start()
    assert started.wait(60)
    return child


def counting_child(sheet: Sheet):
    return start(sheet, count_and_wait)


def kill(child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def total(sheet: Sheet, metric: Metric, *labels: str) -> float | None:
    values = merge(sheet.read()).get((metric.name, *labels))
    return None if values is None else values[0]


def total_of(sheet: Sheet, metric: Metric, *labels: str) -> float:
    found = total(sheet, metric, *labels)
    assert found is not None
    return found


@pytest.fixture
def sheet():
    sheet = Sheet.create(4)
    yield sheet
    sheet.close()


def test_what_a_killed_process_has_counted_stays_and_its_gauges_go(sheet):
    own = sheet.open_page(Role.POOL)
    own.counter(names.LEASES_LOST).inc()
    child = counting_child(sheet)
    assert total(sheet, names.LEASES_LOST) == 4
    assert total(sheet, names.NODES_ACTIVE) == 7
    assert total(sheet, names.PROCESSES, "child") == 1
    kill(child)
    assert total(sheet, names.LEASES_LOST) == 4
    assert total(sheet, names.NODES_ACTIVE) is None
    assert total(sheet, names.PROCESSES, "child") is None
    assert total(sheet, names.PROCESSES, "pool") == 1


def test_a_successor_goes_on_from_there_on_the_same_page(sheet):
    for _ in range(3):
        kill(counting_child(sheet))
    assert total(sheet, names.LEASES_LOST) == 9
    assert merge(sheet.read())[names.QUEUE_WAIT.name,][-1] == pytest.approx(0.6)
    assert len(sheet.read()) == 1


def test_processes_that_live_have_a_page_each(sheet):
    pages = [sheet.open_page(Role.GATEWAY) for _ in range(2)]
    for page in pages:
        page.gauge(names.STREAMS_ACTIVE).inc()
    assert total(sheet, names.STREAMS_ACTIVE) == 2


def test_who_finds_no_page_counts_where_nobody_reads_and_that_is_told(sheet):
    for _ in range(4):
        sheet.open_page(Role.GATEWAY)
    assert total(sheet, names.SERIES_LOST) == 0
    for lost in (1, 2):
        sheet.open_page(Role.GATEWAY).counter(names.RUNS_STARTED).inc()
        assert total(sheet, names.SERIES_LOST) == lost
    assert total(sheet, names.RUNS_STARTED) is None


def hear_and_wait(sheet: Sheet, started) -> None:
    page = sheet.open_page(Role.GATEWAY)
    page.gauge(names.LISTENER_AGE, "gateway").set(1.0)
    page.gauge(names.BEAT_AGE).set(1.0)
    page.gauge(names.STREAMS_ACTIVE).set(5)
    started.set()
    signal.pause()


def test_gauges_on_a_page_that_was_taken_over_say_nothing_until_they_are_set(sheet):
    kill(start(sheet, hear_and_wait))
    page = sheet.open_page(Role.CHILD)  # which has none of these gauges
    assert total(sheet, names.PROCESSES, "child") == 1
    for metric in (names.LISTENER_AGE, names.BEAT_AGE, names.STREAMS_ACTIVE):
        labels = ["gateway"] * len(metric.labels)
        assert total(sheet, metric, *labels) is None
    other = sheet.open_page(Role.GATEWAY)
    other.gauge(names.LISTENER_AGE, "gateway").set(1.0)
    assert total_of(sheet, names.LISTENER_AGE, "gateway") > 0
    page.gauge(names.STREAMS_ACTIVE).inc()
    assert total(sheet, names.STREAMS_ACTIVE) == 1


def test_of_two_pools_the_one_that_is_silent_is_told_and_none_before_its_first_beat(sheet):
    silent, other = sheet.open_page(Role.POOL), sheet.open_page(Role.POOL)
    beats = [page.gauge(names.BEAT_AGE) for page in (silent, other)]
    assert total(sheet, names.BEAT_AGE) is None
    beats[1].set(time.monotonic())
    assert 0 <= total_of(sheet, names.BEAT_AGE) < 60
    beats[0].set(time.monotonic() - 600)
    beats[1].set(time.monotonic())
    assert total_of(sheet, names.BEAT_AGE) >= 600


def test_a_worker_without_children_is_not_ready_for_want_of_them(sheet):
    settings = GatewaySettings(dsn="", direct_dsn="", root_dir=Path())
    access = Access(auth_token=None, tokens_file=None, only_loopback_names=False)
    site = MetricsSite(sheet, access, settings)
    beat = sheet.open_page(Role.POOL).gauge(names.BEAT_AGE)
    assert failing(site) == "workers"
    sheet.open_page(Role.CHILD)
    assert failing(site) == "database"
    beat.set(time.monotonic())
    assert failing(site) is None


def failing(site: MetricsSite) -> object:
    try:
        site._check()
    except NotReady as error:
        details = error.details
    else:
        return None
    assert details is not None
    return details["check"]


def test_of_ages_the_youngest_is_told(sheet):
    up, down = sheet.open_page(Role.GATEWAY), sheet.open_page(Role.GATEWAY)
    up.gauge(names.LISTENER_AGE, "gateway").set(1.0)
    assert total_of(sheet, names.LISTENER_AGE, "gateway") > 0
    down.gauge(names.LISTENER_AGE, "gateway").set(0.0)
    assert total(sheet, names.LISTENER_AGE, "gateway") == 0


def test_a_family_whose_labels_authors_choose_has_an_end(sheet):
    page = sheet.open_page(Role.CHILD)
    for number in range(1_000):
        page.counter(names.TOKENS, "input", f"agent-{number}", "model").inc()
    found = {
        key: values for key, values in merge(sheet.read()).items() if key[0] == names.TOKENS.name
    }
    assert len(found) == names.MAX_OPEN_SERIES + 1
    assert sum(values[0] for values in found.values()) == 1_000
    assert found[names.TOKENS.name, "other", "other", "other"] == [1_000 - names.MAX_OPEN_SERIES]


def test_a_full_page_says_what_it_does_not_show(sheet):
    page = sheet.open_page(Role.GATEWAY)
    wide = Metric(name=names.HTTP_REQUESTS.name, help="", labels=("method", "route", "status"))
    for number in range(PAGE_BYTES // 4_096 + 10):
        page.counter(wide, "GET", "x" * 4_096, str(number)).inc()
    assert total_of(sheet, names.SERIES_LOST) > 10


def test_every_family_is_there_with_its_help_and_its_type():
    text = expose(Sheet.create(1), "")[0].decode()
    told = {family.name: family for family in text_string_to_metric_families(text)}
    for metric in names.FAMILIES:
        family = told[metric.name.removesuffix("_total")]
        assert (family.documentation, family.type) == (metric.help, metric.kind)


def test_a_histogram_is_told_as_prometheus_wants_it(sheet):
    page = sheet.open_page(Role.CHILD)
    histogram = page.histogram(names.QUEUE_WAIT)
    for value in (0.001, 0.2, 1e9):
        histogram.observe(value)
    text = expose(sheet, "")[0].decode()
    (family,) = [
        family
        for family in text_string_to_metric_families(text)
        if family.name == names.QUEUE_WAIT.name
    ]
    buckets = {
        sample.labels["le"]: sample.value for sample in family.samples if "le" in sample.labels
    }
    assert buckets["0.001"] == 1
    assert buckets["0.1"] == 1
    assert buckets["0.5"] == 2
    assert buckets["+Inf"] == 3
    rest = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples[-2:]}
    assert rest == {"count": 3, "sum": 1e9 + 0.201}


def test_openmetrics_is_told_to_whoever_asks_for_it(sheet):
    sheet.open_page(Role.GATEWAY).counter(names.RUNS_STARTED).inc()
    body, content_type = expose(sheet, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    told = {family.name: family for family in read_openmetrics(body.decode())}
    assert told["smithers_runs_started"].samples[0].value == 1


def test_what_the_names_promise_holds_for_all():
    for metric in names.FAMILIES:
        assert metric.name.startswith("smithers_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.merge is Merge.SUM or metric.kind is Kind.GAUGE
    assert len({metric.name for metric in names.FAMILIES}) == len(names.FAMILIES)
