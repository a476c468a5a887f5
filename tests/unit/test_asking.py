"""Questions that were decided elsewhere: the prompt is withdrawn, and an answer that comes too late is not lost silently."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Never

import pytest

from smithers.cli import asking
from smithers.client import Approval, Conflict, Event
from smithers.client.wire import STREAM_SEQ

ASKED = Approval.model_validate(
    {
        "runId": "r",
        "nodeId": "a",
        "iteration": 0,
        "workflowName": "flow",
        "runStatus": "waiting-approval",
        "requestedAtMs": 10,
        "waitingMs": 0,
    }
)


def event(seq: int, kind: str, at_ms: int, **fields: Any) -> Event:
    told = {"type": kind, "runId": "r", "timestampMs": at_ms, STREAM_SEQ: seq, **fields}
    return Event.model_validate(told)


class Decided:
    """A server whose question was decided after an earlier run's try had asked the same."""

    def __init__(self, kind: str, **fields: Any) -> None:
        self.events = [
            event(1, "ApprovalGranted", 5, nodeId="a", iteration=0, decidedBy="early"),
            event(2, "ApprovalGranted", 11, nodeId="b", iteration=0, decidedBy="other"),
            event(3, kind, 12, iteration=0, **{"nodeId": "a", **fields}),
        ]

    async def approve(self, *_: str, **__: Any) -> Never:
        raise Conflict("decided", code="ALREADY_DECIDED", status=409)

    async def list_events(self, _run_id: str) -> AsyncGenerator[Event]:
        for one in self.events:
            yield one

    stream = list_events


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (Decided("ApprovalDenied", decidedBy="system:timeout"), "was denied by its time-out"),
        (Decided("ApprovalGranted", decidedBy="ann"), "was approved by ann"),
        (Decided("ApprovalDenied"), "was denied"),
        (Decided("NodeCancelled", reason="the run was cancelled"), "is not open any more"),
        (Decided("ApprovalDenied", nodeId="c"), "is not open any more"),
    ],
)
async def test_an_answer_that_comes_too_late_is_told_who_was_faster(server: Any, told: str) -> None:
    said: list[str] = []
    await asking.decide(server, ASKED, asking.Answer(is_approved=True), said.append)
    assert said == [f"the question a {told}: the answer came too late"]


async def test_a_prompt_is_withdrawn_when_its_question_is_decided_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    withdrawn: list[str] = []

    async def read_for_ever(prompt: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            withdrawn.append(prompt)

    monkeypatch.setattr(asking, "_read_line", read_for_ever)
    monkeypatch.setattr(asking, "_withdraw_prompt", lambda: None)
    server: Any = Decided("ApprovalDenied", decidedBy="system:timeout")
    said: list[str] = []
    async with asyncio.timeout(10):
        assert await asking.ask_while_open(server, ASKED, said.append) is None
    assert withdrawn == ["Approve? [y/n] "]
    assert said == ["the question a was denied by its time-out"]
