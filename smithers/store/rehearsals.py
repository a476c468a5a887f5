"""What a rehearsal of a workflow asks of its database and no server does: to move the clock, and whether a run is at rest."""

from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.ids import RunId
from smithers.states import RunStatus
from smithers.store.connections import driver_errors

# -- name: move_clock
# Every time that is written down is this function's. Its body takes no parameter: the offset is made a literal by format().
MOVE_CLOCK: Final = """
DO $do$ BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION smithers.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS '
        '$body$ SELECT clock_timestamp() + %L::interval $body$', current_setting('smithers.offset'));
END $do$
"""

# -- name: set_offset
SET_OFFSET: Final = "SELECT set_config('smithers.offset', $1, false)"

# -- name: find_rest
# At rest: nobody has it, and nothing of it is due.
FIND_REST: Final = """
SELECT status, owner_id IS NULL AND (due_at IS NULL OR due_at > smithers.clock()) AS is_at_rest
FROM smithers.runs WHERE run_id = $1
"""

# -- name: read_clock
READ_CLOCK: Final = "SELECT smithers.to_ms(smithers.clock())"


@dataclass(frozen=True, slots=True)
class Rest:
    """Where a run is, and whether it stays there until something comes from outside."""

    status: RunStatus
    is_at_rest: bool


async def move_clock(connection: asyncpg.Connection, offset_s: float) -> None:
    """Let the database's time be so many seconds ahead of the real one, for everybody."""
    with driver_errors():
        await connection.execute(SET_OFFSET, f"{offset_s} seconds")
        await connection.execute(MOVE_CLOCK)


async def find_rest(connection: asyncpg.Connection, run_id: RunId) -> Rest:
    """Say where a run is; it must be there."""
    with driver_errors():
        row = await connection.fetchrow(FIND_REST, run_id)
    assert row is not None
    return Rest(RunStatus(row["status"]), row["is_at_rest"])


async def read_clock(connection: asyncpg.Connection) -> int:
    """Read the database's time, in milliseconds since 1970."""
    with driver_errors():
        now_ms: int = await connection.fetchval(READ_CLOCK)
    return now_ms
