"""Have the schema right before anything is served, and migrate it, if need be, in a process of its own.

`python -P -m smithers.store.migrating` is that process; the database's URL is a line on its stdin. Alembic and SQLAlchemy,
28 MiB, would stay in the memory of a server that had migrated by itself for as long as it lives.
"""

import asyncio
import os
import subprocess
import sys
from typing import Final

from smithers.errors import StoreError, StoreUnavailable
from smithers.processes import importing_this
from smithers.store.connections import open_connection
from smithers.store.schema import SchemaMismatch, require_schema, upgrade_schema

REFUSED: Final = 69  # exit codes of that process: EX_UNAVAILABLE and
AWAY: Final = 75  # EX_TEMPFAIL


async def settle_schema(dsn: str, *, migrate: bool) -> None:
    """Return when the schema is at head or newer; raises SchemaMismatch if it is older and may not be migrated."""
    async with open_connection(dsn, role="start") as connection:
        try:
            await require_schema(connection)
        except SchemaMismatch:
            if not migrate:
                raise
            await upgrade_elsewhere(dsn)


async def upgrade_elsewhere(dsn: str) -> None:
    """Migrate the schema to head in another process; idempotent. Raises StoreError, with that process's words."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        __name__,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=importing_this(os.environ),
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        said, _ = await process.communicate(dsn.encode() + b"\n")
    except asyncio.CancelledError:
        process.kill()  # the migration is one transaction
        await process.wait()
        raise
    if process.returncode == 0:
        return
    text = said.decode(errors="replace").strip() or "the migration failed: the log says why"
    raise StoreUnavailable(text) if process.returncode == AWAY else StoreError(text)


def main() -> None:
    """Migrate, and say on stdout why that is not possible."""
    try:
        upgrade_schema(sys.stdin.readline().rstrip("\n"))
    except StoreError as error:
        print(error)  # noqa: T201 - read by upgrade_elsewhere
        sys.exit(AWAY if isinstance(error, StoreUnavailable) else REFUSED)


if __name__ == "__main__":
    main()
