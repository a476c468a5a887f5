"""Find the database that a run lives in: the server's, or its workflow's own.

The result has the open connections to that database, so that a handler reads and writes where the run is without knowing
it. The server's database says where each run lives. As long as no workflow's own database is in use, it is not asked; hints
announce when one comes into use. Runs in a database for which this server has no URL are shown by their mirrors, to which
the server's database refuses writes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog

from gateway.errors import InvalidRequest
from smithers.errors import StoreError
from smithers.ids import RunId
from smithers.store.connections import Pool
from smithers.store.hints import Hints
from smithers.store.migrating import settle_schema
from smithers.store.outside import OutsideLane
from smithers.store.own_databases import (
    find_home,
    is_same_database,
    list_own_databases,
    use_own_database,
)
from smithers.store.starts import StartLane

if TYPE_CHECKING:
    from gateway.hub import Hub
    from gateway.sources import Sources

LOG: Final = structlog.get_logger(__name__)
LOOK_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A process's connections to one database: eight at most."""

    name: str | None  # its name in workflows; None: the server's own database
    pool: Pool
    starts: StartLane
    outside: OutsideLane
    hints: Hints
    hub: "Hub"
    sources: "Sources"


class Databases:
    """The workflows' own databases, as one gateway knows them."""

    def __init__(
        self,
        pool: Pool,
        urls: Mapping[str, str],
        connect: Callable[[str, str], Awaitable[Database]],
        *,
        migrate: bool,
    ) -> None:
        """`pool`: of the server's database. `urls`: by name; `connect` opens one of them, by name and URL."""
        self._pool = pool
        self._urls = urls
        self._connect = connect
        self._migrate = migrate
        self._used: set[str] = set()
        self._opening: dict[str, asyncio.Task[Database]] = {}
        self._open: dict[str, Database] = {}
        self._learning: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._used.update(await list_own_databases(self._pool))
        except StoreError as error:  # they are read when the connection for hints is up
            LOG.warning("own_databases_unknown", error=str(error))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        tasks = [*self._opening.values(), *([self._learning] if self._learning else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def are_used(self) -> bool:
        """Whether any of them is in use."""
        return not self._used.isdisjoint(self._urls)

    def hear(self, names: frozenset[str] | None) -> None:
        """Handle a hint that these came into use; None: any may have."""
        if names is not None:
            self._used.update(names)
        elif self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._learn(), name="databases-learn")

    def drain(self) -> None:
        """End the streams of their runs after a whole event."""
        for database in self._open.values():
            database.hub.drain()

    async def find(self, home: Database, run_id: RunId) -> Database:
        """Return the database that a run lives in; `home` is the server's. Raises StoreError."""
        if not self.are_used:
            return home
        name = await find_home(self._pool, run_id)
        return home if name is None or name not in self._urls else await self.get(home, name)

    async def get(self, home: Database, name: str) -> Database:
        """Return a database by its name in workflows, connecting to it first.

        It is `home`, the server's, if both are the same. Raises InvalidRequest for a name without a URL, StoreError
        if it does not answer, SchemaMismatch.
        """
        if name not in self._urls:
            reason = f"the workflow's database {name!r} is not known to this server"
            told = f"set the variable {name}, or --workflow-database {name}=URL, and restart the server"
            raise InvalidRequest(f"{reason}: {told}.", details={"reason": reason})
        if name in self._open:
            return self._open[name]
        opening = self._opening.get(name)
        if opening is None:
            opening = asyncio.create_task(self._open_one(home, name), name=f"open-{name}")
            self._opening[name] = opening
            opening.add_done_callback(lambda _done: self._opening.pop(name, None))
        return await asyncio.shield(opening)

    async def _open_one(self, home: Database, name: str) -> Database:
        url = self._urls[name]
        await settle_schema(url, migrate=self._migrate)
        database = home
        if not await is_same_database(self._pool, url):
            await use_own_database(self._pool, name)  # first: it may fail; connections stay open
            database = await self._connect(name, url)
            self._used.add(name)
        self._open[name] = database
        return database

    async def _learn(self) -> None:
        while True:
            try:
                self._used.update(await list_own_databases(self._pool))
            except StoreError as error:
                LOG.warning("own_databases_unknown", error=str(error))
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                return
