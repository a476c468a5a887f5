"""Count the connections that a server keeps at most, and compare them with what its Postgres allows.

The table in docs/scaling.md says what each of them is for. A shortage shows late, and far from its cause: a child without
a connection waits, and so do its runs. An embedded Postgres is the server's own: it is started with enough of them.
"""

from typing import Final

import structlog

from smithers.settings import InvalidSettings, ServerOptions
from smithers.store.checks import read_room
from worker.settings import MAX_ISOLATED, MAX_RETIRED, MAX_TRYING

LOG: Final = structlog.get_logger(__name__)
GATEWAY_CONNECTIONS: Final = 10
POOL_CONNECTIONS: Final = 4
CHILD_CONNECTIONS: Final = 6
RETENTION_CONNECTIONS: Final = 1
OWN_DATABASES_CONNECTIONS: Final = 1  # queries once a minute which of them are in use
FOR_PEOPLE: Final = 10  # and for commands beside a server
EMBEDDED_LEAST: Final = 200
EMBEDDED_MOST: Final = 1_000


def count_connections(options: ServerOptions) -> int:
    """Return how many connections to its own database a server keeps at most."""
    count = RETENTION_CONNECTIONS + options.http_workers * GATEWAY_CONNECTIONS
    if options.workers:
        children = options.workers + MAX_ISOLATED + MAX_TRYING + MAX_RETIRED
        count += POOL_CONNECTIONS + children * CHILD_CONNECTIONS
        count += OWN_DATABASES_CONNECTIONS
        if options.workflow_databases:
            # One listens for which come into use, and each mirror writes over one.
            count += 1 + len(options.workflow_databases)
    return count


def embedded_settings(options: ServerOptions) -> dict[str, str]:
    """Return the settings to start an embedded Postgres with; raises InvalidSettings for too many processes."""
    wanted = count_connections(options) + FOR_PEOPLE
    if wanted > EMBEDDED_MOST:
        raise _too_many(options, f"an embedded Postgres allows at most {EMBEDDED_MOST}")
    return {"max_connections": str(max(wanted, EMBEDDED_LEAST))}


async def check_connections(options: ServerOptions, dsn: str, *, is_embedded: bool) -> None:
    """Warn if a Postgres has too few connections left; for an embedded one that others started, raise InvalidSettings."""
    room = await read_room(dsn)
    wanted = count_connections(options)
    if is_embedded and wanted > room.allowed:
        told = f"the embedded Postgres that another server has started allows {room.allowed}"
        raise _too_many(options, told)
    if not is_embedded and wanted > room.allowed - room.taken:
        LOG.warning(
            "connections_short", needed=wanted, allowed=room.allowed, taken_by_others=room.taken
        )


def _too_many(options: ServerOptions, told: str) -> InvalidSettings:
    given = f"--workers {options.workers} and --http-workers {options.http_workers}"
    count = count_connections(options)
    return InvalidSettings(
        [f"{given} need up to {count} connections, and {told}: use fewer, or set DATABASE_URL"]
    )
