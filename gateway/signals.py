"""Send signals to runs."""

from aiohttp import web

from gateway import fields
from gateway.bodies import read_object, write_json
from gateway.envelope import reply
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from smithers.store.outside import SignalSent, send_signal


async def post_signal(exchange: Exchange) -> web.StreamResponse:
    """Send a signal; it is kept when nobody waits for it yet."""
    body = await read_object(exchange.request, max_bytes=exchange.services.settings.max_body_bytes)
    name = exchange.parts[1].decoded
    if name is None or not name.strip() or len(name) > 200 or not name.isprintable():
        raise InvalidRequest("A signal's name is 1 to 200 printable characters, not all blank.")
    sent = SignalSent(
        run_id=exchange.run_id(),
        signal_name=name,
        correlation_id=fields.take_text(body, "correlationId", max_chars=500),
        data=write_json(body.get("data")),
        received_by=exchange.credential.user or fields.take_text(body, "receivedBy", max_chars=500),
        signal_id=fields.take_text(body, "id", max_chars=200),
    )
    record = await send_signal(exchange.services.outside, sent)
    if record.wake.is_new:
        exchange.hint_events(sent.run_id)
        if record.wake.is_owned:
            exchange.hint_news(sent.run_id)
        else:
            exchange.hint_due(record.wake.queue)
    return reply(
        {
            "runId": sent.run_id,
            "seq": record.seq,
            "signalName": record.signal_name,
            "correlationId": record.correlation_id,
            "receivedAtMs": record.received_ms,
        }
    )
