"""Read the calls of a node's attempts."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

import asyncpg

from smithers.ids import NodeId, RunId
from smithers.store.connections import driver_errors


class CallPlace(NamedTuple):
    """A call's position among all calls of a node's attempts."""

    attempt: int
    call_no: int


END: Final = CallPlace(2**31 - 1, 0)  # after every call: the column's maximum
HEAD_CHARS: Final = 300  # of the input of a brief row


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallRow:
    """A call of a tool or a model; `input`, `output` and `error` are JSON."""

    attempt: int
    call_no: int
    parent_call_no: int | None  # within which it was made; 0: none; None: not recorded
    beside_call_no: int | None  # its parent's oldest that was under way when it began
    kind: str
    tool_name: str
    state: str
    is_side_effect: bool
    is_idempotent: bool
    input: (
        str | None
    )  # None also where it is larger than was asked for; of a brief row only the head
    input_bytes: int | None
    input_digest: str | None  # of a brief row: see digest_of
    output: str | None  # None also where it is larger than was asked for
    output_bytes: int | None
    error: str | None
    started_ms: int
    finished_ms: int | None
    is_recallable: bool  # every attempt since, its own included, was lost, parked or is under way


# -- name: list_tool_calls
# The newest calls of one node before a place, by the primary key from its end; told in the order in which they were made.
# Large columns are not read. The brief form truncates inputs, except for calls made by a tool: their idempotency keys are
# derived from the input. An attempt that has not ended has no row among the attempts.
LIST_TOOL_CALLS: Final = """
    SELECT * FROM (
        SELECT t.attempt, t.call_no, t.parent_call_no, t.beside_call_no, t.kind, t.tool_name, t.state,
               t.is_side_effect, t.is_idempotent,
               CASE WHEN $9 AND t.parent_call_no = 0 THEN left(t.input, $10)
                   WHEN octet_length(t.input) <= $4 THEN t.input END AS input, octet_length(t.input) AS input_bytes,
               CASE WHEN $9 THEN encode(sha256(convert_to(t.input, 'UTF8')), 'hex') END AS input_digest,
               CASE WHEN octet_length(t.output) <= $5 THEN t.output END AS output, octet_length(t.output) AS output_bytes,
               t.error, smithers.to_ms(t.started_at) AS started_ms, smithers.to_ms(t.finished_at) AS finished_ms,
               t.attempt > coalesce(
                   (SELECT max(a.attempt) FROM smithers.attempts a
                    WHERE a.run_id = $1 AND a.node_id = $2 AND a.iteration = $3
                        AND a.state NOT IN ('lost', 'parked')), 0) AS is_recallable
        FROM smithers.tool_calls t
        WHERE t.run_id = $1 AND t.node_id = $2 AND t.iteration = $3 AND (t.attempt, t.call_no) < ($6, $7)
        ORDER BY t.attempt DESC, t.call_no DESC
        LIMIT $8
    ) AS newest
    ORDER BY attempt, call_no"""


# -- name: find_call_output
# One, by the primary key: it was not read when the calls were listed.
FIND_CALL_OUTPUT: Final = """
    SELECT output FROM smithers.tool_calls
    WHERE run_id = $1 AND node_id = $2 AND iteration = $3 AND attempt = $4 AND call_no = $5"""


async def list_tool_calls(
    pool: asyncpg.Pool,
    run_id: RunId,
    node_id: NodeId,
    iteration: int,
    *,
    limit: int,
    max_bytes: int,
    is_brief: bool = False,
    before: CallPlace = END,
) -> list[ToolCallRow]:
    """List the newest calls of all of a node's attempts that stand before a place, oldest first.

    Inputs and outputs above `max_bytes` are left out, and of brief rows all outputs.
    """
    max_output_bytes = -1 if is_brief else max_bytes
    with driver_errors():
        rows = await pool.fetch(
            LIST_TOOL_CALLS,
            run_id,
            node_id,
            iteration,
            max_bytes,
            max_output_bytes,
            before.attempt,
            before.call_no,
            limit,
            is_brief,
            HEAD_CHARS,
        )
    return [ToolCallRow(**row) for row in rows]


def digest_of(given: str) -> str:
    """Return what tells an input from others, as brief rows have it."""
    return sha256(given.encode()).hexdigest()


async def find_call_output(
    pool: asyncpg.Pool, run_id: RunId, node_id: NodeId, iteration: int, place: CallPlace
) -> str | None:
    """Read the output of one call, as JSON text."""
    with driver_errors():
        output: str | None = await pool.fetchval(
            FIND_CALL_OUTPUT, run_id, node_id, iteration, place.attempt, place.call_no
        )
    return output
