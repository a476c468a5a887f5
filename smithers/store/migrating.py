"""Have the schema right before anything is served, and migrate it, if need be, in a process of its own.

`python -P -m smithers.store.migrating` is that process; the database's URL is a line on its stdin, whose end is its own end.
Alembic and SQLAlchemy, 28 MiB, would stay in the memory of a server that had migrated by itself for as long as it lives.
"""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress

from smithers.errors import StoreError, StoreUnavailable
from smithers.processes import importing_this
from smithers.store.connections import open_connection
from smithers.store.schema import (
    SchemaMismatch,
    SchemaUnreleased,
    require_schema,
    upgrade_schema,
)


async def settle_schema(dsn: str, *, migrate: bool) -> None:
    """Return when the schema is at head or newer; raises SchemaMismatch if it is older and is not migrated."""
    async with open_connection(dsn, role="start") as connection:
        try:
            await require_schema(connection)
        except SchemaMismatch as error:
            if not migrate or isinstance(error, SchemaUnreleased):
                raise
            await upgrade_elsewhere(dsn)


async def upgrade_elsewhere(dsn: str) -> None:
    """Migrate the schema to head in another process; idempotent. Raises StoreError, with that process's words."""
    try:
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
    except OSError as error:  # out of memory or processes
        raise StoreUnavailable(f"the migration does not start: {error}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(dsn.encode() + b"\n")
        said = (await process.stdout.read()).decode(errors="replace").strip()
        exit_code = await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.kill()  # the migration is one transaction
        await process.wait()
        raise
    if exit_code:
        text = said or f"the migration ended with exit code {exit_code}"
        raise StoreUnavailable(text) if exit_code == os.EX_TEMPFAIL else StoreError(text)


def main() -> None:
    """Migrate, and say on stdout why that is not possible."""
    dsn = sys.stdin.buffer.readline().rstrip(b"\n").decode()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        upgrade_schema(dsn)
    except StoreError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.exit(os.EX_TEMPFAIL if isinstance(error, StoreUnavailable) else 1)


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(os.EX_TEMPFAIL)  # who wanted this is gone


if __name__ == "__main__":
    main()
