"""List open questions to people."""

import json
from datetime import datetime
from typing import Annotated, Any, Final

import orjson
from pydantic import Field

from gateway.bodies import write_json
from gateway.errors import DbNotConfigured
from gateway.exchange import Exchange
from gateway.fields import DIGITS, Cursor, Query
from gateway.paging import MAX_PAGE_BYTES, Page, next_link, read_cursor, write_cursor
from gateway.responses import ApprovalAnswer, ApprovalList
from smithers.ids import NodeId, RunId
from smithers.store.node_reads import ApprovalPlace, ApprovalRow, list_approvals

MAX_LIST: Final = 1_000
# Without a limit, for programs that read no Link header.
ALL: Final = 10_000


class ApprovalsQuery(Query):
    """Which of the open approvals."""

    limit: Annotated[int, Field(ge=1, le=MAX_LIST), DIGITS] | None = Field(
        None, description=f"default: all, up to {ALL}"
    )
    cursor: Cursor | None = None


async def get_approvals(exchange: Exchange, query: ApprovalsQuery) -> Page[ApprovalList]:
    """List the open approvals, oldest request first; a page has at most 4 MiB of requests."""
    if not exchange.services.settings.is_kept:
        raise DbNotConfigured
    rows, following = await list_approvals(
        exchange.database.pool,
        after=None if query.cursor is None else _read_place(query.cursor),
        limit=query.limit or ALL,
        page_bytes=MAX_PAGE_BYTES,
    )
    link = None
    if following is not None:
        place = write_cursor(
            following.requested_at, following.run_id, following.node_id, following.iteration
        )
        link = next_link(exchange.request, cursor=place)
    return Page({"approvals": [_approval(row) for row in rows]}, link)


def _read_place(cursor: str) -> ApprovalPlace:
    requested_at, run_id, node_id, iteration = read_cursor(cursor, datetime, str, str, int)
    return ApprovalPlace(
        requested_at=requested_at,
        run_id=RunId(run_id),
        node_id=NodeId(node_id),
        iteration=iteration,
    )


def _as_written(value: Any) -> orjson.Fragment | None:
    """Return JSON made by an author's model, with whole numbers of any size."""
    return None if value is None else orjson.Fragment(write_json(value))


def _approval(row: ApprovalRow) -> ApprovalAnswer:
    request = json.loads(row.request)
    return {
        "runId": row.run_id,
        "nodeId": row.node_id,
        "iteration": row.iteration,
        "workflowName": row.workflow_name,
        "runStatus": row.run_status,
        "label": row.label or request.get("title") or row.node_id,
        "requestTitle": request.get("title"),
        "requestSummary": request.get("summary"),
        "requestMode": request.get("mode", "approve"),
        "requestOptions": request.get("options"),
        "requestSchema": _as_written(request.get("schema")),
        "requestErrors": _as_written(request.get("errors")),
        "allowedUsers": request.get("allowedUsers"),
        "allowedScopes": request.get("allowedScopes"),
        "requestedAtMs": row.requested_ms,
        "waitingMs": max(row.waiting_ms, 0),
        "note": None,  # set by a decision; open approvals have none
        "decidedBy": None,
    }
