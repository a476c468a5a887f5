"""What another version of a workflow would make of a run that waits."""

from typing import Any

import pytest
from pydantic import BaseModel, model_validator

from smithers.checking import Effect, check_run
from smithers.engine.facts import Facts
from smithers.ids import Epoch, RunId, SourceHash
from smithers.states import RunStatus
from smithers.store.run_facts import LoadedRun, News
from smithers.store.workflows import ParkedRun
from smithers.workflow import Workflow


class Given(BaseModel):
    topic: str

    @model_validator(mode="before")
    @classmethod
    def tidy(cls, given: Any) -> Any:
        return {"topic": given["topic"].strip()}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ('{"subject": "x"}', "Given raised KeyError"),
        ('{"topic": 1}', "Given raised AttributeError"),
    ],
)
def test_an_input_that_breaks_its_new_model_would_fail_its_run(given: str, wrong: str) -> None:
    run = ParkedRun(
        run_id=RunId("r"),
        status=RunStatus.WAITING_APPROVAL,
        workflow_name="w",
        workflow_path="w.py",
        workflow_export=None,
        source_hash=SourceHash("0"),
        input=given,
        auth=None,
        config="{}",
        carried=None,
    )
    news = News(
        epoch=Epoch(1),
        last_seq=0,
        now_ms=0,
        is_cancelling=False,
        approvals={},
        signals=[],
        newest_signal=-1,
        ends={},
    )
    edited = Workflow(name="w", builder=lambda _: None, input_model=Given)
    found = check_run(run, LoadedRun(Facts(), None, news), edited, guard=lambda build: build())
    assert found.effect is Effect.FAILS
    assert found.reason == f"the input does not fit w: {wrong}"
