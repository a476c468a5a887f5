"""The pools of one server: that of its database, and one more for each workflow's own database that is in use.

A database without any run is not connected to. Each pool has one database, so that claims, heartbeats and
burials are the same in all of them, and a database that is down delays no other.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.kept_process import KeptProcess, Program
from smithers.retention import prune_now_and_then
from smithers.service_loops import ServiceLoops
from smithers.store.connections import open_connection
from smithers.store.hints import Channel, Hints
from smithers.store.own_databases import list_own_databases

LOG: Final = structlog.get_logger(__name__)
LOOK_EVERY_S: Final = 60.0  # even without a hint
UNSET_EVERY_S: Final = 86_400.0  # a host may lack a database's URL on purpose
LOOK_AGAIN_S: Final = 1.0  # after a failed query


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPool:
    """The pool and mirror of one workflow's own database."""

    program: Program
    told: bytes = field(repr=False)
    dsn: str = field(repr=False)


class Pools:
    """The pools of one server, as one object."""

    def __init__(
        self,
        main: KeptProcess,
        told: bytes,
        own: Mapping[str, OwnPool],
        *,
        direct_dsn: str,
        retention: timedelta | None,
    ) -> None:
        """`told`: the main pool's settings. `own`: by the database's name, for those whose URL is known.

        `direct_dsn`: of the server's database.
        """
        self._main = main
        self._told = told
        self._own = own
        self._direct_dsn = direct_dsn
        self._retention = retention
        self._kept: dict[str, KeptProcess] = {}
        self._loops = ServiceLoops()
        self._heard = asyncio.Event()
        self._unset: dict[str, Complaint] = {}  # by the database's name

    async def start(self) -> None:
        """Start the server's pool, and those of the other databases as soon as they are in use."""
        await self._main.start(self._told)
        self._loops.start(self._watch, name="pools-watch")

    def expect_end(self) -> None:
        """Do not restart pools that end by themselves now: everything here was told to stop."""
        for pool in self._stop():
            pool.expect_end()

    def drain(self) -> None:
        """Tell the pools to pause their runs and exit."""
        for pool in self._stop():
            pool.drain()

    async def until_ended(self) -> None:
        """Wait until the draining pools have exited."""
        await asyncio.gather(*(pool.until_ended() for pool in (self._main, *self._kept.values())))

    def kill(self) -> None:
        """Kill the pools at once; their runs resume elsewhere, or here at the next start."""
        for pool in self._stop():
            pool.kill()

    async def end(self) -> None:
        """Kill pools that have not exited; nothing is left when this returns."""
        self.kill()
        await self._loops.stop()
        await asyncio.gather(*(pool.end() for pool in (self._main, *self._kept.values())))

    def _stop(self) -> Sequence[KeptProcess]:
        """Start no more pools."""
        self._loops.cancel()
        return (self._main, *self._kept.values())

    async def _watch(self) -> None:
        """Query which databases are in use: at the start, at each hint, and once a minute."""

        def hear(_names: frozenset[str] | None) -> None:
            self._heard.set()

        complaint = Complaint()
        async with AsyncExitStack() as stack:
            if self._own:  # otherwise there is no pool to start, and a warning can wait
                hints = Hints(self._direct_dsn, role="pools").listen({Channel.DATABASES: hear})
                await stack.enter_async_context(hints)
            while True:
                self._heard.clear()
                pause_s = LOOK_EVERY_S
                try:
                    await self._start_used()
                except (StoreError, OSError) as error:  # no database or no memory: that may pass
                    if complaint.may_be_said():
                        LOG.warning("own_pools_not_started", error=str(error))
                    pause_s = LOOK_AGAIN_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._heard.wait()

    async def _start_used(self) -> None:
        async with open_connection(self._direct_dsn, role="pools") as connection:
            names = await list_own_databases(connection)
        for name in names:
            if name not in self._own:
                complaint = self._unset.setdefault(name, Complaint(every_s=UNSET_EVERY_S))
                if complaint.may_be_said():
                    LOG.warning("own_database_not_set", database=name)
            elif name not in self._kept:
                LOG.info("own_pool_starts", database=name)
                self._kept[name] = pool = KeptProcess(self._own[name].program)
                try:
                    await pool.start(self._own[name].told)
                except OSError:
                    del self._kept[name]
                    raise
                if self._retention is not None:
                    prune = partial(prune_now_and_then, self._own[name].dsn, self._retention)
                    self._loops.start(prune, name=f"prune-{name}")
