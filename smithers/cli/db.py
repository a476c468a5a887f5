"""`smithers db`: bring the schema up to date, say where it is."""

import asyncio
import os

from smithers.cli import options as o
from smithers.cli.console import CommandFailed, Exit, note, print_fields, print_json
from smithers.settings import ServerOptions


def upgrade(
    *,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    data_dir: o.DataDir = None,
) -> None:
    """Bring the database's schema to what this version needs; harmless when it is there already."""
    from smithers.server import open_database

    given = o.server_options({**locals(), "migrate": True})

    async def run() -> str:
        async with open_database(given, os.environ) as database:
            return database.describe()

    where = asyncio.run(run())
    note(f"{where} is at schema {_head()}")


def current(
    *,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    data_dir: o.DataDir = None,
    as_json: o.AsJson = False,
) -> None:
    """Say which schema the database has, and which one this version needs."""
    found = asyncio.run(_find(o.server_options(locals())))
    needed = _head()
    if as_json:
        print_json({"current": found, "head": needed, "isCurrent": found == needed})
    else:
        print_fields([("current", found or "no schema"), ("head", needed)])
    if found != needed:
        raise CommandFailed(
            "the schema is not the one that this version needs",
            hint="smithers db upgrade",
            exit_code=Exit.FAILED,
        )


async def _find(options: ServerOptions) -> str | None:
    from smithers.server import find_database
    from smithers.store.connections import connect
    from smithers.store.schema import find_revision

    async with find_database(options, os.environ) as place:
        connection = await connect(place.dsn, role="command")
        try:
            return await find_revision(connection)
        finally:
            await connection.close()


def _head() -> str:
    from smithers.store.schema import head_revision

    return head_revision()
