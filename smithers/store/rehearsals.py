"""Database calls for rehearsals only: move the clock, and check whether a run has settled."""

from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.ids import RunId
from smithers.states import RunStatus
from smithers.store.connections import driver_errors
from smithers.store.refusals import RunNotFound

# -- name: move_clock
# Every stored time comes from this function. Its body cannot have a parameter: format() makes the offset a literal.
MOVE_CLOCK: Final = """
DO $do$ BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION smithers.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS '
        '$body$ SELECT clock_timestamp() + %L::interval $body$', current_setting('smithers.offset'));
END $do$
"""

# -- name: set_offset
SET_OFFSET: Final = "SELECT set_config('smithers.offset', $1, false)"

# -- name: find_rest
# A run and the children that it waits for, at any depth, since their ends move it.
FIND_REST: Final = """
WITH RECURSIVE kin (run_id) AS (
    SELECT run_id FROM smithers.runs WHERE run_id = $1
    UNION ALL
    SELECT c.child_run_id FROM kin JOIN smithers.children c ON c.run_id = kin.run_id AND c.status IS NULL)
SELECT r.run_id = $1 AS is_asked, r.status, r.owner_id IS NULL AS is_free,
       coalesce(r.due_at <= smithers.clock(), false) AS is_due
FROM kin JOIN smithers.runs r ON r.run_id = kin.run_id
"""

# -- name: read_clock
READ_CLOCK: Final = "SELECT smithers.to_ms(smithers.clock())"


@dataclass(frozen=True, slots=True)
class Rest:
    """A run's status, and whether it stays so until something comes from outside."""

    status: RunStatus
    is_at_rest: bool
    is_due: bool  # it, or a child that it waits for, is due, and not claimed


async def move_clock(connection: asyncpg.Connection, offset_s: float) -> None:
    """Set the database's clock this many seconds ahead of real time, for everybody."""
    with driver_errors():
        await connection.execute(SET_OFFSET, f"{offset_s} seconds")
        await connection.execute(MOVE_CLOCK)


async def find_rest(connection: asyncpg.Connection, run_id: RunId) -> Rest:
    """Read a run's status; raises RunNotFound."""
    with driver_errors():
        rows = await connection.fetch(FIND_REST, run_id)
    asked = next((row for row in rows if row["is_asked"]), None)
    if asked is None:
        raise RunNotFound
    return Rest(
        status=RunStatus(asked["status"]),
        is_at_rest=all(row["is_free"] and not row["is_due"] and _is_still(row) for row in rows),
        is_due=any(row["is_free"] and row["is_due"] for row in rows),
    )


def _is_still(row: asyncpg.Record) -> bool:
    status = RunStatus(row["status"])
    return status.is_terminal or status.is_parked


async def read_clock(connection: asyncpg.Connection) -> int:
    """Read the database's time, in milliseconds since 1970."""
    with driver_errors():
        now_ms: int = await connection.fetchval(READ_CLOCK)
    return now_ms
