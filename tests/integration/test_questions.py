"""Questions to people, from the tree to the wire: choices, forms, and who may answer."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Client, running, settings_for
from tests.support.world import World, until

CHOICES = """
    from smithers import Approval, ApprovalDecision, Sequence, Task, workflow

    @workflow
    def choices(ctx):
        colour = ctx.output_maybe("colour", ApprovalDecision)
        order = ctx.output_maybe("order", ApprovalDecision)
        return Sequence(
            Approval("colour", title="Which?", mode="select", options=["red", "blue"]),
            Approval("order", title="In which order?", mode="rank", options=["a", "b", "c"]),
            order and Task("told", {"colour": colour.selected, "order": order.ranked}),
        )
"""

FORM = """
    from pydantic import BaseModel, Field, field_validator
    from smithers import HumanTask, Sequence, Task, workflow

    class Review(BaseModel):
        stars: int = Field(ge=1, le=5)
        text: str

        @field_validator("text")
        @classmethod
        def is_polite(cls, text):
            if "damn" in text:
                raise ValueError("be polite")
            return text

    def thank(review: Review) -> str:
        return f"{review.stars} stars: {review.text}"

    @workflow
    def form(ctx):
        return Sequence(
            HumanTask("review", prompt="How was it?", output=Review),
            Task("thank", thank, needs={"review": "review"}),
        )
"""

GUARDED = """
    from smithers import Approval, workflow

    @workflow
    def guarded(ctx):
        return Approval("ok", title="?", allowed_users=["ann"], allowed_scopes=["approvals:decide"])
