"""Read a run's nodes; decide the approvals among them."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Final, TypeVar

from pydantic import Field

from gateway.bodies import write_json
from gateway.envelope import error_for, stored
from gateway.exchange import Exchange
from gateway.fields import (
    DIGITS,
    MAX_INTEGER,
    Body,
    Cursor,
    Digits,
    Iteration,
    JsonValue,
    Person,
    Query,
    Text,
)
from gateway.paging import MAX_PAGE_BYTES, Page, next_link, read_cursor, write_cursor
from gateway.responses import NodeAnswer, NodeDetailAnswer, RunNamed, ToolCallAnswer
from smithers.events import EventType
from smithers.ids import NODE_ID_PATTERN, NodeId, RunId
from smithers.store.node_reads import NodePlace, NodeRow, find_node, list_nodes
from smithers.store.outside import Decision, asks_yes_or_no, decide
from smithers.store.reads import run_exists
from smithers.store.refusals import DecisionMisfit, NodeNotFound, RunNotFound
from smithers.store.tool_calls import ToolCallRow, list_tool_calls

Result = TypeVar("Result")
MAX_NODES: Final = 10_000
LISTED_OUTPUT_BYTES: Final = 65_536
SINGLE_OUTPUT_BYTES: Final = 1_048_576
LISTED_CALLS: Final = 100
MAX_OUTPUT_BYTES: Final = 1 << 30


class NodesQuery(Query):
    """Which of a run's nodes."""

    limit: Digits = Field(1_000, ge=1, le=MAX_NODES)
    max_bytes: Digits = Field(
        LISTED_OUTPUT_BYTES, ge=0, le=MAX_OUTPUT_BYTES, description="larger outputs are omitted"
    )
    cursor: Cursor | None = None


class NodeQuery(Query):
    """Which iteration of a node."""

    iteration: Annotated[int, Field(ge=0, le=MAX_INTEGER), DIGITS] | None = Field(
        None, description="default: the newest"
    )
    max_bytes: Digits = Field(
        SINGLE_OUTPUT_BYTES, ge=0, le=MAX_OUTPUT_BYTES, description="a larger output is omitted"
    )


class DecisionBody(Body):
    """A person's decision."""

    iteration: Iteration | None = Field(None, description="default: 0")
    note: Text | None = None
    decided_by: Person | None = Field(None, description="a credential's user takes precedence")
    decision: JsonValue = Field(
        None,
        description='`{"selected": option}` or `{"ranked": [option, …]}`, if and only if the question asks for one',
    )


async def get_nodes(exchange: Exchange, query: NodesQuery) -> Page[list[NodeAnswer]]:
    """List a run's nodes, oldest first; a page has at most 4 MiB of outputs and errors."""
    run_id = exchange.run_id()
    rows, has_more = await list_nodes(
        exchange.database.pool,
        run_id,
        after=None if query.cursor is None else _read_place(query.cursor),
        limit=query.limit,
        max_bytes=query.max_bytes,
        page_bytes=MAX_PAGE_BYTES,
    )
    if not rows and not await run_exists(exchange.database.pool, run_id):
        raise RunNotFound
    link = None
    if has_more:
        last = rows[-1]
        place = write_cursor(last.created_at, last.node_id, last.iteration)
        link = next_link(exchange.request, cursor=place)
    return Page([_node(exchange, run_id, row) for row in rows], link)


async def get_node(exchange: Exchange, query: NodeQuery) -> NodeDetailAnswer:
    """Read one node with its attempts, its output and its calls."""
    run_id = exchange.run_id()
    row = await find_node(
        exchange.database.pool,
        run_id,
        node_ids(exchange),
        iteration=query.iteration,
        max_bytes=query.max_bytes,
    )
    if row is None:
        raise NodeNotFound
    calls = await list_tool_calls(
        exchange.database.pool,
        run_id,
        row.node_id,
        row.iteration,
        limit=LISTED_CALLS,
        max_bytes=min(query.max_bytes, LISTED_OUTPUT_BYTES),
    )
    return {**_node(exchange, run_id, row), "toolCalls": [_tool_call(call) for call in calls]}


