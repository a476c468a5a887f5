"""What `up` reads of its run past its server, in the database that it has opened itself."""

from smithers.ids import RunId


async def find_queue(run_id: str, dsn: str) -> str | None:
    """Return the queue that a run is claimed from; None where there is no such run."""
    from smithers.store import reads
    from smithers.store.connections import open_connection

    async with open_connection(dsn, role="up") as connection:
        return await reads.find_queue(connection, RunId(run_id))
