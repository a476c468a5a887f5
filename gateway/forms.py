"""Accept completed forms."""

from typing import Any

from pydantic import Field

from gateway.bodies import write_json
from gateway.exchange import Exchange
from gateway.fields import Body, Iteration, JsonValue, Person
from gateway.nodes import at_first_spelling
from gateway.responses import RunNamed
from smithers.events import EventType
from smithers.ids import NodeId
from smithers.store.forms import Answer, FormChanged, Wake, answer_form, check_form, read_form


class AnswerBody(Body):
    """A completed form."""

    value: JsonValue = Field(description="must fit the form's schema")
    iteration: Iteration | None = Field(None, description="default: 0")
    answered_by: Person | None = Field(None, description="a credential's user takes precedence")


async def post_answer(exchange: Exchange, body: AnswerBody) -> RunNamed:
    """Answer a form; the same answer again changes nothing."""
    run_id, who = exchange.run_id(), exchange.credential

    async def answer_at(node_id: NodeId) -> Wake:
        answer = Answer(
            run_id=run_id,
            node_id=node_id,
            iteration=body.iteration or 0,
            value=write_json(body.value),
            answered_by=who.user or body.answered_by,
            user=who.user,
            scopes=who.scopes,
        )
        return await _answer(exchange, answer, body.value)

    wake = await at_first_spelling(exchange, answer_at)
    if wake.is_new:
        exchange.services.metrics.count_event(EventType.APPROVAL_GRANTED)
        exchange.hint_events(run_id)
        if wake.is_owned:
            exchange.hint_news(run_id)
        else:
            exchange.hint_due(wake.queue)
    return {"runId": run_id}


async def _answer(exchange: Exchange, answer: Answer, value: Any) -> Wake:
    while True:
        request = await read_form(exchange.database.pool, answer)
        check_form(request, value)
        try:
            return await answer_form(exchange.database.pool, answer, request)
        except FormChanged:
            continue
