"""`smithers db`: migrate the schema, print its version, remove old runs."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from smithers.cli import options as o
from smithers.cli.console import (
    CommandFailed,
    Exit,
    log_to_stderr,
    note,
    print_fields,
    print_json,
    print_line,
)
from smithers.settings import ServerOptions
from smithers.store.revisions import FROM_BEFORE, read_revisions
from smithers.texts import counted

if TYPE_CHECKING:
    from smithers.foundation import Database
    from smithers.store.retention import Pruned

NEWER: Final = "newer than this version, which works on it and has nothing to upgrade"


def upgrade(
    *,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    data_dir: o.DataDir = None,
) -> None:
    """Migrate the database's schema to what this version needs; harmless if it is current or newer."""
    given = o.looking_options({**locals(), "migrate": True})
    log_to_stderr(given)
    where, found = asyncio.run(_upgrade(given))
    newer = f", {NEWER}" if read_revisions().is_newer(found) else ""
    note(f"{where} is at schema {found}{newer}")


def current(
    *,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    data_dir: o.DataDir = None,
    as_json: o.AsJson = False,
) -> None:
    """Print the database's schema version, and the one that this version needs; fails if it is older."""
    given = o.looking_options(locals())
    log_to_stderr(given)
    found = asyncio.run(_find(given))
    known = read_revisions()
    needed = known.head
    if as_json:
        print_json({"current": found, "head": needed, "isCurrent": found == needed})
    else:
        print_fields([("current", found or "no schema"), ("head", needed)])
    if known.is_newer(found):
        note(f"the schema is {NEWER}")
    elif found != needed:
        way = "smithers db upgrade, for the same database"
        raise CommandFailed(
            "the schema is not the one that this version needs",
            hint=f"it is {FROM_BEFORE}" if found in known.unreleased else way,
            exit_code=Exit.FAILED,
        )


OlderThan = Annotated[
    str,
    typer.Option(
        "--older-than",
        metavar="AGE",
        help="How long ago a run must have ended: a number with s, m, h, d or w, like 30d.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count them.")]


def prune(
    *,
    older_than: OlderThan,
    dry_run: DryRun = False,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    data_dir: o.DataDir = None,
    as_json: o.AsJson = False,
) -> None:
    """Remove runs that ended long ago, with everything that belongs to them except their ids.

    Works beside a running server, a few runs at a time. Runs that have not ended stay, however old they are.
    """
    from smithers.settings.parsing import age

    given = o.looking_options(locals())
    try:
        limit = age(older_than)
    except ValueError as error:
        raise CommandFailed(f"--older-than: {error}", exit_code=Exit.USAGE) from None
    log_to_stderr(given)
    pruned = asyncio.run(_prune(given, limit, is_dry=dry_run))
    if as_json and not pruned.is_elsewhere:
        print_json({"runs": pruned.run_count, "events": pruned.event_count, "isDryRun": dry_run})
        return
    if pruned.is_elsewhere:
        raise CommandFailed(
            f"another process prunes this database; removed here: {counted(pruned.run_count, 'run')}",
            hint="it removes the rest by its own --retention; or try again in a minute",
        )
    did = "would remove" if dry_run else "removed"
    runs, events = counted(pruned.run_count, "run"), counted(pruned.event_count, "event")
    print_line(f"{did} {runs} with {events}")


@asynccontextmanager
async def find_existing(options: ServerOptions) -> AsyncIterator["Database"]:
    """Join an existing database for a command that only reads; raise CommandFailed if there is none."""
    from smithers.foundation import find_database

    if (place := missing_at(options)) is not None:
        raise CommandFailed(
            f"there is no database for {options.root_dir} yet: none is in {place}",
            hint="use the server's --data-dir or --database-url",
        )
    async with find_database(options, os.environ) as database:
        yield database


def missing_at(options: ServerOptions) -> Path | None:
    """Return where the embedded database will be if it does not exist yet; None if it does, or a URL is given."""
    from smithers.store.embedded import default_data_dir, has_database

    if options.database_url is not None:
        return None
    place = options.data_dir or default_data_dir(options.root_dir, environ=os.environ)
    return None if has_database(place) else place


async def _prune(options: ServerOptions, limit: timedelta, *, is_dry: bool) -> "Pruned":
    from smithers.store import retention
    from smithers.store.connections import open_connection
    from smithers.store.schema import require_schema

    async with find_existing(options) as place:
        async with open_connection(place.dsn, role="command") as connection:
            await require_schema(connection)
        if is_dry:
            return await retention.count_prunable(place.dsn, limit)
        return await retention.prune(place.dsn, limit)


async def _upgrade(options: ServerOptions) -> tuple[str, str | None]:
    from smithers.foundation import open_database

    async with open_database(options, os.environ) as place:
        return place.describe(), await _read_revision(place)


async def _find(options: ServerOptions) -> str | None:
    async with find_existing(options) as place:
        return await _read_revision(place)


async def _read_revision(place: "Database") -> str | None:
    from smithers.store.connections import open_connection
    from smithers.store.schema import find_revision

    async with open_connection(place.dsn, role="command") as connection:
        return await find_revision(connection)
