"""Send signals to runs."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from gateway.answers import SignalRecord
from gateway.bodies import write_json
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.fields import NO_NUL, Body, Name, Person
from smithers.events import EventType
from smithers.store.outside import SignalSent, send_signal


class SignalBody(Body):
    """What a signal carries."""

    data: Any = Field(None, description="any JSON value")
    correlation_id: Name | None = None
    received_by: Person | None = Field(None, description="a credential that names somebody wins")
    id: Annotated[str, StringConstraints(max_length=200, pattern=NO_NUL)] | None = Field(
        None, description="the sender's own: the same one again answers the first record"
    )


async def post_signal(exchange: Exchange, body: SignalBody) -> SignalRecord:
    """Send a signal; it is kept when nobody waits for it yet."""
    name = exchange.parts[1].decoded
    if name is None or not name.strip() or len(name) > 200 or not name.isprintable():
        raise InvalidRequest("A signal's name is 1 to 200 printable characters, not all blank.")
    sent = SignalSent(
        run_id=exchange.run_id(),
        signal_name=name,
        correlation_id=body.correlation_id,
        data=write_json(body.data),
        received_by=exchange.credential.user or body.received_by,
        signal_id=body.id,
    )
    record = await send_signal(exchange.services.outside, sent)
    if record.is_new:
        exchange.services.metrics.count_event(EventType.SIGNAL_RECEIVED)
    return {
        "runId": sent.run_id,
        "seq": record.seq,
        "signalName": record.signal_name,
        "correlationId": record.correlation_id,
        "receivedAtMs": record.received_ms,
    }
