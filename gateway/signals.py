"""Send signals to runs."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from gateway.bodies import write_json
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.fields import NO_NUL, Body, Person
from gateway.responses import SignalRecord
from smithers.events import EventType
from smithers.ids import MAX_CORRELATION_CHARS, SIGNAL_NAME_RULE, is_signal_name
from smithers.store.outside import SignalSent, send_signal


class SignalBody(Body):
    """A signal to send."""

    data: Any = Field({}, description="any JSON value; default: an empty object")
    correlation_id: (
        Annotated[str, StringConstraints(max_length=MAX_CORRELATION_CHARS, pattern=NO_NUL)] | None
    ) = Field(None, description="a wait with a correlation id takes only signals with the same one")
    received_by: Person | None = Field(None, description="a credential's user takes precedence")
    id: Annotated[str, StringConstraints(max_length=200, pattern=NO_NUL)] | None = Field(
        None, description="the sender's own: repeating it returns the first record"
    )


async def post_signal(exchange: Exchange, body: SignalBody) -> SignalRecord:
    """Send a signal; it is kept if no node waits for it yet."""
    name = exchange.parts[1].decoded or exchange.parts[1].raw
    if not is_signal_name(name):
        raise InvalidRequest(f"A signal's name must be {SIGNAL_NAME_RULE}.")
    sent = SignalSent(
        run_id=exchange.run_id(),
        signal_name=name,
        correlation_id=body.correlation_id,
        data=write_json(body.data),
        received_by=exchange.credential.user or body.received_by,
        signal_id=body.id,
    )
    record = await send_signal(exchange.database.outside, sent)
    if record.is_new:
        exchange.services.metrics.count_event(EventType.SIGNAL_RECEIVED)
    return {
        "runId": sent.run_id,
        "seq": record.seq,
        "signalName": record.signal_name,
        "correlationId": record.correlation_id,
        "receivedAtMs": record.received_ms,
    }
