"""Series that are there before anything has happened, and stay when nothing happens any more: alerts need both."""

import inspect
import re

import pytest

import gateway.metrics
import worker.children
from gateway.metrics import Metrics
from smithers.store.gauges import MAX_QUEUES, Backlog, Gauges
from smithers.telemetry import names
from smithers.telemetry.exposition import merge
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from worker.death_watch import DeathWatch
from worker.meters import DEATHS, ENDS, PoolMeters


def test_what_workers_may_die_of_is_told_before_one_has() -> None:
    sheet = Sheet.create(1)
    PoolMeters(sheet.open_page(Role.POOL))
    told = merge(sheet.read())
    sheet.close()
    assert [told[names.TAKEOVERS.name, death] for death in DEATHS] == [[0.0]] * len(DEATHS)
    assert [told[names.CHILDREN_ENDED.name, end] for end in ENDS] == [[0.0]] * len(ENDS)


def test_no_worker_dies_of_anything_else() -> None:
    children = inspect.getsource(worker.children)
    words = re.findall(r'self\._kill\(child, (?:"([a-z-]+)"|([A-Z]+))\)', children)
    killed_for = [word or getattr(worker.children, name) for word, name in words]
    assert len(killed_for) == children.count("self._kill(")
    assert {*killed_for, "exit", "crash"} == set(ENDS)
    found = re.findall(r'"([a-z-]+)"', inspect.getsource(DeathWatch._find_death))
    assert {*found, "exit"} == set(DEATHS)


@pytest.mark.parametrize("count", [1, MAX_QUEUES + 1])
async def test_a_queue_that_has_become_empty_is_told_as_empty(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.metrics, "KEPT_S", -1.0)
    queues = {f"q{number}": Backlog(3, 1.5) for number in range(count)}

    async def read() -> Gauges:
        return Gauges(runs={}, queues=queues, approvals=Backlog(0, 0.0))

    metrics = Metrics(read_gauges=read)

    async def depths() -> dict[str, str]:
        text, _content_type = await metrics.expose("")
        return dict(
            re.findall(r'^smithers_queue_depth{queue="(\w+)"} (\S+)$', text.decode(), re.MULTILINE)
        )

    busy = await depths()
    assert {name: value for name, value in busy.items() if name != "default"} == dict.fromkeys(
        queues, "3.0"
    )
    queues = {}
    empty = await depths()
    assert set(empty.values()) <= {"0.0"}
    assert len(empty) == (count + 1 if count < MAX_QUEUES else 1)