async def post_approve(exchange: Exchange, body: DecisionBody) -> RunNamed:
    """Approve a node; repeating the same decision changes nothing."""
    return await _decide(exchange, body, is_approved=True)


async def post_deny(exchange: Exchange, body: DecisionBody) -> RunNamed:
    """Deny a node; repeating the same decision changes nothing."""
    return await _decide(exchange, body, is_approved=False)


async def _decide(exchange: Exchange, body: DecisionBody, *, is_approved: bool) -> RunNamed:
    decision = None if body.decision is None else write_json(body.decision)
    run_id = exchange.run_id()
    who = exchange.credential

    async def decide_at(node_id: NodeId) -> bool:
        decided = Decision(
            run_id=run_id,
            node_id=node_id,
            iteration=body.iteration or 0,
            is_approved=is_approved,
            note=body.note,
            decided_by=who.user or body.decided_by,  # a credential's user takes precedence
            decision=decision,
            user=who.user,
            scopes=who.scopes,
        )
        # The check of a choice does not cover a question without options.
        if _is_choice(body.decision) and await asks_yes_or_no(exchange.database.pool, decided):
            raise DecisionMisfit(mode="approve", options=[])
        return await decide(exchange.database.outside, decided)

    is_new = await at_first_spelling(exchange, decide_at)
    if is_new:
        exchange.services.metrics.count_event(
            EventType.APPROVAL_GRANTED if is_approved else EventType.APPROVAL_DENIED
        )
    return {"runId": run_id}


def _is_choice(decision: object) -> bool:
    return isinstance(decision, dict) and not {"selected", "ranked"}.isdisjoint(decision)


async def at_first_spelling(
    exchange: Exchange, act: Callable[[NodeId], Awaitable[Result]]
) -> Result:
    """Act on the node that the path names, by the first spelling of its id that exists; raises NodeNotFound."""
    *likelier, last = node_ids(exchange)
    for node_id in likelier:
        with suppress(NodeNotFound):
            return await act(node_id)
    return await act(last)


def node_ids(exchange: Exchange) -> list[NodeId]:
    """List the spellings of the node id in the path, the raw one first; raise NodeNotFound for an impossible id."""
    ids = [NodeId(text) for text in exchange.parts[1].spellings if NODE_ID_PATTERN.fullmatch(text)]
    if not ids:
        raise NodeNotFound
    return ids


def _read_place(cursor: str) -> NodePlace:
    created_at, node_id, iteration = read_cursor(cursor, datetime, str, int)
    return NodePlace(created_at=created_at, node_id=NodeId(node_id), iteration=iteration)


def _node(exchange: Exchange, run_id: RunId, row: NodeRow) -> NodeAnswer:
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
        "wait": stored(row.wait),
        "output": stored(row.output),
        "outputBytes": row.output_bytes,  # with a null output: larger than maxBytes
        "error": error_for(exchange.credential, row.error),
        "attempts": [
            {
                "attempt": attempt.attempt,
                "state": attempt.state,
                "startedAtMs": attempt.started_ms,
                "finishedAtMs": attempt.finished_ms,
                "error": error_for(exchange.credential, attempt.error),
            }
            for attempt in row.attempts
        ],
    }


def _tool_call(row: ToolCallRow) -> ToolCallAnswer:
    return {
        "attempt": row.attempt,
        "seq": row.call_no,
        "kind": row.kind,
        "toolName": row.tool_name,
        "state": row.state,
        "sideEffect": row.is_side_effect,
        "idempotent": row.is_idempotent,
        "input": stored(row.input),
        "inputBytes": row.input_bytes,  # with a null input: larger than maxBytes
        "output": stored(row.output),
        "outputBytes": row.output_bytes,
        "error": stored(row.error),
        "startedAtMs": row.started_ms,
        "finishedAtMs": row.finished_ms,
    }
