"""Forms: read a form, and store its answer once.

Between the two, the caller checks the value, without the workflow's code; an answer to a form that has since been asked again
is refused.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from smithers.errors import StoreError
from smithers.ids import NodeId, RunId
from smithers.schemas import compile_schema
from smithers.store.connections import driver_errors
from smithers.store.refusals import FormMisfit, refuse_at_node

# -- name: read_form
READ_FORM: Final = "SELECT outcome, request FROM smithers.read_form_v1($1, $2, $3, $4, $5::text[])"

# -- name: answer_form
ANSWER_FORM: Final = """
    SELECT outcome, queue, is_owned FROM smithers.answer_form_v3($1, $2, $3, $4, $5, $6, $7::text[], $8)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Whom to notify: the run's owner, or, if it has none, claimers of its queue."""

    is_new: bool  # false: it had the same answer before, and nothing was written
    queue: str | None
    is_owned: bool


class FormChanged(StoreError):
    """The form was asked again since it was read: read it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completed form; `user` and `scopes` are the credential's, None if the server has no tokens."""

    run_id: RunId
    node_id: NodeId
    iteration: int
    value: str  # JSON
    answered_by: str | None
    user: str | None
    scopes: tuple[str, ...] | None


async def read_form(pool: asyncpg.Pool, answer: Answer) -> str:
    """Read a form's request, as JSON; raises NodeNotFound, NodeNotWaiting, NotAllowed."""
    with driver_errors():
        row = await pool.fetchrow(READ_FORM, *_place(answer), answer.user, answer.scopes)
    if row is None or row["outcome"] not in {"asked", "answered"}:
        raise _refusal(None if row is None else row["outcome"])
    request: str = row["request"]
    return request


def check_form(request: str, value: Any) -> None:
    """Raise FormMisfit if a value does not fit the schema of a form's request."""
    validator = compile_schema(json.dumps(json.loads(request)["schema"]))
    if validator is not None and (found := validator.find_errors(value)):
        raise FormMisfit(found)


async def answer_form(pool: asyncpg.Pool, answer: Answer, request: str) -> Wake:
    """Store an answer; `request`: what it was validated against.

    Repeating the same value changes nothing; raises FormChanged, and NodeNotWaiting for another value.
    """
    with driver_errors():
        row = await pool.fetchrow(
            ANSWER_FORM,
            *_place(answer),
            answer.value,
            answer.answered_by,
            answer.user,
            answer.scopes,
            request,
        )
    if row is None or row["outcome"] not in {"decided", "repeated"}:
        raise _refusal(None if row is None else row["outcome"])
    is_new = row["outcome"] == "decided"
    return Wake(is_new=is_new, queue=row["queue"], is_owned=bool(row["is_owned"]))


def _place(answer: Answer) -> tuple[RunId, NodeId, int]:
    return answer.run_id, answer.node_id, answer.iteration


def _refusal(outcome: str | None) -> StoreError:
    if outcome == "changed":
        return FormChanged("The form has changed; read it again.")
    return refuse_at_node(outcome)
