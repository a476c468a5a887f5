"""Series that are there before anything has happened, and stay when nothing happens any more: alerts need both."""

import re
from pathlib import Path

import pytest

import gateway.metrics
from gateway.metrics import Metrics
from smithers.store.gauges import MAX_QUEUES, Backlog, Gauges
from smithers.telemetry import names
from smithers.telemetry.exposition import merge
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from worker.deaths import ChildEnd, DeathSign
from worker.meters import PoolMeters

TREE = Path(__file__).parents[2]
FAMILIES = {names.TAKEOVERS.name, names.CHILDREN_ENDED.name}


def test_what_workers_may_die_of_is_told_before_one_has() -> None:
    sheet = Sheet.create(1)
    PoolMeters(sheet.open_page(Role.POOL))
    told = merge(sheet.read())
    sheet.close()
    assert {key: value for key, value in told.items() if key[0] in FAMILIES} == {
        **{(names.TAKEOVERS.name, sign.value): [0.0] for sign in DeathSign},
        **{(names.CHILDREN_ENDED.name, end.value): [0.0] for end in ChildEnd},
    }


def test_the_documents_say_what_workers_die_of() -> None:
    telemetry = (TREE / "docs" / "telemetry.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"A death is noticed by .*?;", telemetry, re.DOTALL)
    assert set(re.findall(r"`([a-z-]+)`", told)) == set(DeathSign)
    runbook = (TREE / "deploy" / "runbook.md").read_text(encoding="utf-8")
    section = runbook.partition("## SmithersWorkersDie")[2].partition("##")[0]
    # A planned end is none to act on.
    assert set(re.findall(r"`([a-z-]+)`:\s", section)) == set(ChildEnd) - {ChildEnd.EXIT}


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