"""


@pytest.fixture
async def client(world: World, database: str) -> AsyncIterator[Client]:
    async with running(settings_for(database, world.root)) as client:
        yield client


async def asked(client: Client, node_id: str) -> dict[str, Any]:
    async def find() -> dict[str, Any] | None:
        listed = (await client.call("GET", "/v1/approvals")).json["approvals"]
        return next((each for each in listed if each["nodeId"] == node_id), None)

    return await until(find, f"{node_id} is asked")


async def decide(client: Client, run_id: str, node_id: str, decision: Any, verb: str = "approve"):
    path = f"/v1/runs/{run_id}/nodes/{node_id}/{verb}"
    return await client.call("POST", path, {"decision": decision})


async def fill_in(client: Client, run_id: str, node_id: str, value: Any):
    return await client.call("POST", f"/v1/runs/{run_id}/nodes/{node_id}/answer", {"value": value})


async def test_a_choice_must_be_one_of_the_options_and_becomes_the_output(world, client):
    world.write("choices.py", CHOICES)
    await world.start("r", "choices.py")
    world.start_pool()
    question = await asked(client, "colour")
    assert (question["requestMode"], question["requestOptions"]) == ("select", ["red", "blue"])
    for misfit in (
        None,
        {},
        {"selected": "green"},
        {"selected": ["red"]},
        {"ranked": ["red"]},
        "red",
    ):
        refused = await decide(client, "r", "colour", misfit)
        assert (refused.status, refused.code) == (400, "INVALID_REQUEST"), misfit
        expected = {"mode": "select", "field": "selected", "options": ["red", "blue"]}
        assert refused.json["error"]["details"] == {"expected": expected}
    assert (await decide(client, "r", "colour", {"selected": "blue"})).status == 200
    await asked(client, "order")
    assert (await decide(client, "r", "colour", {"selected": "blue"})).status == 200  # again
    assert (await decide(client, "r", "colour", {"selected": "red"})).status == 409
    for ranked in (["a", "b"], ["a", "b", "b"], ["a", "b", "c", "c"], ["a", "b", "d"], "abc", []):
        assert (await decide(client, "r", "order", {"ranked": ranked})).status == 400, ranked
    assert (await decide(client, "r", "order", {"ranked": ["c", "a", "b"]})).status == 200
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["told"] == {"colour": "blue", "order": ["c", "a", "b"]}


async def test_a_question_without_options_takes_no_choice(world, client):
    world.write("guarded.py", GUARDED.replace(', allowed_users=["ann"]', ""))
    await world.start("r", "guarded.py")
    world.start_pool()
    await asked(client, "ok")
    for choice in ({"selected": "red"}, {"ranked": ["red"]}, {"selected": None}):
        refused = await decide(client, "r", "ok", choice)
        assert (refused.status, refused.code) == (400, "INVALID_REQUEST"), choice
        assert refused.json["error"]["details"] == {"expected": {"mode": "approve"}}
    assert (await decide(client, "nobody", "ok", {"selected": "red"})).status == 404
    assert (await decide(client, "r", "ok", {"score": 3})).status == 200
    await world.until_status("r", "finished")
    assert (await decide(client, "r", "ok", {"score": 3})).status == 200  # again


async def test_a_choice_may_be_denied_without_choosing(world, client):
    world.write("choices.py", CHOICES)
    await world.start("r", "choices.py")
    world.start_pool()
    await asked(client, "colour")
    assert (await decide(client, "r", "colour", None, "deny")).status == 200
    await world.until_status("r", "failed")
    error = await world.error("r")
    assert error["code"] == "APPROVAL_DENIED", error


async def test_a_form_takes_one_answer_that_fits_it(world, client):
    world.write("form.py", FORM)
    await world.start("r", "form.py")
    world.start_pool()
    question = await asked(client, "review")
    assert question["requestMode"] == "form"
    assert question["requestSchema"]["properties"]["stars"]["maximum"] == 5
    misfit = await fill_in(client, "r", "review", {"stars": 9})
    assert (misfit.status, misfit.code) == (400, "INVALID_REQUEST")
    found = misfit.json["error"]["details"]["errors"]
    assert sorted(error["path"] for error in found) == [[], ["stars"]]
    for verb in ("approve", "deny"):
        refused = await decide(client, "r", "review", None, verb)
        assert (refused.status, refused.code) == (409, "NODE_NOT_WAITING")
    assert (await fill_in(client, "r", "nobody", {})).status == 404
    good = {"stars": 5, "text": "fine"}
    assert (await fill_in(client, "r", "review", good)).status == 200
    assert (await fill_in(client, "r", "review", {"text": "fine", "stars": 5})).status == 200
    assert (await fill_in(client, "r", "review", good | {"stars": 4})).status == 409
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["thank"] == "5 stars: fine"
    assert (await world.lines("r")).count("ApprovalGranted review") == 1


async def test_a_form_is_put_again_where_only_the_model_knows_that_the_answer_will_not_do(
    world, client
):
    world.write("form.py", FORM)
    await world.start("r", "form.py")
    world.start_pool()
    await asked(client, "review")
    assert (await fill_in(client, "r", "review", {"stars": 1, "text": "damn"})).status == 200

    async def is_asked_again() -> bool:
        return "be polite" in json.dumps((await asked(client, "review"))["requestErrors"])

    await until(is_asked_again, "the form says why")
    assert (await fill_in(client, "r", "review", {"stars": 1, "text": "hm"})).status == 200
    await world.until_status("r", "finished")
    assert (await world.outputs("r"))["thank"] == "1 stars: hm"


async def test_who_may_answer_is_the_credentials_to_say(world, database, tmp_path):
    world.write("guarded.py", GUARDED)
    await world.start("r", "guarded.py")
    world.start_pool()
    await world.until_status("r", "waiting-approval")
    tokens = write_tokens(tmp_path)
    settings = settings_for(database, world.root, auth_token=None, tokens_file=tokens)
    async with running(settings) as client:
        for token, status in (("bobs", 403), ("anns", 200)):
            client.token = token
            answer = await decide(client, "r", "ok", None)
            assert answer.status == status, answer.body
            if status == 403:
                assert answer.code == "FORBIDDEN"
    await world.until_status("r", "finished")


def write_tokens(folder: Path) -> Path:
    """Write who holds which token: as a row of the tokens' file."""
    path = folder / "tokens.jsonl"
    rows = [
        {
            "sha256": hashlib.sha256(f"{user}s".encode()).hexdigest(),
            "user": user,
            "scopes": ["approvals:decide"],
        }
        for user in ("ann", "bob")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
