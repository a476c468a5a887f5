"""Store versions of workflows' sources, and their descriptions by throwaway processes.

A null description requests it from the pool; the first requester writes the row. A description never
changes: a changed file has another source hash. A failure may be due to the environment, a missing file or a lack of
memory: it is requested again when it has aged, and at once if the describing process died.
"""

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import asyncpg

from smithers.ids import RunId, SourceHash
from smithers.store.connections import driver_errors

BELIEVED: Final = timedelta(seconds=10)  # how long a failure answers all starts of the version


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionRow:
    """What a start needs to know about a workflow; if `error` is set, nothing else is."""

    workflow_name: str | None
    input_schema: str | None  # JSON Schema, as text; None: any object
    queue: str | None
    isolation: str | None  # "process": each run in a child of its own
    database: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class WantedDescription:
    """A version whose description is requested."""

    source_hash: SourceHash
    workflow_export: str  # '': the file's only workflow
    bundle: str


@dataclass(frozen=True, slots=True)
class RunSource:
    """A run's workflow."""

    source_hash: SourceHash
    bundle: str  # JSON
    workflow_export: str | None  # None: the file's only workflow


# -- name: keep_source
# An existing one gets a new timestamp; otherwise retention might remove it before the start that it is stored for.
KEEP_SOURCE: Final = """
    INSERT INTO smithers.workflow_sources AS s (source_hash, bundle) VALUES ($1, $2)
    ON CONFLICT (source_hash) DO UPDATE SET created_at = smithers.clock()
    WHERE s.created_at < smithers.clock() - interval '1 hour'"""

# -- name: find_source
FIND_SOURCE: Final = "SELECT bundle FROM smithers.workflow_sources WHERE source_hash = $1"

# -- name: find_description
FIND_DESCRIPTION: Final = """
    SELECT description FROM smithers.workflow_descriptions WHERE source_hash = $1 AND workflow_export = $2"""

# -- name: want_description
# The null row is the request; an older request, or an answer, is kept, except for a failure that has expired.
# json, not jsonb, which would parse texts that are not needed.
WANT_DESCRIPTION: Final = """
    INSERT INTO smithers.workflow_descriptions AS d (source_hash, workflow_export) VALUES ($1, $2)
    ON CONFLICT (source_hash, workflow_export) DO UPDATE SET description = NULL, created_at = smithers.clock()
    WHERE d.description::json ->> 'error' IS NOT NULL
        AND (d.description::json ->> 'is_accident' = 'true' OR d.created_at < smithers.clock() - $3::interval)"""

# -- name: list_wanted_descriptions
# Requested and not answered yet, oldest first. Two pools may describe the same one: the result is the same.
LIST_WANTED_DESCRIPTIONS: Final = """
SELECT d.source_hash, d.workflow_export, s.bundle
FROM smithers.workflow_descriptions AS d JOIN smithers.workflow_sources AS s ON s.source_hash = d.source_hash
WHERE d.description IS NULL ORDER BY d.created_at LIMIT 20
"""

# -- name: put_description
# Its timestamp becomes that of the answer: a failure counts for a limited time (see want_description).
PUT_DESCRIPTION: Final = """
UPDATE smithers.workflow_descriptions SET description = $3, created_at = smithers.clock()
WHERE source_hash = $1 AND workflow_export = $2 AND description IS NULL
"""

# -- name: find_run_source
FIND_RUN_SOURCE: Final = """
    SELECT q.source_hash, s.bundle, q.workflow_export FROM smithers.run_requests q
    JOIN smithers.workflow_sources s USING (source_hash) WHERE q.run_id = $1"""


async def keep_source(
    pool: asyncpg.Pool | asyncpg.Connection, source_hash: SourceHash, bundle: str
) -> None:
    """Store a version, unless it is stored already."""
    with driver_errors():
        await pool.execute(KEEP_SOURCE, source_hash, bundle)


async def find_source(pool: asyncpg.Pool, source_hash: SourceHash) -> str | None:
    """Read a version's bundle; None if it was never stored."""
    with driver_errors():
        bundle: str | None = await pool.fetchval(FIND_SOURCE, source_hash)
    return bundle


async def find_description(
    pool: asyncpg.Pool, source_hash: SourceHash, export: str
) -> DescriptionRow | None:
    """Read what is known of a workflow (`export`: '' for a file's only one); None: not yet."""
    with driver_errors():
        text = await pool.fetchval(FIND_DESCRIPTION, source_hash, export)
    return None if text is None else read_description(text)


def read_description(text: str) -> DescriptionRow:
    """Parse the throwaway process's answer, JSON text; missing fields are None."""
    stored: dict[str, Any] = json.loads(text)
    schema = stored.get("input_schema")
    return DescriptionRow(
        workflow_name=stored.get("workflow_name"),
        input_schema=None if schema is None else json.dumps(schema),
        queue=stored.get("queue"),
        isolation=stored.get("isolation"),
        database=stored.get("database"),
        error=stored.get("error"),
    )


async def want_description(pool: asyncpg.Pool, source_hash: SourceHash, export: str) -> bool:
    """Request a description, unless it is requested or there; say whether that was done.

    A failure counts for BELIEVED after it was found; a death of the process only for those who wait for it.
    """
    with driver_errors():
        done: str = await pool.execute(WANT_DESCRIPTION, source_hash, export, BELIEVED)
    return done != "INSERT 0 0"


async def list_wanted_descriptions(
    connection: asyncpg.Connection | asyncpg.Pool,
) -> list[WantedDescription]:
    """List the versions to describe."""
    with driver_errors():
        rows = await connection.fetch(LIST_WANTED_DESCRIPTIONS)
    return [WantedDescription(*row) for row in rows]


async def put_description(pool: asyncpg.Pool, wanted: WantedDescription, description: str) -> None:
    """Store a version's description, JSON text; the first answer stands."""
    with driver_errors():
        await pool.execute(PUT_DESCRIPTION, wanted.source_hash, wanted.workflow_export, description)


async def find_run_source(pool: asyncpg.Pool, run_id: RunId) -> RunSource | None:
    """Read which version a run has, and its bundle."""
    with driver_errors():
        row = await pool.fetchrow(FIND_RUN_SOURCE, run_id)
    return None if row is None else RunSource(*row)
