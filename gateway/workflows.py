"""List the workflows that this server has run."""

from typing import Final

from pydantic import Field

from gateway.envelope import stored
from gateway.errors import DbNotConfigured
from gateway.exchange import Exchange
from gateway.fields import Cursor, Digits, Query
from gateway.paging import Page, next_link, read_cursor, write_cursor
from gateway.responses import WorkflowAnswer
from smithers.store.workflows import WorkflowRow, list_workflows

MAX_LIST: Final = 1_000


class WorkflowsQuery(Query):
    """Which of the workflows."""

    limit: Digits = Field(100, ge=1, le=MAX_LIST)
    cursor: Cursor | None = None


async def get_workflows(exchange: Exchange, query: WorkflowsQuery) -> Page[list[WorkflowAnswer]]:
    """List the workflows with runs, by name, each as its newest run has it."""
    if not exchange.services.settings.is_kept:
        raise DbNotConfigured
    after = "" if query.cursor is None else read_cursor(query.cursor, str)[0]
    rows = await list_workflows(exchange.database.pool, after=after, limit=query.limit)
    link = None
    if len(rows) == query.limit:
        link = next_link(exchange.request, cursor=write_cursor(rows[-1].workflow_name))
    return Page([_answer(row) for row in rows], link)


def _answer(row: WorkflowRow) -> WorkflowAnswer:
    path, description = row.workflow_path, row.description
    return {
        "workflowName": row.workflow_name,
        "workflowPath": path if row.workflow_export is None else f"{path}:{row.workflow_export}",
        "workflowHash": row.source_hash,
        "lastStartedAtMs": row.last_started_ms,
        "inputSchema": stored(description.input_schema),
        "queue": description.queue,
        "isolation": description.isolation,
        "database": description.database,
    }
