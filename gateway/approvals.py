"""List what people are asked."""

import json
from datetime import datetime
from typing import Any, Final

from aiohttp import web

from gateway import fields
from gateway.envelope import reply
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from smithers.ids import NodeId, RunId
from smithers.store.node_reads import ApprovalPlace, ApprovalRow, list_approvals

MAX_LIST: Final = 1_000


async def get_approvals(exchange: Exchange) -> web.StreamResponse:
    """List the open approvals, oldest request first."""
    request = exchange.request
    limit = fields.query_whole(request, "limit", low=1, high=MAX_LIST, default=500)
    cursor = fields.query_text(request, "cursor")
    rows = await list_approvals(
        exchange.services.pool,
        after=None if cursor is None else _read_place(cursor),
        limit=limit,
    )
    link = None
    if len(rows) == limit:
        last = rows[-1]
        place = fields.write_cursor(
            last.requested_at.isoformat(), last.run_id, last.node_id, last.iteration
        )
        link = fields.next_link(request, cursor=place)
    return reply({"approvals": [_approval(row) for row in rows]}, link=link)


def _read_place(cursor: str) -> ApprovalPlace:
    moment, run_id, node_id, iteration = fields.read_cursor(cursor, str, str, str, int)
    try:
        requested_at = datetime.fromisoformat(moment)
    except ValueError as error:
        raise InvalidRequest("cursor must be one that a Link header carried.") from error
    return ApprovalPlace(
        requested_at=requested_at,
        run_id=RunId(run_id),
        node_id=NodeId(node_id),
        iteration=iteration,
    )


def _approval(row: ApprovalRow) -> dict[str, Any]:
    request = json.loads(row.request)
    return {
        "runId": row.run_id,
        "nodeId": row.node_id,
        "iteration": row.iteration,
        "workflowName": row.workflow_name,
        "runStatus": row.run_status,
        "label": row.label,
        "requestTitle": request.get("title"),
        "requestSummary": request.get("summary"),
        "requestedAtMs": row.requested_ms,
        "waitingMs": max(row.waiting_ms, 0),
        "note": None,  # an answer has them; these have none yet
        "decidedBy": None,
    }
