"""Sources as workers read them: a version's bundle, and the descriptions that somebody asked for."""

from dataclasses import dataclass
from typing import Final

import asyncpg

from smithers.ids import SourceHash
from smithers.store.connections import driver_errors

# -- name: find_source
FIND_SOURCE: Final = "SELECT bundle FROM smithers.workflow_sources WHERE source_hash = $1"

# -- name: list_wanted_descriptions
# Asked for and not made yet, oldest first. Two pools may make the same one: the same source describes the same.
LIST_WANTED_DESCRIPTIONS: Final = """
SELECT d.source_hash, d.workflow_export, s.bundle
FROM smithers.workflow_descriptions AS d JOIN smithers.workflow_sources AS s ON s.source_hash = d.source_hash
WHERE d.description IS NULL ORDER BY d.created_at LIMIT 20
"""

# -- name: put_description
# Its time is that of the answer from now on: a failure is believed for a while (see want_description).
PUT_DESCRIPTION: Final = """
UPDATE smithers.workflow_descriptions SET description = $3, created_at = smithers.clock()
WHERE source_hash = $1 AND workflow_export = $2 AND description IS NULL
"""


@dataclass(frozen=True, slots=True)
class WantedDescription:
    """A version that somebody wants to start and that nobody has described."""

    source_hash: SourceHash
    workflow_export: str  # '': the file's only workflow
    bundle: str


async def find_source(pool: asyncpg.Pool, source_hash: SourceHash) -> str | None:
    """Read a version's bundle; None where it was never stored."""
    with driver_errors():
        bundle: str | None = await pool.fetchval(FIND_SOURCE, source_hash)
    return bundle


async def list_wanted_descriptions(pool: asyncpg.Pool) -> list[WantedDescription]:
    """List the versions to describe."""
    with driver_errors():
        rows = await pool.fetch(LIST_WANTED_DESCRIPTIONS)
    return [WantedDescription(*row) for row in rows]


async def put_description(pool: asyncpg.Pool, wanted: WantedDescription, description: str) -> None:
    """Write down what a version is, JSON text; the first answer stands."""
    with driver_errors():
        await pool.execute(PUT_DESCRIPTION, wanted.source_hash, wanted.workflow_export, description)
