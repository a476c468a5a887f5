"""Track workflows' own databases, and reserve the ids of runs that will live there.

The server's database is the arbiter of run ids: a start in another database first reserves the id here, by a row that says
where the run lives, and then starts the run there, where the constraint decides between starts of one id. A crash between
the two leaves a reservation with the complete request: repeating the start continues from it, and so does the
mirror, after a while, if nobody repeats it (see smithers.store.mirror).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import asyncpg

from smithers.events import Envelope, EventType, event_parts
from smithers.ids import RunId
from smithers.store.connections import driver_errors, transaction
from smithers.store.hints import Channel
from smithers.store.poolers import leads_to
from smithers.store.refusals import RunExists
from smithers.store.starts import IdempotencyKey, RunStart, take_key

# -- name: list_own_databases
LIST_OWN_DATABASES: Final = "SELECT name FROM smithers.own_databases"

# -- name: use_own_database
# The hint is sent with the commit, unlike all others: it happens once in the life of a database, and if it
# got lost, gateways and pools would not know the database until their next connection.
USE_OWN_DATABASE: Final = """
    WITH new AS (INSERT INTO smithers.own_databases (name) VALUES ($1) ON CONFLICT DO NOTHING RETURNING name)
    SELECT pg_notify($2, name) FROM new"""

# -- name: find_home
FIND_HOME: Final = "SELECT database FROM smithers.runs WHERE run_id = $1"

# The reserved columns of a start, in the order of the parameters.
_asked: Final = attrgetter(
    "queue",
    "priority",
    "is_solo",
    "workflow_name",
    "workflow_path",
    "workflow_export",
    "source_hash",
    "input",
    "config",
    "auth",
    "trace_context",
    "parent_run_id",
)

# -- name: reserve_run
# No event, and not claimable. A rival with the same id waits here until this one has committed.
RESERVE_RUN: Final = """
    WITH new AS (
        INSERT INTO smithers.runs (
            run_id, database, mirrored_seq, last_seq, status, queue, priority, is_solo, created_at)
        VALUES ($1, $2, -1, -1, 'queued', $3, $4, $5, smithers.clock())
        ON CONFLICT DO NOTHING RETURNING run_id, created_at)
    INSERT INTO smithers.run_requests (
        run_id, workflow_name, workflow_path, workflow_export, source_hash, input, config, auth, trace_context,
        parent_run_id, created_at)
    SELECT run_id, $6, $7, $8, $9, $10, $11, $12, $13, $14, created_at FROM new
    RETURNING run_id"""

# -- name: may_go_on
# Whether a start without a key may continue a reservation: one with a key is continued only by a start with that key.
MAY_GO_ON: Final = """
    SELECT EXISTS (SELECT FROM smithers.runs WHERE run_id = $1 AND database = $2)
        AND NOT EXISTS (SELECT FROM smithers.idempotency_keys WHERE run_id = $1)"""

# Reservations without a mirrored event: with the request, and the source, which its gateway stored before.
_RESERVATIONS: Final = """
    SELECT r.run_id, r.queue, r.priority, r.is_solo, q.workflow_name, q.workflow_path, q.workflow_export, q.source_hash,
           q.input, q.config, q.auth, q.trace_context, q.parent_run_id, s.bundle
    FROM smithers.runs AS r
    JOIN smithers.run_requests AS q ON q.run_id = r.run_id
    JOIN smithers.workflow_sources AS s ON s.source_hash = q.source_hash
    WHERE r.mirrored_seq = -1 AND """

# -- name: find_reservation
FIND_RESERVATION: Final = _RESERVATIONS + "r.run_id = $1"

# -- name: list_abandoned
# Reservations whose starts were interrupted.
LIST_ABANDONED: Final = (
    _RESERVATIONS
    + "r.database = $1 AND r.created_at < smithers.clock() - make_interval(secs => $2) LIMIT $3"
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A run that was reserved and has not been seen in its database."""

    start: RunStart
    bundle: str  # its source, as JSON


async def list_own_databases(pool: asyncpg.Pool | asyncpg.Connection) -> list[str]:
    """List the databases that runs were ever started in, besides the server's own."""
    with driver_errors():
        rows = await pool.fetch(LIST_OWN_DATABASES)
    return [row["name"] for row in rows]


async def use_own_database(pool: asyncpg.Pool, name: str) -> None:
    """Record that runs are started in a database, and notify every gateway and pool."""
    with driver_errors():
        await pool.execute(USE_OWN_DATABASE, name, Channel.DATABASES)


async def is_same_database(pool: asyncpg.Pool, dsn: str) -> bool:
    """Say whether a URL leads to the database of the pool."""
    with driver_errors():
        async with pool.acquire() as connection:
            return await leads_to(connection, dsn)


async def find_home(pool: asyncpg.Pool, run_id: RunId) -> str | None:
    """Return the name of the database that a run lives in; None: the server's, or there is no such run."""
    with driver_errors():
        name: str | None = await pool.fetchval(FIND_HOME, run_id)
    return name


async def reserve_run(
    pool: asyncpg.Pool,
    start: RunStart,
    *,
    database: str,
    key: IdempotencyKey | None,
    is_there: bool,
) -> RunId | None:
    """Reserve a run's id for another database; return the run that the key already stands for, if any.

    `is_there`: whether that database has a run of this id. Without a key it is no error that the id is reserved there
    already: which of several starts is the one is decided there. Raises RunExists where the id is taken, KeyReused where
    the key came with another request; neither uses up the key.
    """
    with driver_errors():
        async with pool.acquire() as connection, transaction(connection):
            if key is not None:
                first = await take_key(connection, start.run_id, key)
                if first is not None:
                    return first
            if is_there:
                raise RunExists
            if await connection.fetchval(RESERVE_RUN, start.run_id, database, *_asked(start)):
                return None
            if key is not None or not await connection.fetchval(MAY_GO_ON, start.run_id, database):
                raise RunExists
    return None


async def find_reservation(pool: asyncpg.Pool, run_id: RunId) -> Reservation | None:
    """Read a run's reservation; None if there is none, or its run has been seen in its database."""
    with driver_errors():
        row = await pool.fetchrow(FIND_RESERVATION, run_id)
    return None if row is None else _reservation(row)


async def list_abandoned(
    connection: asyncpg.Connection, database: str, *, older_than_s: float, limit: int
) -> Sequence[Reservation]:
    """List reservations in a database whose starts were interrupted, judging by their age."""
    with driver_errors():
        rows = await connection.fetch(LIST_ABANDONED, database, older_than_s, limit)
    return [_reservation(row) for row in rows]


def _reservation(row: asyncpg.Record) -> Reservation:
    fields = dict(row)
    bundle = fields.pop("bundle")
    run_id = RunId(row["run_id"])
    envelope = Envelope.of(run_id, row["workflow_name"])
    head, tail = event_parts(EventType.RUN_STARTED, envelope, {})
    return Reservation(RunStart(**fields, head=head, tail=tail), bundle)
