"""Read a run's nodes; decide the approvals among them."""

from datetime import datetime
from typing import Any, Final

import orjson
from aiohttp import web

from gateway import fields
from gateway.bodies import read_object, write_json
from gateway.envelope import reply
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.runs import public_error
from smithers.ids import NODE_ID_PATTERN, NodeId, RunId
from smithers.store.node_reads import NodePlace, NodeRow, find_node, list_nodes
from smithers.store.outside import Decision, Wake, decide
from smithers.store.reads import run_exists
from smithers.store.refusals import NodeNotFound, RunNotFound

MAX_NODES: Final = 10_000
LISTED_OUTPUT_BYTES: Final = 65_536
SINGLE_OUTPUT_BYTES: Final = 1_048_576
MAX_OUTPUT_BYTES: Final = 1 << 30


async def get_nodes(exchange: Exchange) -> web.StreamResponse:
    """List a run's nodes, oldest first."""
    request = exchange.request
    limit = fields.query_whole(request, "limit", low=1, high=MAX_NODES, default=1_000)
    max_bytes = _query_max_bytes(request, LISTED_OUTPUT_BYTES)
    cursor = fields.query_text(request, "cursor")
    after = None if cursor is None else _read_place(cursor)
    run_id = exchange.run_id()
    rows = await list_nodes(
        exchange.services.pool, run_id, after=after, limit=limit, max_bytes=max_bytes
    )
    if not rows and not await run_exists(exchange.services.pool, run_id):
        raise RunNotFound
    link = None
    if len(rows) == limit:
        last = rows[-1]
        place = fields.write_cursor(last.created_at.isoformat(), last.node_id, last.iteration)
        link = fields.next_link(request, cursor=place)
    return reply([_node(run_id, row) for row in rows], link=link)


async def get_node(exchange: Exchange) -> web.StreamResponse:
    """Read one node; without an iteration its newest."""
    request = exchange.request
    text = fields.query_text(request, "iteration")
    iteration = (
        None
        if text is None
        else fields.parse_whole(text, "iteration", low=0, high=fields.MAX_INTEGER)
    )
    max_bytes = _query_max_bytes(request, SINGLE_OUTPUT_BYTES)
    run_id = exchange.run_id()
    row = await find_node(
        exchange.services.pool,
        run_id,
        _node_ids(exchange),
        iteration=iteration,
        max_bytes=max_bytes,
    )
    if row is None:
        raise NodeNotFound
    return reply(_node(run_id, row))


async def post_approve(exchange: Exchange) -> web.StreamResponse:
    """Approve what a node asks."""
    return await _decide(exchange, is_approved=True)


async def post_deny(exchange: Exchange) -> web.StreamResponse:
    """Deny what a node asks."""
    return await _decide(exchange, is_approved=False)


async def _decide(exchange: Exchange, *, is_approved: bool) -> web.StreamResponse:
    body = await read_object(exchange.request, max_bytes=exchange.services.settings.max_body_bytes)
    iteration = fields.take_whole(body, "iteration", low=0) or 0
    note = fields.take_text(body, "note")
    decided_by = fields.take_text(body, "decidedBy", max_chars=500)
    decision = None if body.get("decision") is None else write_json(body["decision"])
    run_id = exchange.run_id()
    who = exchange.credential
    wake = await _decide_either(
        exchange,
        [
            Decision(
                run_id=run_id,
                node_id=node_id,
                iteration=iteration,
                is_approved=is_approved,
                note=note,
                decided_by=who.user or decided_by,  # a credential that names somebody is believed
                decision=decision,
                user=who.user,
                scopes=who.scopes,
            )
            for node_id in _node_ids(exchange)
        ],
    )
    if wake.is_new:
        exchange.hint_events(run_id)
        if wake.is_owned:
            exchange.hint_news(run_id)
        else:
            exchange.hint_due(wake.queue)
    return reply({"runId": run_id})


async def _decide_either(exchange: Exchange, decisions: list[Decision]) -> Wake:
    """Decide at the first of the spellings of one node id that there is."""
    for decision in decisions[:-1]:
        try:
            return await decide(exchange.services.outside, decision)
        except NodeNotFound:
            continue
    return await decide(exchange.services.outside, decisions[-1])


def _node_ids(exchange: Exchange) -> list[NodeId]:
    ids = [NodeId(text) for text in exchange.parts[1].spellings if NODE_ID_PATTERN.fullmatch(text)]
    if not ids:
        raise NodeNotFound
    return ids


def _query_max_bytes(request: web.Request, default: int) -> int:
    return fields.query_whole(request, "maxBytes", low=0, high=MAX_OUTPUT_BYTES, default=default)


def _read_place(cursor: str) -> NodePlace:
    moment, node_id, iteration = fields.read_cursor(cursor, str, str, int)
    try:
        created_at = datetime.fromisoformat(moment)
    except ValueError as error:
        raise InvalidRequest("cursor must be one that a Link header carried.") from error
    return NodePlace(created_at=created_at, node_id=NodeId(node_id), iteration=iteration)


def _node(run_id: RunId, row: NodeRow) -> dict[str, Any]:
    return {
        "runId": run_id,
        "nodeId": row.node_id,
        "iteration": row.iteration,
        "kind": row.kind,
        "label": row.label,
        "state": row.state,
        "attempt": row.attempt,
        "createdAtMs": row.created_ms,
        "startedAtMs": row.started_ms,
        "finishedAtMs": row.finished_ms,
        "dueAtMs": row.due_ms,
        "wait": None if row.wait is None else orjson.Fragment(row.wait),
        "output": None if row.output is None else orjson.Fragment(row.output),
        "outputBytes": row.output_bytes,  # with a null output: larger than maxBytes
        "error": public_error(row.error),
        "attempts": [
            {
                "attempt": attempt.attempt,
                "state": attempt.state,
                "startedAtMs": attempt.started_ms,
                "finishedAtMs": attempt.finished_ms,
                "error": public_error(attempt.error),
            }
            for attempt in row.attempts
        ],
    }
